"""What the bodies of the providers' answers show to ``--check-providers``."""

from __future__ import annotations

import msgspec


def models_in(data: bytes) -> frozenset[str] | None:
    """The ids in OpenAI's list; some providers write them as ``models/NAME``."""
    try:
        read = msgspec.json.decode(data)
        entries = read["data"] if isinstance(read, dict) else read
        ids = [entry["id"] for entry in entries]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    return frozenset(each.removeprefix("models/") for each in ids if isinstance(each, str))


def has_list(data: bytes, member: str) -> bool:
    """Whether the answer is an object whose ``member`` is a list that is not empty."""
    try:
        read = msgspec.json.decode(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(read, dict) and isinstance(read.get(member), list) and bool(read[member])
