"""Pictures of a chat: read, prepared, and put into its prompt where the template marks them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image

from ...errors import ContextLengthError, RequestError
from ..pictures.decode import decode
from ..pictures.fetch import MediaFetcher
from ..pictures.processor import PictureProcessor, prepared
from ..pictures.settings import PictureSettings
from ..pictures.source import PictureFile, PictureSource, read_source
from ..state.pictures import Picture
from .caller import CALLER, CallerLeftError
from .chat.template import RenderedChat
from .input import Input
from .traits import ModelTraits

IN_TEMPLATE = {"type": "image"}
"""What a chat template is given for a picture, whatever form it was sent in."""


def without_pictures(
    messages: Sequence[Mapping[str, Any]],
) -> tuple[list[Mapping[str, Any]], list[PictureSource]]:
    """The messages as chat templates know them, and the sources of their pictures in order.

    Parts `{"type": "image_url", "image_url": {"url": ...}}`, or with the URL in place of the
    object, are pictures.

    Raises:
        RequestError: such a part has no URL.
    """
    sources: list[PictureSource] = []
    turns: list[Mapping[str, Any]] = []
    for index, message in enumerate(messages):
        content = message.get("content")
        if not isinstance(content, list | tuple):
            turns.append(message)
            continue
        parts: list[Any] = []
        for number, part in enumerate(content):
            if isinstance(part, Mapping) and part.get("type") == "image_url":
                param = f"messages.{index}.content.{number}.image_url"
                sources.append(PictureSource(url=_url_of(part, param), param=param))
                part = IN_TEMPLATE
            parts.append(part)
        turns.append({**message, "content": parts})
    return turns, sources


def _url_of(part: Mapping[str, Any], param: str) -> str:
    given = part.get("image_url")
    url = given.get("url") if isinstance(given, Mapping) else given
    if not isinstance(url, str):
        raise RequestError(
            f'{param} has no URL; write {{"url": "data:image/png;base64,..."}}',
            param=param,
            code="invalid_parameter",
        )
    return url


@dataclass(frozen=True, slots=True, kw_only=True)
class PicturePrompts:
    """Reads the pictures of chats for one model, and puts them into prompts.

    `processor`: prepares them; or why the model takes none. `placeholder`: the text of the token
    for one row of a picture. `max_length_tokens`: of a prompt and its answer.
    """

    processor: PictureProcessor | str
    placeholder: str
    max_length_tokens: int
    settings: PictureSettings

    @property
    def taken(self) -> bool:
        """Whether the model takes pictures."""
        return not isinstance(self.processor, str)

    def read(self, sources: Sequence[PictureSource]) -> tuple[Picture, ...]:
        """The pictures of these sources, prepared for the model.

        Raises:
            RequestError: the model takes none, they are too many or too large, or one of them is
                none.
        """
        if not sources:
            return ()
        param = sources[0].param
        if isinstance(self.processor, str):
            raise RequestError(
                f"{param}: this model takes no pictures: {self.processor}; leave it out",
                param=param,
                code="unsupported_parameter",
            )
        settings = self.settings
        if len(sources) > settings.max_pictures:
            raise RequestError(
                f"messages have {len(sources)} pictures, and this server takes at most "
                f"{settings.max_pictures} (--max-pictures); send fewer",
                param="messages",
                code="invalid_parameter",
            )
        left = settings.max_request_pixels
        found: list[Picture] = []
        for source in sources:
            if CALLER.get().left:
                raise CallerLeftError
            file = self._file(source)
            picture = decode(
                file.data, file.kind, max_pixels=settings.max_picture_pixels, param=file.param
            )
            left -= picture.width * picture.height
            if left < 0:
                raise RequestError(
                    f"the pictures have more than {settings.max_request_pixels} pixels together, "
                    "which is the most that this server takes (--max-request-pixels); make them "
                    "smaller, or send fewer",
                    param=file.param,
                    code="invalid_picture",
                )
            rows = sum(each.rows for each in found)
            found.append(self._prepared(self.processor, picture, file.param, rows))
        return tuple(found)

    def put(self, chat: RenderedChat, pictures: Sequence[Picture]) -> RenderedChat:
        """The prompt with what stands for each picture in place of the template's markers.

        Raises:
            RequestError: the template has written more or fewer of them.
        """
        if isinstance(self.processor, str) or not pictures:
            return chat
        marker = self.processor.marker
        places = _written(chat, marker)
        if len(places) != len(pictures):
            raise RequestError(
                f"the model's chat template has {len(places)} places for the {len(pictures)} "
                "pictures of these messages; send pictures where it takes them, in messages of "
                "the user",
                param="messages",
                code="chat_template_error",
            )
        return _replaced(chat, places, len(marker), [picture.text for picture in pictures])

    def _prepared(
        self, processor: PictureProcessor, picture: Image, param: str, before: int
    ) -> Picture:
        """The picture as the engine takes it. `before`: rows of the pictures before it."""
        size = picture.width, picture.height
        try:
            rows = processor.tokens(*size)
            # What the tower takes of a picture may be much larger than the picture.
            if rows is not None and before + rows > self.max_length_tokens:
                raise ContextLengthError(
                    f"{param}: with this picture of {size[0]} x {size[1]}, the pictures alone have "
                    f"{before + rows} tokens; make them smaller, or send fewer",
                    limit_tokens=self.max_length_tokens,
                    param=param,
                )
            return prepared(processor, picture, self.placeholder)
        except ValueError as error:
            raise RequestError(
                f"{param}: the model's processor does not take a picture of {size[0]} x {size[1]}: "
                f"{error}",
                param=param,
                code="invalid_picture",
            ) from error

    def _file(self, source: PictureSource) -> PictureFile:
        settings = self.settings
        fetcher = MediaFetcher(
            domains=settings.allow_media_domains, timeout_s=settings.media_timeout_s
        )
        if source.url[:5].lower() == "data:":
            return read_source(source, max_bytes=settings.max_picture_bytes, fetcher=fetcher)
        # Other requests go on while another machine answers.
        with CALLER.get().elsewhere(lambda: None):
            return read_source(source, max_bytes=settings.max_picture_bytes, fetcher=fetcher)


def _written(chat: RenderedChat, marker: str) -> list[int]:
    """Where the template has written the marker: not where a caller has, in whole or in part."""
    found: list[int] = []
    at = chat.text.find(marker)
    while at >= 0:
        end = at + len(marker)
        if not any(start < end and stop > at for start, stop in chat.said):
            found.append(at)
        at = chat.text.find(marker, end)
    return found


def _replaced(
    chat: RenderedChat, places: Sequence[int], length: int, texts: Sequence[str]
) -> RenderedChat:
    pieces: list[str] = []
    last = 0
    for at, text in zip(places, texts, strict=True):
        pieces += (chat.text[last:at], text)
        last = at + length
    pieces.append(chat.text[last:])

    def moved(place: int) -> int:
        grown = (len(text) - length for at, text in zip(places, texts, strict=True) if at < place)
        return place + sum(grown)

    return RenderedChat(
        text="".join(pieces),
        said=tuple((moved(start), moved(stop)) for start, stop in chat.said),
    )


NO_PICTURES = PicturePrompts(
    processor="it has no part that takes them",
    placeholder="",
    max_length_tokens=0,
    settings=PictureSettings(),
)


def check_pictures(given: Input, ids: Sequence[int], model: ModelTraits) -> None:
    """Check that the tokens of a prompt hold the rows of all its pictures, and no further ones.

    Raises:
        RequestError: it was cut, or something else in it reads as a picture.
    """
    rows = sum(picture.rows for picture in given.pictures)
    found = sum(token == model.picture_token for token in ids)
    if found != rows:
        raise RequestError(
            f"the prompt has {found} tokens that stand for rows of pictures, and the pictures have "
            f"{rows}; "
            + (
                "do not truncate prompts with pictures"
                if given.truncation is not None
                else "leave such tokens out of the messages"
            ),
            param=given.prompt_param,
            code="unsupported_combination" if given.truncation is not None else "invalid_picture",
        )
    if model.pictures_see_ahead and ids[-1] == model.picture_token:
        raise RequestError(
            "the prompt ends with a picture, which this model reads only with text behind it; let "
            "the template begin the answer",
            param=given.prompt_param,
            code="invalid_picture",
        )
