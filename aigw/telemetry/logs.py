"""Logs as one JSON object a line: ``time``, ``level``, ``message``, ``request_id`` and ``fields``.

What may stand in ``fields`` is listed here, and in ``record``; anything else is dropped. Keys are hidden by
construction (``Secret``); the ``Redaction`` that the service hands down is the second wall, for every line. Lines are
bounded.
"""

from __future__ import annotations

import atexit
import codecs
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TextIO

import msgspec
from twisted.logger import ILogObserver, Logger, LogLevel, formatEvent
from zope.interface import implementer

from aigw.telemetry.log_writer import LogWriter, Write, to_descriptor
from aigw.telemetry.record import AttemptRecord, Record, names_for
from aigw.telemetry.redaction import Redaction

MAX_MESSAGE = 2000
MAX_TRACEBACK = 16000
MAX_LINE = 64 * 1024
FIELDS = frozenset(
    (
        "address addresses answers closed config connections days delayed_calls drain_s dropped held_bytes in_flight "
        "lag_ms limit_bytes mistakes open_files providers refused repeats routes serials tls traceback version"
    ).split()
).union(names_for(Record, "log"), names_for(AttemptRecord, "log"))
_OURS = FIELDS | {"time", "level", "message", "request_id", "fields", "reason", "until"}
_PRIORITIES = dict(zip(LogLevel.iterconstants(), ("<7>", "<6>", "<4>", "<3>", "<2>"), strict=True))
_LEVELS = {level: level.name.upper() for level in LogLevel.iterconstants()}
_DEBUG = LogLevel.debug
_FORMAT = "{aigw_message} {aigw_fields}"  # for the observers of others
_ACCEPTING = "twisted.internet.tcp.Port"
_encode = msgspec.json.encode

Hide = Callable[[str], str]  # from a text to the text without keys; the very same object where it has none

_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]+")

log = Logger("aigw")


def hand_down(redaction: Redaction) -> None:
    """Have every line of the log pass through ``redaction``, whoever made the observers that write them: twistd makes
    that of ``--logger``."""
    log.emit(LogLevel.debug, None, aigw_redaction=redaction)


@implementer(ILogObserver)
class JsonLines:
    """Writes each event of level ``info`` and up as a line to ``file``.

    Until a ``redaction`` is handed down nothing is hidden: the configuration, which names the keys, is not read yet.
    """

    def __init__(self, file: TextIO | Any, priorities: bool = False) -> None:
        """``priorities`` are written before each line where the journal reads them (sd-daemon(3))."""
        self.redaction = Redaction()
        self._file = file
        self._only_ascii = not _takes_unicode(file)
        self._priorities = _PRIORITIES if priorities else dict.fromkeys(_PRIORITIES, "")
        self._duplicates = DuplicateFilter(time.monotonic)

    def __call__(self, event: dict[str, Any]) -> None:
        """See ILogObserver."""
        level = event.get("log_level", LogLevel.info)
        if level is _DEBUG:  # the only one below info; Twisted's comparison looks through all levels
            self.redaction = event.get("aigw_redaction") or self.redaction
            return
        kind = _kind(event)
        if kind is not None:
            held_back = self._duplicates.admit(kind)
            if held_back is None:
                return
            event = {**event, "aigw_repeats": held_back}
        try:
            self._file.write(self._whole(event, level))
            self._file.flush()
        except (OSError, ValueError):
            pass  # a full disk or a closed terminal must not stop the gateway

    def _whole(self, event: dict[str, Any], level: Any) -> str:
        line = _line(event, level, self.redaction.hide)
        if self._only_ascii and not line.isascii():
            line = _BEYOND_ASCII.sub(_escaped, line)
        return f"{self._priorities[level]}{line}\n"

    def notice(self, dropped: int) -> str:
        """The line that says how many are missing where it stands."""
        message = "Log lines were dropped: they could not be written, or nobody read them"
        event = {"log_time": time.time(), "aigw_message": message, "aigw_fields": {"dropped": dropped}}
        return self._whole(event, LogLevel.warn)


class QueuedLines(JsonLines):
    """JSON lines that a thread writes, so that the gateway goes on where they cannot be written; ``writer`` has it."""

    def __init__(
        self, write: Write, priorities: bool = False, form: Callable[[LogWriter], Any] = lambda writer: writer
    ) -> None:
        """``write`` is called in the thread; that begins when the reactor runs, for twistd forks before.

        ``form`` gives the file that the lines go to on their way to the thread, for another form of them.
        """
        from twisted.internet import reactor as installed

        reactor: Any = installed
        self.writer = LogWriter(write)
        self.writer.notice = self.notice
        super().__init__(form(self.writer), priorities)
        reactor.callWhenRunning(self.writer.start)
        reactor.addSystemEventTrigger("after", "shutdown", self.writer.finish)
        atexit.register(self.writer.finish)  # where the reactor never ran


def _takes_unicode(file: TextIO | Any) -> bool:
    """Whether the file writes each character as it is. One that encodes in ASCII writes escapes that JSON has not."""
    encoding = getattr(file, "encoding", None)
    return not isinstance(encoding, str) or codecs.lookup(encoding).name.startswith("utf")


def _escaped(text: re.Match[str]) -> str:
    units = text[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join([f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4)])


def is_journal(environ: Mapping[str, str], fd: int) -> bool:
    """Whether what is written to the file descriptor goes to the journal, which reads ``<3>`` as a priority."""
    try:
        stat = os.fstat(fd)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"


def json_lines() -> QueuedLines:
    """The factory for ``--logger aigw.telemetry.logs.json_lines``: to standard error, which twistd leaves to us."""
    return to_stream(sys.__stderr__, priorities=is_journal(os.environ, 2))


