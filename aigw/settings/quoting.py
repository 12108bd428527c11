"""What a message may quote of a configuration: no text that may be a key, because a key may be in any place."""

from __future__ import annotations

import re
from collections.abc import Collection

HIDDEN = "***"
SHORT = 12  # characters; a key that is shorter can be guessed anyway
LONG = 80
LONG_VALUE = 60
MOST_DIGITS = 4
LONGEST_WORD = 16
MANY = 200  # names; with more of them the search for a similar one would take seconds
LISTED = 20
MOST_BITS = 10_000  # of a number; Python refuses to print longer ones

_PARTS = re.compile(r"[^\W_]+")
_WORD = re.compile(r"(?:[^\W\d_A-Z]+|[A-Z]+|[A-Z]?[^\W\d_A-Z]{2,}(?:[A-Z][^\W\d_A-Z]{2,}){0,2}[A-Z]{0,2})?\d*")
_KEY_PREFIX = re.compile(
    r"(?<![^\W_])(?:[a-z]{0,3}(?:sk|pk|rk)|xai|hf|ghp|pat|pplx|nvapi|key|token|bearer|basic)[-_ ]|AIza|AKIA",
    re.IGNORECASE,
)


class Expanded(str):
    """A string in which variables were replaced; ``written`` is the text of the file."""

    __slots__ = ("written",)
    written: str

    @classmethod
    def of(cls, text: str, written: str) -> Expanded:
        """``text``, which was made from ``written``."""
        made = cls(text)
        made.written = written
        return made


def variables_in(value: object) -> list[str]:
    """The names of the variables that a value was made from."""
    return re.findall(r"\$\{([^}]*)\}", value.written) if isinstance(value, Expanded) else []


def quoted(text: str) -> str:
    """``text`` if it is short or made of words and a few digits, as names are; else HIDDEN.

    A character that is invisible or controls a terminal is shown as its escape.
    """
    if _may_be_a_key(text):
        return HIDDEN
    if text.isprintable():
        return text
    return "".join([each if each.isprintable() else each.encode("unicode_escape").decode() for each in text])


def quoted_file(path: str) -> str:
    """``path`` if its parts look like names; else HIDDEN, because it may be a key in the wrong place."""
    good = path.isprintable() and not any(map(_may_be_a_key, path.split("/")))
    return path if good else HIDDEN


def subject(value: object) -> str:
    """A value as the subject of a message; a value that may be a key is not shown.

    A value from the environment is shown as it is written in the file.
    """
    if value is None:
        return "an empty value"
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "a mapping"
    if isinstance(value, Expanded):
        return f"the value of {value.written!r}" if _may_be_shown(value.written) else "the value"
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        return "the number"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if isinstance(value, bytes | set) or not _may_be_shown(text):
        return "the value"
    return repr(str(value)) if isinstance(value, str) else text


def listed(names: Collection[str]) -> str:
    """The first of ``names``, sorted."""
    shown = ", ".join(map(quoted, sorted(names)[:LISTED]))
    return shown + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


def did_you_mean(written: object, known: Collection[str]) -> str:
    """``; did you mean NAME?`` for the name in ``known`` that is most similar to ``written``, or nothing."""
    found = similar(str(written), known)
    return f"; did you mean {quoted(found)}?" if found and quoted(found) != HIDDEN else ""


def similar(written: str, known: Collection[str]) -> str | None:
    """The name in ``known`` that is most similar to ``written``; None if none is similar."""
    plain = _plain(written)
    if not 1 < len(plain) <= LONG or len(known) > MANY:
        return None
    import difflib  # here, because only mistakes need it, and the start is faster without it

    by_plain = {_plain(each): each for each in reversed(list(known))}
    if plain in by_plain:
        return by_plain[plain]
    close = difflib.get_close_matches(plain, by_plain, 1, 0.65)
    holds = [each for each in by_plain.values() if written.lower() in each.lower().split("_")] if not close else []
    return by_plain[close[0]] if close else holds[0] if len(holds) == 1 else None


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


def _may_be_shown(text: str) -> bool:
    return (
        0 < len(text) <= LONG_VALUE
        and text.isprintable()
        and not _may_be_a_key(text)
        and not _KEY_PREFIX.search(text)
        and not re.search(r"//[^/]*@|[?#]", text)
    )


def _may_be_a_key(text: str) -> bool:
    if len(text) <= SHORT:
        return False
    parts = _PARTS.findall(text)
    return (
        len(text) > LONG
        or sum(map(str.isdigit, text)) > MOST_DIGITS
        or not all(len(part) <= 4 or (len(part) <= LONGEST_WORD and _WORD.fullmatch(part)) for part in parts)
    )
