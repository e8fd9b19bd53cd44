"""How a model writes its thoughts: what a thinking convention is."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..parts import Thought
from ..reader import Edge, Reader


@dataclass(frozen=True, slots=True, kw_only=True)
class ThoughtFormat:
    """Thoughts stand before the answer, between `begin` and `end`.

    `name`: for `--reasoning-parser`. `signs`: texts of which a chat template has one where the
    model thinks like this. `answer`: markup between the end of a thought and an answer that is no
    call. `always`: the model thinks first, whatever the prompt says. `never`: control tokens that
    no thought has.
    """

    name: str
    begin: str
    end: str
    signs: Sequence[str]
    answer: str = ""
    always: bool = False
    never: Sequence[str] = ()

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that the reader has to see, even where they are special tokens."""
        return (self.begin, self.end)

    def recognises(self, template: str) -> bool:
        """Whether a model with this chat template thinks like this."""
        return any(sign in template for sign in self.signs)

    def opened(self, prompt: str) -> bool | None:
        """Whether the answer begins inside a thought; None: the prompt has closed it."""
        end = prompt.rstrip()
        if self.always or end.endswith(self.begin):
            return True
        return None if end.endswith(self.end) else False

    def reader(self, *, opened: bool) -> Reader:
        """A reader of one choice, whose prompt has opened a thought or not."""
        return ThoughtReader(self, opened=opened)


class ThoughtReader(Reader):
    """Reads one thought at the beginning; the white space around it is markup."""

    def __init__(self, form: ThoughtFormat, *, opened: bool) -> None:
        super().__init__()
        self._form = form
        self._opened = opened
        self._step = self._beginning
        self._before: list[str] = []
        self._edge = Edge()
        self._shown = False

    def step(self) -> bool:
        """See `Reader`."""
        return self._step()

    def _beginning(self) -> bool:
        """Find out whether there is a thought; models may open again what the prompt has opened."""
        text, begin = self.left.lstrip(), self._form.begin
        self._before.append(self.left[: len(self.left) - len(text)])
        self.left = text
        if text.startswith(begin):
            self.left = text[len(begin) :]
        elif begin.startswith(text) and not self.ended:
            return False
        elif not self._opened:
            self.left = "".join(self._before) + text
            self._step = self.say_rest
            return True
        self._step = self._inside
        return True

    def _inside(self) -> bool:
        text, closed = self.before(self._form.end)
        shown = self._edge.add(text)
        if self.ended and not closed:
            shown += self._edge.take()
        if not self._shown:
            shown = shown.lstrip()
        self._shown = self._shown or bool(shown)
        self.found.append(Thought(shown))
        if closed:
            self._step = self._behind
        return closed

    def _behind(self) -> bool:
        self.left = self.left.lstrip()
        if not self.left:
            return False
        self._step = self.say_rest
        return True