def to_stream(
    stream: TextIO | None, priorities: bool = False, form: Callable[[LogWriter], Any] = lambda writer: writer
) -> QueuedLines:
    """To standard output or error; Python has None for one that was closed when it started."""
    return QueuedLines(to_descriptor(stream.fileno() if stream else -1), priorities, form)


def info(message: str, request_id: str | None = None, **fields: Any) -> None:
    """Log a message with fields."""
    _emit(LogLevel.info, message, request_id, fields)


def warn(message: str, request_id: str | None = None, **fields: Any) -> None:
    """Log a message with fields, as a warning."""
    _emit(LogLevel.warn, message, request_id, fields)


def error(message: str, request_id: str | None = None, **fields: Any) -> None:
    """Log a message with fields, as an error."""
    _emit(LogLevel.error, message, request_id, fields)


def _emit(level: Any, message: str, request_id: str | None, fields: dict[str, Any]) -> None:
    """What ``Logger.emit`` does, without its look through all levels; one line is written for each request."""
    log.observer(
        {
            "log_logger": log,
            "log_level": level,
            "log_namespace": log.namespace,
            "log_source": None,
            "log_format": _FORMAT,
            "log_time": time.time(),
            "aigw_message": message,
            "aigw_request_id": request_id,
            "aigw_fields": fields,
        }
    )


def _kind(event: dict[str, Any]) -> object:
    """What two events share of which one is enough, None for all others.

    Failures that are the same mistake: type, and the places that they passed. What Twisted says of each client
    that it cannot accept while files have run out.
    """
    failure = event.get("log_failure") or event.get("failure")
    if failure is None:
        return event.get("log_format") if event.get("log_namespace") == _ACCEPTING else None
    places = tuple((name, file, line) for name, file, line, *_ in failure.frames)
    return hash((failure.type, places or failure.getErrorMessage()))


def _line(event: dict[str, Any], level: Any, hide: Hide) -> str:
    seconds = event.get("log_time", 0.0)
    fields = event.get("aigw_fields")
    if fields is None:  # somebody else's event: its text, and nothing that it holds
        message = formatEvent(event) or event.get("log_namespace", "")
        failure = event.get("log_failure") or event.get("failure")
        fields = {}
        if failure is not None:
            message = message.partition("\n")[0]
            fields["traceback"] = hide(failure.getTraceback())[-MAX_TRACEBACK:]
        if repeats := event.get("aigw_repeats"):
            fields["repeats"] = repeats
    else:
        message = event["aigw_message"]
        if not fields.keys() <= FIELDS:
            fields = {name: value for name, value in fields.items() if name in FIELDS}
    if len(message) > MAX_MESSAGE:  # hidden first, or half a key may be left
        message = hide(message)[:MAX_MESSAGE]
    shape = {
        "time": f"{_to_the_second(int(seconds))}.{int(seconds % 1 * 1000):03d}Z",
        "level": _LEVELS[level],
        "message": message,
    }
    if request_id := event.get("aigw_request_id"):
        shape["request_id"] = request_id
    return _encoded({**shape, "fields": fields}, hide)


@lru_cache(maxsize=1)
def _to_the_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _encoded(shape: dict[str, Any], hide: Hide) -> str:
    """``shape`` as JSON, without a key in it, and bounded; its slow ways are for lines that need them."""
    try:
        line = _encode(shape).decode()
    except (TypeError, ValueError):  # a value that JSON has no form for: better written badly than lost
        return _encode(_bounded(_plain(shape, hide))).decode()
    if len(line) > MAX_LINE or hide(line) is not line:
        return _encode(_bounded(_plain(msgspec.json.decode(line), hide))).decode()
    return line


def _bounded(shape: dict[str, Any]) -> dict[str, Any]:
    if len(_encode(shape)) <= MAX_LINE:
        return shape
    room = MAX_LINE // (2 * len(shape["fields"]) or 1)
    short = {
        name: value if isinstance(value, int | None) else str(value)[:room] for name, value in shape["fields"].items()
    }
    return {**shape, "request_id": str(shape.get("request_id"))[:200], "fields": short}


def _plain(value: Any, hide: Hide) -> Any:
    """``value`` with every key hidden, and as something that JSON has a form for."""
    if isinstance(value, list | tuple):
        return [_plain(member, hide) for member in value]
    if isinstance(value, dict):
        return {name if name in _OURS else hide(str(name)): _plain(member, hide) for name, member in value.items()}
    if isinstance(value, int | float | None):
        return value
    if isinstance(value, msgspec.Struct):
        return _plain(msgspec.structs.asdict(value), hide)
    return hide(value if isinstance(value, str) else repr(value)).encode(errors="replace").decode()


WINDOW_SECONDS = 60.0
MAX_KINDS = 200


class DuplicateFilter:
    """Counts what comes again within WINDOW_SECONDS instead of letting it through; ``seconds`` is a monotonic clock."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._kinds: dict[object, list[float]] = {}  # when it was let through, and how often it came since

    def admit(self, kind: object) -> int | None:
        """None for what is only counted, else how often the like of it was held back since it last was let through."""
        now = self._seconds()
        known = self._kinds.get(kind)
        if known is None:
            if len(self._kinds) >= MAX_KINDS:
                del self._kinds[next(iter(self._kinds))]
            self._kinds[kind] = [now, 0]
            return 0
        if now - known[0] < WINDOW_SECONDS:
            known[1] += 1
            return None
        held_back, known[:] = int(known[1]), [now, 0]
        return held_back
