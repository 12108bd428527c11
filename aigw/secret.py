"""A key that cannot be shown by accident."""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable
from typing import NoReturn

from aigw.key_forms import SHORTEST, KeyForms, Text, without

_SCHEME = re.compile(r"(?:bearer|basic|token|key|api-?key) +(\S{8,})", re.IGNORECASE)
# None of these stands in an answer by chance, as a number or as a member's name.
_UNMISTAKABLE = re.compile(r"(?=.*[0-9])(?=.*[A-Za-z])[A-Za-z0-9._~+/=:-]{20,}")
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

    __slots__ = ("_bytes", "_encoded", "_forms", "_value")

    def __init__(self, value: str) -> None:
        self._value = value
        self._bytes = value.encode()
        self._forms = _forms(value)
        self._encoded = KeyForms(value)

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
        """Whether ``data`` holds the key just as it is."""
        return self._bytes in data

    def is_in_any_form(self, text: str, read: Text) -> bool:
        """Whether ``text``, and what was ``read`` in it, holds the key, plain or in one of its forms."""
        if self._value in text or self._encoded.are_in(read):
            return True
        return (len(self._value) < SHORTEST or "\\" in self._value) and self.hide_in(text) is not text

    def out_of(self, data: bytes) -> bytes:
        """The content of an answer with ``***`` where the key stands just as it is, if nothing else can be meant."""
        if self._bytes in data and _UNMISTAKABLE.fullmatch(self._value):
            return data.replace(self._bytes, b"***")
        return data

    def token(self) -> Secret | None:
        """Of a header's value, ``Bearer KEY``, what stands behind the scheme; None where there is no scheme."""
        written = _SCHEME.fullmatch(self._value)
        return Secret(written[1]) if written else None

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


def may_hold_a_key(secrets: Iterable[Secret], data: bytes) -> bool:
    """Whether ``data`` is worth a closer look: one of the keys stands in it just as it is, or something is escaped."""
    return b"\\" in data or any([secret.is_in(data) for secret in secrets])


def holds_a_key(secrets: Iterable[Secret], data: bytes) -> bool:
    """Whether one of the keys stands in ``data``, plain or in one of its forms."""
    text = data.decode(errors="replace")
    read = Text(text)
    return any([secret.is_in_any_form(text, read) for secret in secrets])


def without_keys(secrets: Iterable[Secret], text: str) -> str:
    """``text`` with ``***`` for each key, plain or in one of its forms; the very same object where there is none."""
    read = Text(text)
    found = [secret for secret in secrets if secret.is_in_any_form(text, read)]
    for secret in sorted(found, key=len, reverse=True):  # one may begin with another
        text = secret.hide_in(text)
    return without([secret._encoded for secret in found], text) if found else text
