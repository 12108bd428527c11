"""The head of an answer that was parsed, by which the next one like it is read with one match of a pattern.

A provider repeats its heads but for some values: the date, ids, counts, the length. Only a whole answer is read so: a
200 with a Content-Length, all of it in one network read. What frames an answer is in the pattern as it was.
"""

from __future__ import annotations

import re
from functools import lru_cache

Headers = dict[bytes, list[bytes]]  # values by lower-case name

MOST = 8 * 1024  # bytes of a head
_VARYING = frozenset([b"date", b"content-length"])  # in all answers
_FIXED = frozenset(b"connection proxy-connection keep-alive transfer-encoding content-encoding upgrade".split())
_ANY = rb"([!-~][ -~]*)(?<! )"  # a value that the parser takes as it is: no white space at its ends
_DIGITS = rb"([0-9]{1,9})"

_Line = tuple[bytes, bytes, bytes]  # of a header: its lower-case name, the line up to its value, and the value


class KnownHead:
    """A head but for the values that vary, ``varying`` by name. ``shape`` is all the rest of it.

    A connection whose answer has it may be idle for ``idle_seconds``.
    """

    def __init__(self, first: bytes, lines: list[_Line], varying: frozenset[bytes], idle_seconds: float) -> None:
        self._lines = lines
        self.varying = varying
        self.idle_seconds = idle_seconds
        names = [name for name, _, _ in lines if name in varying]
        self._length_at = names.index(b"content-length") + 1
        pattern = [re.escape(first)]
        for name, begin, value in lines:
            shown = re.escape(value) if name not in varying else _DIGITS if name == b"content-length" else _ANY
            pattern.append(re.escape(begin) + shown)
        self.shape = rb"\r\n".join([*pattern, rb"\r\n"])
        self._match = _compiled(self.shape).match

    def read(self, data: bytes) -> re.Match[bytes] | None:
        """Where in ``data`` the head is, if that is a whole answer with it; the rest is the body. Else None."""
        found = self._match(data, 0, MOST)
        return found if found is not None and int(found[self._length_at]) == len(data) - found.end() else None

    def headers(self, found: re.Match[bytes]) -> Headers:
        """The headers of an answer that was read."""
        values = iter(found.groups())
        headers: Headers = {}
        for name, _, value in self._lines:
            headers.setdefault(name, []).append(next(values) if name in self.varying else value)
        return headers

    def varying_with(self, lines: list[_Line]) -> frozenset[bytes]:
        """The names of the headers whose values differ here or from those in ``lines``."""
        if [each[:2] for each in lines] != [each[:2] for each in self._lines]:
            return _VARYING
        return self.varying.union([a[0] for a, b in zip(self._lines, lines, strict=True) if a != b])


_compiled = lru_cache(maxsize=256)(re.compile)  # the connections to one provider have the same heads


def known_head(data: bytes, headers: Headers, idle_seconds: float, before: KnownHead | None) -> KnownHead | None:
    """What is known from the whole answer ``data``, a 200 that the parser has read so; None if it cannot come again.

    ``before`` is what was known before it.
    """
    size = data.find(b"\r\n\r\n", 0, MOST) + 4
    if size < 4:
        return None
    first, *rest = data[:size].split(b"\r\n")
    lines: list[_Line] = []
    for line in rest[:-2]:
        name, _, value = line.partition(b":")
        value = value.strip(b" \t")
        lines.append((name.lower(), line[: len(line) - len(value)], value))
    if all(name != b"content-length" for name, _, _ in lines):  # or the first head is that of a 100
        return None
    varying = _VARYING if before is None else before.varying_with(lines) - _FIXED
    known = KnownHead(first, lines, varying, idle_seconds)
    found = known.read(data)
    return known if found is not None and known.headers(found) == headers else None
