"""Files and addresses that callers send as pictures: what is taken, and what is refused unread."""

import re
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from ipaddress import ip_address

import numpy as np
import pytest
from PIL import Image, ImageFile
from pydantic import ValidationError

from penstock.engine.pictures.decode import KINDS, check_kind, decode
from penstock.engine.pictures.fetch import Address, MediaFetcher, is_public
from penstock.engine.pictures.settings import PictureSettings
from penstock.engine.pictures.source import PictureFile, PictureSource, read_source
from penstock.errors import RequestError
from tests.tiny_pictures import data_uri, file_of, picture

PIXELS = 2**20
PARAM = "messages.0.content.0.image_url"
NOTHING = MediaFetcher(domains=(), timeout_s=1.0)


def read(url: str, *, max_bytes: int = 2**20, fetcher: MediaFetcher = NOTHING) -> PictureFile:
    return read_source(PictureSource(url=url, param=PARAM), max_bytes=max_bytes, fetcher=fetcher)


def opened(data: bytes, kind: str = "image/png") -> Image.Image:
    return decode(data, kind, max_pixels=PIXELS, param=PARAM)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG that says that it is so large, with `data` as what is compressed."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind: str) -> None:
    shown = picture(1)
    found = opened(file_of(shown, KINDS[kind]), kind)
    assert (found.mode, found.size) == ("RGB", shown.size)
    if kind == "image/png":
        assert found.tobytes() == shown.tobytes()


def test_as_transformers_loads_it() -> None:
    """Upright, without transparency, the first of several frames."""
    from transformers.image_utils import load_image

    shown = picture(1)
    turned = Image.Exif()
    turned[0x0112] = 6
    file = file_of(shown, "JPEG", exif=turned)
    assert opened(file, "image/jpeg").tobytes() == load_image(Image.open(BytesIO(file))).tobytes()
    assert opened(file, "image/jpeg").size == (56, 40)
    clear = shown.convert("RGBA")
    clear.putalpha(100)
    assert opened(file_of(clear)).tobytes() == load_image(clear).tobytes()
    frames = BytesIO()
    shown.save(frames, "GIF", save_all=True, append_images=[picture(2)])
    first = Image.open(BytesIO(frames.getvalue())).convert("RGB")
    assert opened(frames.getvalue(), "image/gif").tobytes() == first.tobytes()


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        pytest.param(png(2**15, 2**15), "image/png", "pixels, and this server", id="bomb"),
        pytest.param(
            png(2**31 - 1, 2**31 - 1), "image/png", "pixels", id="more-pixels-than-memory"
        ),
        pytest.param(png(10_000, 10_000), "image/png", "pixels", id="100-megapixels"),
        pytest.param(png(1025, 1024), "image/png", "1025 x 1024 pixels", id="one-column-more"),
        pytest.param(file_of(picture(1), "JPEG"), "image/png", "is image/jpeg", id="lying-type"),
        pytest.param(png(64, 64, b"\0" * 50), "image/png", "damaged", id="too-little-data"),
        pytest.param(file_of(picture(1))[:-300], "image/png", "damaged", id="ends-early"),
        pytest.param(file_of(picture(1), "JPEG")[:-300], "image/jpeg", "damaged", id="jpeg-ends"),
        pytest.param(file_of(picture(1), "BMP"), "image/png", "no picture of a kind", id="bmp"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/png", "kind", id="svg"),
        pytest.param(b"", "image/png", "no picture", id="empty"),
        pytest.param(b"GIF89a", "image/gif", "no picture", id="a-head-alone"),
    ],
)
def test_refused_before_it_is_decoded(
    data: bytes, kind: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "damaged" not in message:

        def load(shown: Image.Image) -> None:
            pytest.fail(f"{shown.size} was decoded")

        monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(RequestError, match=re.escape(message)) as refusal:
        opened(data, kind)
    assert refusal.value.param == PARAM
    assert refusal.value.code == "invalid_picture"


def test_a_frame_larger_than_its_picture() -> None:
    """A GIF of 8 x 8 whose first frame says that it is of 2,000 x 1,500."""
    data = bytearray(file_of(picture(1, 8, 8).convert("P"), "GIF"))
    at = data.index(b"\x2c")
    data[at + 5 : at + 9] = struct.pack("<HH", 2000, 1500)
    with pytest.raises(RequestError, match="2000 x 1500 pixels"):
        opened(bytes(data), "image/gif")


def test_a_jpeg_of_many_scans() -> None:
    whole = file_of(picture(1), "JPEG", progressive=True)
    assert opened(whole, "image/jpeg").size == picture(1).size
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    with pytest.raises(RequestError, match="scans, each over the whole picture"):
        opened(whole[:-2] + scan * 100 + whole[-2:], "image/jpeg")


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_pictures_or_refused(kind: str) -> None:
    """Nothing that Pillow's readers raise gets out."""
    whole = file_of(picture(1, 24, 24), KINDS[kind])
    chooser = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for place in chooser.integers(0, len(data), 4):
            data[place] = chooser.integers(0, 256)
        try:
            opened(bytes(data[: chooser.integers(1, len(data) + 1)]), kind)
        except RequestError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("data:image/png,abc", "not in base64"),
        ("data:image/png;base64", "not in base64"),
        ("data:image/png;base64,%%%%", "base64 is broken"),
        ("data:image/png;base64,abc", "base64 is broken"),
        ("data:image/svg+xml;base64,abcd", "of the type 'image/svg+xml'"),
        ("data:;base64,abcd", "of no type"),
        ("data:text/html;base64,abcd", "of the type 'text/html'"),
        ("file:///etc/passwd", "no data: URI"),
        ("ftp://example.com/a.png", "no data: URI"),
        ("/etc/passwd", "no data: URI"),
        ("", "no data: URI"),
        ("abcd", "no data: URI"),
        (data_uri(b"x" * 1025), "more than 1024 bytes"),
        (data_uri(b"x" * 10_000), "more than 1024 bytes"),
    ],
)
def test_urls_that_are_refused(url: str, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)) as refusal:
        read(url, max_bytes=1024)
    assert refusal.value.param == PARAM


