"""What a step changes in the body of a request: which members, by their names, and their values, which become JSON."""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from aigw.settings.mistakes import Path, name_of, shown
from aigw.settings.quoting import Expanded
from aigw.settings.schema import Written

ConflictResolution = Literal["tools", "format"]

# Visible ASCII without quotes and backslashes, which the head of a part of a form would have to escape.
_NAME = re.compile(r"[!#-&(-\[\]-~]{1,64}")
_FIXED = ("model", "stream")
_SIGNS = re.compile(r"\W")  # some readers of a form read ``model[]`` as ``model``
_MAY_BE_A_BOUNDARY = re.compile(r"(?:\A|[\r\n])--")
_OPTIONS = "stream_options"
_STATE = ("previous_response_id", "conversation", "store", "background")


class BodyValue(NamedTuple):
    """A value as JSON, and as the text of a field of a form; None where a field cannot have it.

    ``shown`` is the same JSON for an operator, with ``${NAME}`` for what comes from a variable and may be a key.
    """

    json: bytes
    text: bytes | None
    shown: bytes


class BodyChanges(msgspec.Struct, frozen=True):
    """All that a step changes in the body of a request besides ``model``, prepared when the configuration is read.

    In this order: the members of ``remove`` are removed, those of ``rename`` get another name, those of ``default`` are
    added where they are absent, those of ``set`` are added or replaced. ``ask_usage``: a stream is asked for its usage.
    ``conflict_resolution`` comes last.
    """

    remove: tuple[str, ...] = ()
    rename: tuple[tuple[str, str], ...] = ()
    default: tuple[tuple[str, BodyValue], ...] = ()
    set: tuple[tuple[str, BodyValue], ...] = ()
    conflict_resolution: ConflictResolution | None = None
    ask_usage: bool = False

    @property
    def adds_state(self) -> bool:
        """Whether a request begins or continues what its provider keeps because of a value of the configuration."""
        return any(
            [name in _STATE and value.json not in (b"null", b"false") for name, value in self.default + self.set]
        )


def changes_of(
    remove: tuple[str, ...],
    rename: Mapping[str, str],
    default: Mapping[str, BodyValue],
    replaced: Mapping[str, BodyValue],
    conflict_resolution: ConflictResolution | None,
    ask_usage: bool,
) -> BodyChanges | None:
    """The changes of a step with these settings; None if there are none.

    A step that removes or renames ``stream_options`` is not asked for its usage, because that needs this member.
    """
    ask_usage = ask_usage and _OPTIONS not in remove and _OPTIONS not in rename
    pairs = tuple(rename.items()), tuple(default.items()), tuple(replaced.items())
    if not (remove or any(pairs) or conflict_resolution or ask_usage):
        return None
    return BodyChanges(remove, *pairs, conflict_resolution, ask_usage)


def _member_name(value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        right = "write 1 to 64 visible ASCII characters without quotes, such as max_tokens"
        raise ValueError(f"is not the name of a member of a request; {right}")
    if (plain := _SIGNS.sub("", value).casefold()) in _FIXED:
        why = "the step's own model is sent" if plain == "model" else "it decides the kind of answer for the client"
        raise ValueError(f"cannot be changed, because {why}; remove it")
    return str(value)


def _body_value(value: object) -> BodyValue:
    wrong = next(_not_json(value, ()), None)
    if wrong is not None:
        kind, path, right = wrong
        where = f"has {kind} at {shown(path)}" if path else f"is {kind}"
        raise ValueError(f"{where}, which JSON does not have; write {right}")
    try:
        encoded = _dumped(value, ascii_only=False).encode()
    except UnicodeEncodeError:  # a lone surrogate
        encoded = _dumped(value, ascii_only=True).encode()
    return BodyValue(encoded, _as_text(value, encoded), _dumped(_as_written(value), ascii_only=True).encode())


def _as_written(value: Any) -> Any:
    """The value with the text of the file for each text that was made from variables."""
    if isinstance(value, dict):
        return {_as_written(name): _as_written(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_as_written(each) for each in value]
    return value.written if isinstance(value, Expanded) else value


def _dumped(value: object, ascii_only: bool) -> str:
    return json.dumps(value, ensure_ascii=ascii_only, separators=(",", ":"), allow_nan=False)


def _as_text(value: object, encoded: bytes) -> bytes | None:
    """The value in a form: a text as it is, a number or a flag as in JSON.

    A list and a mapping have no form there that all servers read, and null has none at all. A text with a line that
    begins as a boundary could end the part.
    """
    if isinstance(value, str):
        is_plain = _MAY_BE_A_BOUNDARY.search(value) is None and value == value.encode(errors="replace").decode()
        return value.encode() if is_plain else None
    return encoded if isinstance(value, int | float) else None


def _not_json(value: object, path: Path) -> Iterator[tuple[str, Path, str]]:
    """What JSON does not have in a value: what it is, where it is, and what would be right."""
    if isinstance(value, dict):
        for name, member in value.items():
            if isinstance(name, str):
                yield from _not_json(member, (*path, name))
            else:
                yield "a name that is no string", (*path, name_of(name)), "the name in quotes"
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from _not_json(entry, (*path, index))
    elif isinstance(value, datetime.date):
        yield "a date", path, "it in quotes"
    elif isinstance(value, float) and not math.isfinite(value):
        yield "infinite or not a number", path, "a number"
    elif value is not None and not isinstance(value, str | int | float):
        yield "binary data or a set", path, "a string or a list"


MemberName = Annotated[str, Written(_member_name)]
"""The name of a member of a request's body, or of a field of a form; never ``model`` or ``stream``."""
Value = Annotated[BodyValue, Written(_body_value)]
"""Any value of YAML that JSON has as well."""
