"""Logs as one JSON object a line: ``time``, ``level``, ``message``, ``request_id`` and ``fields``.

What may stand in ``fields`` is listed here; anything else is dropped. Keys are hidden by construction (``Secret``);
this module is the second wall: whatever it is told to hide, it hides in every line. Lines are bounded.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, TextIO

import msgspec
from twisted.logger import ILogObserver, Logger, LogLevel, formatEvent
from zope.interface import implementer

Hide = Callable[[str], str]

MAX_MESSAGE = 2000
MAX_TRACEBACK = 16000
FIELDS = frozenset(
    "address attempts bytes_in bytes_out caller config duration_ms method mistakes model outcome path provider "
    "providers route routes status step stream tls traceback ttft_ms usage version".split()
)
_LEVELS = {level: level.name.upper() for level in LogLevel.iterconstants()}
_encode = msgspec.json.encode

log = Logger("aigw")
_hides: list[Hide] = []


def hide(hidden: Iterable[Hide]) -> None:
    """Pass every line through these from now on; each gives back a text without one key, or the very same text."""
    _hides[:] = hidden


@implementer(ILogObserver)
class JsonLines:
    """Writes each event of level ``info`` and up as a line to ``file``."""

    def __init__(self, file: TextIO | Any) -> None:
        self._file = file

    def __call__(self, event: dict[str, Any]) -> None:
        """See ILogObserver."""
        level = event.get("log_level", LogLevel.info)
        if level < LogLevel.info:
            return
        line = _line(event, level)
        if any(hiding(line) is not line for hiding in _hides):
            line = _encode(_hidden(msgspec.json.decode(line))).decode()
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except (OSError, ValueError):
            pass  # a full disk or a closed terminal must not stop the gateway


def json_lines() -> JsonLines:
    """The factory for ``twistd --logger aigw.logs.json_lines``: to standard error, which twistd leaves to us."""
    return JsonLines(sys.__stderr__)


def info(message: str, request_id: str | None = None, **fields: Any) -> None:
    """Log a message with fields."""
    log.info(aigw_message=message, aigw_request_id=request_id, aigw_fields=fields)


def warn(message: str, request_id: str | None = None, **fields: Any) -> None:
    """Log a message with fields, as a warning."""
    log.warn(aigw_message=message, aigw_request_id=request_id, aigw_fields=fields)


def error(message: str, request_id: str | None = None, **fields: Any) -> None:
    """Log a message with fields, as an error."""
    log.error(aigw_message=message, aigw_request_id=request_id, aigw_fields=fields)


def _line(event: dict[str, Any], level: Any) -> str:
    seconds = event.get("log_time", 0.0)
    fields = event.get("aigw_fields")
    if fields is None:  # somebody else's event: its text, and nothing that it holds
        message = formatEvent(event)[:MAX_MESSAGE] or event.get("log_namespace", "")
        failure = event.get("log_failure")
        fields = {} if failure is None else {"traceback": failure.getTraceback()[-MAX_TRACEBACK:]}
    else:
        message = event["aigw_message"]
    shape = {
        "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(seconds % 1 * 1000):03d}Z",
        "level": _LEVELS[level],
        "message": message,
    }
    if request_id := event.get("aigw_request_id"):
        shape["request_id"] = request_id
    shape["fields"] = {name: value for name, value in fields.items() if name in FIELDS}
    try:
        return _encode(shape).decode()
    except (TypeError, ValueError):  # a value that JSON has no form for; better said badly than lost
        return _encode({**shape, "fields": {name: repr(value)[:200] for name, value in fields.items()}}).decode()


def _hidden(value: Any) -> Any:
    if isinstance(value, str):
        for hiding in _hides:
            value = hiding(value)
        return value
    if isinstance(value, list):
        return [_hidden(member) for member in value]
    if isinstance(value, dict):
        return {name: _hidden(member) for name, member in value.items()}
    return value
