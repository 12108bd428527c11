"""A key that cannot be shown by accident."""

from __future__ import annotations

import hmac
import re
from typing import NoReturn

_SIGNING = b"aigw cookie signing key 2"
_BACKSLASHES = r"\\(?:\\|(?<=\\)u(?i:005c))*"  # a run of them, each in any form
_FIRST = r"(?<!\\)(?<!\\u(?i:005c))"  # of such a run


def _forms(value: str) -> re.Pattern[str]:
    """``value`` however a JSON encoder escapes it, however often it is quoted.

    Only the first of a run of backslashes begins a match: from each of them it would take seconds for 30,000.
    """
    parts: list[str] = []
    before = ""
    for part in re.findall(r"\\+|[^\\]", value):
        if part[0] == "\\":
            parts.append(_BACKSLASHES if parts else _FIRST + _BACKSLASHES)
        else:
            escapes = "" if before == "\\" else r"\\*" if parts else r"(?:(?<!\\)\\+)?"
            parts.append(rf"{escapes}(?:{re.escape(part)}|(?<=\\)u(?i:{ord(part):04x}))")
        before = part[0]
    return re.compile("".join(parts))


class Secret:
    """A key. It shows as ``***`` wherever it is printed, formatted or logged, and cannot be pickled or JSON-encoded."""

    __slots__ = ("_bytes", "_forms", "_value")

    def __init__(self, value: str) -> None:
        self._value = value
        self._bytes = value.encode()
        self._forms = _forms(value)

    def reveal(self) -> str:
        """The key itself; called only where the headers for a provider are made."""
        return self._value

    def matches(self, candidate: bytes) -> bool:
        """Whether ``candidate`` is this key, in a time that does not depend on where they differ."""
        return hmac.compare_digest(self._bytes, candidate)

    def signature(self, data: bytes) -> str:
        """What only who knows the key can say about ``data``: HMAC-SHA256, in hexadecimal, with a key made of this one.

        Made for signatures alone, so that they are none of anything else's.
        """
        return hmac.digest(hmac.digest(self._bytes, _SIGNING, "sha256"), data, "sha256").hex()

    def signs(self, data: bytes, signature: str) -> bool:
        """Whether ``signature`` is that, in a time that does not depend on where they differ."""
        return hmac.compare_digest(self.signature(data).encode(), signature.encode())

    def hide_in(self, text: str) -> str:
        """``text`` with every occurrence of the key, plain or as JSON may write it, replaced by ``***``.

        Where there is none it is the very same object.
        """
        if "\\" in text and self._forms.search(text):
            text = self._forms.sub("***", text)
        return text.replace(self._value, "***") if self._value in text else text

    def is_in(self, data: bytes) -> bool:
        """Whether ``data`` holds the key, plain or as JSON may write it."""
        if b"\\" in data and self._forms.search(data.decode(errors="replace")):
            return True
        return self._bytes in data

    def __len__(self) -> int:
        return len(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self.matches(other._bytes)

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return "***"

    def __format__(self, spec: str) -> str:
        return format("***", spec)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not to be copied out of the process")
