"""How much structure a body's JSON has, before anything is built from it.

The parser holds the interpreter's lock from its first byte to its last. What that takes depends on
the values that it builds rather than on bytes: four megabytes are 4 ms as one text and a second as
keys. The limits keep it near 20 ms, so that streams and probes go on meanwhile.
"""

from penstock.errors import RequestError

MAX_CONTAINERS = 2**15
MAX_KEYS = 2**15
MAX_VALUES = 2**18


def check_structure(raw: bytes) -> None:
    """Raise RequestError where JSON holds too many lists and objects, keys, or values.

    Signs in texts do not count: prompts about JSON are full of them.
    """
    if not _excess(raw):
        return
    excess = _excess(_without_texts(raw))
    if excess:
        count, kind, limit = excess
        raise RequestError(
            f"the body has {count} {kind}; the limit is {limit}; send less", code="invalid_json"
        )


def _excess(raw: bytes) -> tuple[int, str, int] | None:
    """What there is too much of, if everything outside of texts is in `raw`."""
    for count, kind, limit in (
        (raw.count(b"[") + raw.count(b"{"), "lists and objects", MAX_CONTAINERS),
        (raw.count(b":"), "keys", MAX_KEYS),
        (raw.count(b",") + 1, "values", MAX_VALUES),
    ):
        if count > limit:
            return count, kind, limit
    return None


def _without_texts(raw: bytes) -> bytes:
    """What stands outside of texts: exact as far as the JSON is valid, which is what is parsed."""
    if b"\\" in raw:
        raw = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    if raw.count(b'"') > 2 * (MAX_KEYS + MAX_VALUES):
        return raw  # so many texts are too many values or keys in any case
    return b"".join(raw.split(b'"')[::2])
