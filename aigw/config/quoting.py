"""What a message may quote of a configuration: nothing that looks like a key, for a key may stand in any place."""

from __future__ import annotations

import re

HIDDEN = "***"
SHORT = 12  # characters; a key that is shorter can be guessed anyway
LONG = 80
MOST_DIGITS = 4
LONGEST_WORD = 16

_PARTS = re.compile(r"[^\W_]+")
_WORD = re.compile(r"(?:[^\W\d_A-Z]+|[A-Z]+|[A-Z]?[^\W\d_A-Z]{2,}(?:[A-Z][^\W\d_A-Z]{2,}){0,2}[A-Z]{0,2})?\d*")


def quoted(text: str) -> str:
    """``text`` if it is short or made of words and a few digits, as names are; else HIDDEN."""
    return HIDDEN if _may_be_a_key(text) else text


def quoted_file(path: str) -> str:
    """``path`` if all of its folders and files have names; else HIDDEN: somebody may have put a key in its place."""
    good = path.isprintable() and not any(map(_may_be_a_key, path.split("/")))
    return path if good else HIDDEN


def _may_be_a_key(text: str) -> bool:
    if len(text) <= SHORT:
        return False
    parts = _PARTS.findall(text)
    return (
        len(text) > LONG
        or sum(map(str.isdigit, text)) > MOST_DIGITS
        or not all(len(part) <= 4 or (len(part) <= LONGEST_WORD and _WORD.fullmatch(part)) for part in parts)
    )
