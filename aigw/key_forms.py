"""The forms in which a provider may repeat a key: with escapes of JSON or URLs, in hexadecimal, in base64.

A text is decoded once, whatever the number of keys. Each key is then searched for as plain strings. So a hostile text
takes no more time than any other text of its size.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Iterator

SHORTEST = 8  # characters; the encoded form of a shorter key may appear by chance

# A run of backslashes, plain or escaped, with the character that it escapes; or a percent sign, escaped any number
# of times, with its two digits.
_ESCAPE = re.compile(r"\\(?:\\|(?<=\\)u(?i:005c))*(?:(?:u00|x)([2-7][0-9a-fA-F])|[nrt])?|%(?:25)*([2-7][0-9a-fA-F])")
_TOKEN = re.compile(rf"{_ESCAPE.pattern}|(.)", re.DOTALL)
_CASES = ("02x", "02X")
_MEANT = {f"{code:{form}}": chr(code).replace("\\", "") for code in range(0x20, 0x80) for form in _CASES}
_SPACES = dict.fromkeys(map(ord, " \t\r\n"))
_STANDARD = str.maketrans("-_", "+/")  # from base64's URL-safe alphabet to its standard one
_LOWER = str.maketrans("ABCDEF", "abcdef")  # not str.lower, which turns some characters into two
_BESIDE = re.compile(r"[A-Za-z0-9+/_-]")
_RUN = re.compile(r"\S{0,1000}")
_BASE64 = [re.compile(kind) for kind in ("[a-z]", "[A-Z]", "[0-9]")]
_FEW = 5  # different characters; a text of fewer is no key
_BEHIND = re.compile(rf"{_BESIDE.pattern}?={{0,2}}")


class Text:
    """A text without escapes and white space (base64 and hexadecimal may be wrapped), prepared for three searches."""

    def __init__(self, text: str) -> None:
        """Decode ``text`` in a time that is proportional to its size."""
        plain = _ESCAPE.sub(_unescaped, text) if "\\" in text or "%" in text else text
        self.plain = plain.translate(_SPACES)
        self.base64 = self.plain.translate(_STANDARD)
        self.hex = self.plain.translate(_LOWER)


class KeyForms:
    """The strings by which one key is found in a Text. A key shorter than SHORTEST has none.

    A key with percent signs or backslashes is not always found in a URL, because these characters are read as escapes.
    """

    __slots__ = ("base64", "hex", "plain")

    def __init__(self, key: str) -> None:
        data = key.encode()
        long = len(data) >= SHORTEST
        as_it_is = key.translate(_SPACES).replace("\\", "")  # an apparent escape may be part of the key
        self.plain = [plain for plain in {as_it_is, Text(key).plain} if len(plain) >= SHORTEST]
        self.hex = [data.hex()] if long else []
        self.base64 = [_core(data, offset) for offset in range(3)] if long else []

    def spans(self, text: Text) -> Iterator[tuple[int, int]]:
        """The start and end of each form in ``text.plain``.

        A base64 span includes the neighbouring characters, because these hold some bits of the key.
        """
        for form in self.plain:
            yield from _found(form, text.plain)
        for form in self.hex:
            yield from _found(form, text.hex)
        for form in self.base64:
            for start, end in _found(form, text.base64):
                before = _BESIDE.match(text.plain, max(0, start - 1), start)
                behind = _BEHIND.match(text.plain, end)
                yield start - (before is not None), behind.end() if behind else end


def without(forms: Iterable[KeyForms], text: str) -> str:
    """``text`` with ``***`` for each form of a key. A text without keys is returned as the same object."""
    read = Text(text)
    spans = sorted(span for each in forms for span in each.spans(read))
    if not spans:
        return text
    starts, ends = _offsets(text)
    pieces, done = [], 0
    for start, end in spans:
        if ends[end - 1] > done:
            pieces += [text[done : starts[start]], "***"] if starts[start] >= done else []
            done = ends[end - 1]
    return "".join([*pieces, text[done:]])


def _unescaped(escape: re.Match[str]) -> str:
    """The character that an escape stands for; a lone backslash is removed, as it is from the keys."""
    return _MEANT[escape[escape.lastindex]] if escape.lastindex else ""


def _offsets(text: str) -> tuple[list[int], list[int]]:
    """The start and end in ``text`` of each character of ``Text(text).plain``."""
    starts, ends = [], []
    for token in _TOKEN.finditer(text):
        if (token[3] or _unescaped(token)).translate(_SPACES):
            starts.append(token.start())
            ends.append(token.end())
    return starts, ends


def _found(form: str, text: str) -> Iterator[tuple[int, int]]:
    start = text.find(form)
    while start >= 0:
        yield start, start + len(form)
        start = text.find(form, start + len(form))


def _core(data: bytes, offset: int) -> str:
    """``data`` in base64 after ``offset`` other bytes, without the characters that depend on neighbouring bytes."""
    encoded = b64encode(bytes(offset) + data).decode().rstrip("=")
    whole = (offset + len(data)) * 8 // 6
    return encoded[-(-offset * 8 // 6) : whole]


def shortened(text: str, most: int) -> str:
    """The first ``most`` characters, without a part of what may be a key: a search for keys does not find it any more.

    What is between two spaces, long and of many characters is shown whole, or as ``***``. A slash ends it too, unless
    it has small letters, capitals and digits: then it may be a key in base64, in which a slash is a digit.
    """
    head, rest = text[:most], _RUN.match(text, most)
    if len(text) <= most or not rest or not rest[0]:
        return head
    start = most
    while start and not head[start - 1].isspace():
        start -= 1
    run = head[start:] + rest[0]
    if not all([kind.search(run) for kind in _BASE64]):
        start = max(start, head.rfind("/") + 1)
        run = head[start:] + rest[0].partition("/")[0]
        if rest[0][0] == "/":
            return head
    return head if len(run) < SHORTEST or len(set(run)) < _FEW else f"{head[:start]}***"
