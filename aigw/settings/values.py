"""How plain values are written in the configuration file: durations, sizes, counts, names, refusals, files."""

from __future__ import annotations

import re
from typing import Annotated

from aigw.settings.schema import Written

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_CODE = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_SIZE = re.compile(r"(\d+)\s*(B|KiB|MiB|GiB)?")
_SESSION_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SHARE = re.compile(r"(\d{1,3}(?:\.\d{1,6})?)\s*%")
LONG_TIMEOUT = 3600
MOST_OF_A_NAME = 256  # characters


def _duration(value: object) -> float:
    wrong = ValueError(
        "is not a duration; write 300s, 1m30s, 500ms or a number of seconds, more than 0 and at most 24h"
    )
    if isinstance(value, bool):
        raise wrong
    if isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())) and value.strip():
        hours, minutes, seconds, millis = (float(part or 0) for part in match.groups())
        value = hours * 3600 + minutes * 60 + seconds + millis / 1000
    elif isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise wrong from None
    if not isinstance(value, int | float) or not 0 < value <= 86400:
        raise wrong
    return float(value)


def _or_zero(value: object, meaning: str) -> float:
    if value in (0, "0", "0s") and not isinstance(value, bool):
        return 0.0
    try:
        return _duration(value)
    except ValueError as error:
        raise ValueError(f"{error}, or 0 for {meaning}") from None


def _long(value: object) -> str | None:
    seconds = _duration(value)
    if seconds <= LONG_TIMEOUT:
        return None
    return f"is {seconds:g} seconds, more than an hour; a number without a unit counts seconds; write 30s or 30000ms"


def _retries(value: object) -> int:
    if isinstance(value, bool) or not _is_number(value) or not 0 <= int(str(value)) <= 10:
        raise ValueError("is not a number of retries; write 0 to 10")
    return int(str(value))


def _count(value: object, least: int, meaning: str = "") -> int:
    written = str(value)
    if isinstance(value, bool) or not re.fullmatch("[0-9]{1,7}", written) or not least <= int(written) <= 1_000_000:
        raise ValueError(f"is not a number of connections; write 1 to 1000000{meaning}")
    return int(written)


def _refusal(value: object) -> str:
    if str(value) == "401":
        raise ValueError("means a wrong key of the gateway itself, so clients never get a provider's 401; remove it")
    if not isinstance(value, bool) and _is_number(value) and 400 <= int(str(value)) <= 599:
        return str(int(str(value)))
    if not isinstance(value, str) or not _CODE.fullmatch(value):
        raise ValueError("is not a refusal; write a status from 400 to 599, or an error's code such as content_filter")
    return str(value)


def _is_number(value: object) -> bool:
    """Whether it is a whole number of few digits, as a number or as a string."""
    return re.fullmatch("[0-9]{1,9}", str(value)) is not None


def _bytes(value: object, most: int, written: str) -> int:
    match = _SIZE.fullmatch(str(value).strip())
    if isinstance(value, int | str) and match:
        number = int(match[1]) * {"KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}.get(match[2] or "B", 1)
        if 1024 <= number <= most:
            return number
    raise ValueError(f"is not a size; write 32MiB, 512KiB or a number of bytes, from 1KiB to {written}")


def _weight(value: object) -> float:
    written = str(value)
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,4}(\.\d{1,6})?", written) or not 0 < float(written) <= 1000:
        raise ValueError("is not a weight; write a number more than 0 and at most 1000, such as 1, 3 or 0.5")
    return float(written)


def _session_name(value: object) -> str:
    if not isinstance(value, str) or not _SESSION_NAME.fullmatch(value):
        raise ValueError("is neither a header nor a member of a body; write letters, digits, hyphens and underscores")
    return str(value)


def _share(value: object) -> float:
    match = _SHARE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or not 0 < float(match[1]) <= 100:
        raise ValueError("is not a share; write 5%, more than 0% and at most 100%")
    return float(match[1]) / 100


def _flag(value: object) -> bool:
    word = str(value).lower() if isinstance(value, bool | str) else ""
    if word not in ("true", "false"):
        raise ValueError("is not true or false; write one of the two")
    return word == "true"


def _name(value: object) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > MOST_OF_A_NAME:
        right = f"write a string of 1 to {MOST_OF_A_NAME} printable characters"
        raise ValueError(f"is not a name; {right}, in quotes if YAML would read a number")
    return str(value)


def _port(value: object) -> int:
    if isinstance(value, bool) or not _is_number(value) or not 0 < int(str(value)) < 65536:
        raise ValueError("is not a port; write a number from 1 to 65535")
    return int(str(value))


def _file_name(value: object) -> str:
    if (
        not isinstance(value, str)
        or not value.strip()
        or "\0" in value
        or value != value.encode(errors="replace").decode()
    ):
        raise ValueError("is not a file name; write a path, absolute or relative to this file")
    return str(value)


NAME = Written(_name)

Duration = Annotated[float, Written(_duration)]
"""Seconds, written ``300s``, ``1m30s``, ``500ms`` or as a number of seconds; more than 0 and at most a day."""
Timeout = Annotated[float, Written(_duration, advice=_long)]
"""A Duration; one of more than an hour is most likely meant in milliseconds."""
Cooldown = Annotated[float, Written(lambda value: _or_zero(value, "never"))]
"""Seconds, written as a Duration is, or 0 for never."""
Drain = Annotated[float, Written(lambda value: _or_zero(value, "not at all"))]
"""Seconds, written as a Duration is, or 0 for not at all."""
Share = Annotated[float, Written(_share)]
"""A share, written ``5%``; more than 0 and at most 1."""
Weight = Annotated[float, Written(_weight)]
"""How many sessions or requests a target gets, compared with the others of its step; more than 0, at most 1000."""
SessionName = Annotated[str, Written(_session_name)]
"""A header, or a member at the top of a request's body, whose value names the session."""
Size = Annotated[int, Written(lambda value: _bytes(value, 1024**3, "1024MiB"))]
"""Bytes, written ``32MiB``, ``512KiB`` or as a number of bytes; at least 1 KiB and at most 1 GiB."""
TotalSize = Annotated[int, Written(lambda value: _bytes(value, 1024**4, "1024GiB"))]
"""Bytes, written as a Size is; at least 1 KiB and at most 1 TiB."""
Connections = Annotated[int, Written(lambda value: _count(value, 1))]
"""How many connections there may be, 1 to 1,000,000."""
PerAddress = Annotated[int | None, Written(lambda value: _count(value, 0, ", or 0 for no limit") or None)]
"""How many connections one address may have, 1 to 1,000,000, or 0 for any number, which is None."""
Retries = Annotated[int, Written(_retries)]
"""How often a step is repeated in one request, 0 to 10."""
Refusal = Annotated[str, Written(_refusal)]
"""A provider's refusal, by its status (400 to 599) or by the ``code`` or ``type`` of its error."""
Flag = Annotated[bool, Written(_flag)]
"""``true`` or ``false``."""
Name = Annotated[str, NAME]
"""What providers, routes and models are called: not empty, no control characters, at most 256 characters."""
Port = Annotated[int, Written(_port)]
"""A TCP port, 1 to 65535."""
FileName = Annotated[str, Written(_file_name, is_file=True)]
"""A path, absolute or relative to the folder of the configuration file; not empty."""
