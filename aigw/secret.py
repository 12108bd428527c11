"""A key that cannot be shown by accident."""

from __future__ import annotations

import hmac
import json
from typing import NoReturn


class Secret:
    """A key. It shows as ``***`` wherever it is printed, formatted or logged, and cannot be pickled or JSON-encoded."""

    __slots__ = ("_bytes", "_escaped", "_value")

    def __init__(self, value: str) -> None:
        self._value = value
        self._bytes = value.encode()
        self._escaped = json.dumps(value)[1:-1]

    def reveal(self) -> str:
        """The key itself; called only where the headers for a provider are made."""
        return self._value

    def matches(self, candidate: bytes) -> bool:
        """Whether ``candidate`` is this key, in a time that does not depend on where they differ."""
        return hmac.compare_digest(self._bytes, candidate)

    def hide_in(self, text: str) -> str:
        """``text`` with every occurrence of the key, plain or as JSON writes it, replaced by ``***``."""
        if self._escaped in text or self._value in text:
            return text.replace(self._escaped, "***").replace(self._value, "***")
        return text

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