def test_data_uris() -> None:
    assert read(data_uri(b"x" * 1024), max_bytes=1024).data == b"x" * 1024
    assert read("DATA:image/JPG;name=a;base64,eHg=") == PictureFile(
        data=b"xx", kind="image/jpeg", param=PARAM
    )
    assert check_kind(" IMAGE/PNG ", PARAM) == "image/png"


PRIVATE = [
    "127.0.0.1",
    "127.9.9.9",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "192.0.2.1",
    "240.0.0.1",
    "::",
    "::1",
    "fe80::1",
    "fc00::1",
    "ff02::1",
    "2001:db8::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a00:1",
    "2002:7f00:1::",
    "2002:a00:1::",
    "2001:0:7f00:1::",
    "64:ff9b:1::1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses(address: str) -> None:
    assert not is_public(ip_address(address))
    asked: list[str] = []

    def resolve(host: str, port: int) -> list[Address]:
        asked.append(f"{host}:{port}")
        return [ip_address("1.1.1.1"), ip_address(address)]

    fetcher = MediaFetcher(domains=["media.test"], timeout_s=1.0, resolve=resolve)
    with pytest.raises(RequestError, match="not public, and nothing was fetched"):
        read("http://media.test/a.png", fetcher=fetcher)
    assert asked == ["media.test:80"]


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1"])
def test_public_addresses(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a.png",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]/a.png",
        "http://2130706433/a.png",
        "http://media.test.evil.example/a.png",
        "http://evilmedia.test/a.png",
        "http://media.test@evil.example/a.png",
        "http://evil.example#media.test",
        "http://user:word@media.test/a.png",
        "http://media.test:8081/a.png",
        "https://media.test:80/a.png",
        "http://media.test:0x50/a.png",
        "http:///a.png",
        "http://media.test\\@evil.example/",
    ],
)
def test_addresses_that_are_not_resolved(url: str) -> None:
    def resolve(host: str, port: int) -> list[Address]:
        pytest.fail(f"{host} was asked for")

    for domains, message in (((), "remote|valid"), (("media.test",), "none of the|valid")):
        fetcher = MediaFetcher(domains=domains, timeout_s=1.0, resolve=resolve)
        with pytest.raises(RequestError, match=message) as refusal:
            read(url, fetcher=fetcher)
        if "valid" not in refusal.value.message:
            assert "--allow-media-domains" in refusal.value.message


class Media(BaseHTTPRequestHandler):
    """Serves a picture, and much else by path."""

    seen: list[tuple[str, str]] = []  # noqa: RUF012 - of one test at a time

    def do_GET(self) -> None:
        Media.seen.append((self.path, self.headers["Host"]))
        body = file_of(picture(1))
        kind, status = "image/png", 200
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/picture")
            self.end_headers()
            return
        if self.path == "/gone":
            status = 404
        elif self.path == "/page":
            kind = "text/html"
        elif self.path == "/long":
            body = b"x" * 5000
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()
        if self.path == "/slow":
            for byte in body[:20]:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.1)
            return
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        pass


@pytest.fixture
def media() -> Iterator[int]:
    """The port of a server on this machine."""
    Media.seen.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Media) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def here(port: int, timeout_s: float = 5.0) -> MediaFetcher:
    return MediaFetcher(
        domains=[f"media.test:{port}"],
        timeout_s=timeout_s,
        resolve=lambda host, port: [ip_address("127.0.0.1")],
        is_public=lambda address: True,
    )


def test_fetches_from_the_address_that_was_checked(media: int) -> None:
    found = read(f"http://media.test:{media}/picture?a=b", fetcher=here(media))
    assert opened(found.data, found.kind).tobytes() == picture(1).tobytes()
    assert Media.seen == [("/picture?a=b", f"media.test:{media}")]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("moved", "status 302; redirects are not followed"),
        ("gone", "status 404"),
        ("page", "of the type 'text/html'"),
        ("long", "more than 4096 bytes"),
        ("slow", "did not send the picture within 0.5 s"),
    ],
)
def test_what_is_not_fetched(path: str, message: str, media: int) -> None:
    fetcher = here(media, 0.5 if path == "slow" else 5.0)
    with pytest.raises(RequestError, match=re.escape(message)) as refusal:
        read(f"http://media.test:{media}/{path}", max_bytes=4096, fetcher=fetcher)
    assert refusal.value.param == PARAM
    assert [path for path, _ in Media.seen] == [f"/{path}"]


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(RequestError, match="did not send the picture"):
        read("http://media.test:1/a.png", fetcher=here(1))


@pytest.mark.parametrize(
    "wrong", ["", "http://a.example", "a.example/b", "*.a.example", ".a", "a:b"]
)
def test_domains(wrong: str) -> None:
    assert PictureSettings(allow_media_domains=["A.example", "b:8443"]).allow_media_domains == [
        "a.example",
        "b:8443",
    ]
    with pytest.raises(ValidationError, match="is no domain"):
        PictureSettings(allow_media_domains=[wrong])
