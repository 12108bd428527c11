"""How values are written in the configuration file: durations, sizes, URLs, names, keys."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from aigw.secret import Secret

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_OURS = frozenset(
    "host content-length content-type transfer-encoding connection accept accept-encoding cookie te trailer upgrade "
    "keep-alive expect proxy-authorization x-request-id traceparent".split()
)
_CODE = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_SIZE = re.compile(r"(\d+)\s*(B|KiB|MiB|GiB)?")


class Duration(float):
    """Seconds, written ``300s``, ``1m30s``, ``500ms`` or as a number of seconds; more than 0 and at most a day."""


class Cooldown(float):
    """Seconds, written as a Duration is, or 0 for never."""


class Size(int):
    """Bytes, written ``32MiB``, ``512KiB`` or as a number of bytes; at least 1 KiB and at most 1 GiB."""


class TotalSize(int):
    """Bytes, written as a Size is; at least 1 KiB and at most 1 TiB."""


class Url(str):
    """A provider's ``http(s)://host[:port][/path]``, without a slash at its end."""


class Name(str):
    """What providers, routes and models are called: not empty, no control characters, at most 256 characters."""


class Port(int):
    """A TCP port, 1 to 65535."""


class DrainSeconds(float):
    """Seconds, written as a Duration is, or 0 for not at all."""


class Connections(int):
    """How many connections there may be, 1 to 1,000,000."""


class PerAddress(int):
    """How many connections one address may have, 1 to 1,000,000, or 0 for any number."""


class Retries(int):
    """How often a step is repeated in one request, 0 to 10."""


class ListenAddress(str):
    """A Twisted server endpoint string, of one of the kinds that the gateway can put its own TLS on."""


class Refusal(str):
    """A provider's refusal, by its status (400 to 599) or by the ``code`` or ``type`` of its error."""


class FileName(str):
    """A path, absolute or relative to the folder of the configuration file; not empty."""


class HeaderName(str):
    """A header that may be configured for a provider: a token (RFC 9110), and none that the gateway sets itself."""


def admin_endpoint(value: Any) -> Any:
    """``admin`` as the mapping that it is short for: a port is one on loopback."""
    if isinstance(value, int | str) and not isinstance(value, bool):
        written = str(value).strip()
        return {"endpoint": f"tcp:{written}:interface=127.0.0.1" if _is_port(written) else value}
    return value


def _is_port(written: str) -> bool:
    return written.isascii() and written.isdecimal() and len(written) < 6 and 0 < int(written) < 65536


def decode(expected: type, value: Any) -> Any:
    """Make a leaf type of this module from what YAML holds. Raises ValueError with what would be right."""
    if expected in _DECODERS:
        return _DECODERS[expected](value)
    raise TypeError(f"{expected} is no type of this schema")


def _duration(value: Any) -> Duration:
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
    return Duration(value)


def _or_zero(value: Any, meaning: str) -> float:
    if value in (0, "0", "0s") and not isinstance(value, bool):
        return 0
    try:
        return _duration(value)
    except ValueError as error:
        raise ValueError(f"{error}, or 0 for {meaning}") from None


def _retries(value: Any) -> Retries:
    if isinstance(value, bool) or not str(value).isdecimal() or not 0 <= int(value) <= 10:
        raise ValueError("is not a number of retries; write 0 to 10")
    return Retries(value)


def _count(value: Any, least: int, meaning: str = "") -> int:
    written = str(value)
    if isinstance(value, bool) or not re.fullmatch("[0-9]{1,7}", written) or not least <= int(written) <= 1_000_000:
        raise ValueError(f"is not a number of connections; write 1 to 1000000{meaning}")
    return int(written)


def _refusal(value: Any) -> Refusal:
    if str(value) == "401":
        raise ValueError("is about the gateway's own key, and never passed on; leave it out")
    if not isinstance(value, bool) and str(value).isdecimal() and 400 <= int(value) <= 599:
        return Refusal(int(value))
    if not isinstance(value, str) or not _CODE.fullmatch(value):
        raise ValueError("is not a refusal; write a status from 400 to 599, or an error's code such as content_filter")
    return Refusal(value)


