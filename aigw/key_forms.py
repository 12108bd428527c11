"""The forms in which a provider may repeat a key: in JSON's or URL's escapes, in hexadecimal, in base64.

A text is read once, whatever the number of keys; each key is then looked for as plain strings. So a hostile text costs
no more than a friendly one of its size.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Iterator

SHORTEST = 8  # what encodes a shorter key may stand anywhere by chance

# A run of backslashes, however JSON writes them, with what it escapes; or a percent sign, however often it is escaped.
_ESCAPE = re.compile(r"\\(?:\\|(?<=\\)u(?i:005c))*(?:(?:u00|x)([2-7][0-9a-fA-F])|[nrt])?|%(?:25)*([2-7][0-9a-fA-F])")
_TOKEN = re.compile(rf"{_ESCAPE.pattern}|(.)", re.DOTALL)
_CASES = ("02x", "02X")
_MEANT = {f"{code:{form}}": chr(code).replace("\\", "") for code in range(0x20, 0x80) for form in _CASES}
_SPACES = dict.fromkeys(map(ord, " \t\r\n"))
_STANDARD = str.maketrans("-_", "+/")  # base64's two alphabets
_LOWER = str.maketrans("ABCDEF", "abcdef")  # str.lower may make two characters of one
_BESIDE = re.compile(r"[A-Za-z0-9+/_-]")
_BEHIND = re.compile(rf"{_BESIDE.pattern}?={{0,2}}")


class Text:
    """A text without its escapes and white space (base64 and hexadecimal may be wrapped), in each of three forms."""

    def __init__(self, text: str) -> None:
        """Takes a time that grows with the text's size, and no faster."""
        plain = _ESCAPE.sub(_unescaped, text) if "\\" in text or "%" in text else text
        self.plain = plain.translate(_SPACES)
        self.base64 = self.plain.translate(_STANDARD)
        self.hex = self.plain.translate(_LOWER)


class KeyForms:
    """One key as strings that a Text is searched for; of a key that is too short there are none.

    A key with percent signs or backslashes, which look like escapes, is not always found among those of a URL.
    """

    __slots__ = ("base64", "hex", "plain")

    def __init__(self, key: str) -> None:
        data = key.encode()
        long = len(data) >= SHORTEST
        as_it_is = key.translate(_SPACES).replace("\\", "")  # what looks like an escape may be part of the key
        self.plain = [plain for plain in {as_it_is, Text(key).plain} if len(plain) >= SHORTEST]
        self.hex = [data.hex()] if long else []
        self.base64 = [_core(data, offset) for offset in range(3)] if long else []

    def spans(self, text: Text) -> Iterator[tuple[int, int]]:
        """Where in ``text.plain`` they stand. A character beside base64 holds some bits of the key: it is of it."""
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
    """``text`` with ``***`` wherever a key stands in one of its forms; the very same object where there is none."""
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
    """The character that is meant. A backslash escapes, or a key has it and is looked for without it."""
    return _MEANT[escape[escape.lastindex]] if escape.lastindex else ""


def _offsets(text: str) -> tuple[list[int], list[int]]:
    """Where in ``text`` each character of ``Text(text).plain`` begins and ends."""
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
    """``data`` in base64 behind ``offset`` other bytes, less the characters that depend on its neighbours."""
    encoded = b64encode(bytes(offset) + data).decode().rstrip("=")
    whole = (offset + len(data)) * 8 // 6
    return encoded[-(-offset * 8 // 6) : whole]