def _size(value: Any) -> Size:
    return Size(_bytes(value, 1024**3, "1024MiB"))


def _total_size(value: Any) -> TotalSize:
    return TotalSize(_bytes(value, 1024**4, "1024GiB"))


def _bytes(value: Any, most: int, written: str) -> int:
    match = _SIZE.fullmatch(str(value).strip())
    if isinstance(value, int | str) and match:
        number = int(match[1]) * {"KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}.get(match[2] or "B", 1)
        if 1024 <= number <= most:
            return number
    raise ValueError(f"is not a size; write 32MiB, 512KiB or a number of bytes, from 1KiB to {written}")


def _url(value: Any) -> Url:
    right = "write http(s)://host[:port]/path"
    if not isinstance(value, str):
        raise ValueError(f"is not a URL; {right}")
    try:
        parts = urlsplit(value)
        good = (
            parts.scheme in ("http", "https")
            and parts.hostname
            and parts.port != 0
            and value.isprintable()
            and " " not in value
        )
    except ValueError:
        good = False
    if not good:
        raise ValueError(f"is not a provider's URL; {right}")
    if "@" in parts.netloc:
        raise ValueError("holds credentials; put the key in api_key")
    if "?" in value or "#" in value:
        raise ValueError(f"holds a query or a fragment; {right}, and keys in api_key or headers")
    # Lower case, as whoever decides on TLS compares it.
    return Url(parts._replace(scheme=parts.scheme.lower()).geturl().rstrip("/"))


def _secret(value: Any) -> Secret:
    if value is None or value == "":
        raise ValueError("is empty; write the key, or better ${NAME}")
    if not isinstance(value, str):
        raise ValueError("is not a string; put it in quotes")
    if not value.isascii() or not value.isprintable() or value != value.strip():
        raise ValueError(
            "cannot be sent in a header: it is empty, begins or ends with white space, "
            "or holds a control or non-ASCII character"
        )
    return Secret(value)


def _name(value: Any) -> Name:
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > 256:
        raise ValueError(
            "is not a name; write a string of 1 to 256 printable characters, in quotes if it looks otherwise"
        )
    return Name(value)


def _port(value: Any) -> Port:
    if isinstance(value, bool) or not str(value).isdecimal() or not 0 < int(value) < 65536:
        raise ValueError("is not a port; write a number from 1 to 65535")
    return Port(value)


def _endpoint(value: Any) -> ListenAddress:
    if not isinstance(value, str) or value.partition(":")[0] not in ("tcp", "tcp6", "unix", "systemd"):
        raise ValueError("is not served; write tcp:PORT:interface=ADDRESS, tcp6:..., unix:PATH or systemd:...")
    return ListenAddress(value)


def _file_name(value: Any) -> FileName:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError("is not a file name; write a path, absolute or relative to this file")
    return FileName(value)


def _header_name(value: Any) -> HeaderName:
    if not isinstance(value, str) or not _HEADER.fullmatch(value):
        raise ValueError("is not a header name")
    if value.lower() in _OURS:
        raise ValueError("is a header that the gateway sets itself; leave it out")
    return HeaderName(value)


_DECODERS: dict[type, Callable[[Any], Any]] = {
    Duration: _duration,
    Cooldown: lambda value: Cooldown(_or_zero(value, "never")),
    DrainSeconds: lambda value: DrainSeconds(_or_zero(value, "not at all")),
    Connections: lambda value: Connections(_count(value, 1)),
    PerAddress: lambda value: PerAddress(_count(value, 0, ", or 0 for no limit")),
    Retries: _retries,
    Refusal: _refusal,
    Size: _size,
    TotalSize: _total_size,
    Url: _url,
    Secret: _secret,
    Name: _name,
    Port: _port,
    ListenAddress: _endpoint,
    FileName: _file_name,
    HeaderName: _header_name,
}
