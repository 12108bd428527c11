"""Logs as one JSON object a line: ``time``, ``level``, ``message``, ``request_id`` and ``fields``.

``fields`` holds only the names in FIELDS, some of which come from ``record``; others are dropped. A key is a
``Secret``, which prints as ``***``; in addition the service's ``Redaction`` hides keys in every line. The length of a
line is bounded.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TextIO, cast

import msgspec
from twisted.internet.interfaces import IReactorCore, IReactorTime
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel, formatEvent, globalLogPublisher
from zope.interface import implementer

from aigw.log_output.duplicates import DuplicateFilter
from aigw.log_output.log_stream import in_ascii, is_journal, is_on_disk, takes_unicode
from aigw.log_output.log_writer import LineFile, LogWriter, Write, to_descriptor, without_waiting
from aigw.telemetry.record import KeyAttemptRecord, Record, for_log, names_for
from aigw.telemetry.redaction import Redaction
from aigw.telemetry.request_lines import MAX_LINE, Hide, RequestLines, written_time

MAX_MESSAGE = 2000
MAX_TRACEBACK = 16000
FIELDS = frozenset(
    (
        "address addresses answers closed config connections days delayed_calls drain_s dropped held_bytes in_flight "
        "lag_ms limit_bytes mistakes open_files providers proxies refused repeats routes serials tls traceback version"
    ).split()
).union(names_for(Record, "log"), names_for(KeyAttemptRecord, "log"))
_OURS = FIELDS | {"time", "level", "message", "request_id", "fields", "reason", "until"}
_PRIORITIES = dict(zip(LogLevel.iterconstants(), ("<7>", "<6>", "<4>", "<3>", "<2>"), strict=True))
_LEVELS = {level: level.name.upper() for level in LogLevel.iterconstants()}
_DEBUG = LogLevel.debug
_SEVERE = frozenset((LogLevel.error, LogLevel.critical))
_FORMAT = "{aigw_message} {aigw_fields}"  # for other observers of Twisted's log
_ACCEPTING = "twisted.internet.tcp.Port"
_encode = msgspec.json.encode

log = Logger("aigw")
# The observers of Twisted's log; if a release of Twisted has no such list, each line goes the long way.
_observers: list[ILogObserver] = getattr(globalLogPublisher, "_observers", [])


def use_redaction(redaction: Redaction) -> None:
    """Hide keys by ``redaction`` in every line from now on.

    The event reaches every JsonLines, also one that twistd made for ``--logger``.
    """
    log.emit(LogLevel.debug, None, aigw_redaction=redaction)


class _Reactor(IReactorCore, IReactorTime):
    """The reactor, with what starts the log and writes it each turn."""


@implementer(ILogObserver)
class JsonLines:
    """Writes each event of level ``info`` and up as a line to ``file``.

    Nothing is hidden until ``use_redaction`` is called: the configuration, which has the keys, is not read until then.
    """

    def __init__(self, file: LineFile, priorities: bool = False) -> None:
        """``priorities`` are written before each line where the journal reads them (sd-daemon(3))."""
        self.redaction = Redaction()
        self._file = file
        self._only_ascii = not takes_unicode(file)
        self._priorities = _PRIORITIES if priorities else dict.fromkeys(_PRIORITIES, "")
        self._priority_bytes = {level: text.encode() for level, text in self._priorities.items()}
        self._duplicates = DuplicateFilter(time.monotonic)
        self._write_now: Callable[[], object] | None = None
        self._requests = RequestLines()
        # The short way needs a file for bytes.
        self._write_bytes: Callable[[bytes], object] | None = getattr(file, "write_bytes", None)

    def __call__(self, event: LogEvent) -> None:
        """See ILogObserver."""
        level = event.get("log_level", LogLevel.info)
        if level is _DEBUG:  # the only level below info; Twisted's comparison of levels is slow
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
            if level in _SEVERE and self._write_now is not None:
                self._write_now()  # the process may end with this turn
        except (OSError, ValueError):
            pass  # a full disk or a closed terminal must not stop the gateway

    def write_request(self, record: Record, level: object) -> bool:
        """Write the line of a request the short way; False if that is not possible, and nothing was written."""
        if self._write_bytes is None:
            return False
        line = self._requests.line(record, _LEVELS[level], self.redaction.hide)
        if line is None:
            return False
        try:
            priority = self._priority_bytes[level]
            self._write_bytes(b"%b%b\n" % (priority, line))
        except (OSError, ValueError):  # as in __call__
            pass
        return True

    def _whole(self, event: LogEvent, level: object) -> str:
        line = _line(event, level, self.redaction.hide)
        if self._only_ascii:
            line = in_ascii(line)
        return f"{self._priorities[level]}{line}\n"

    def notice(self, dropped: int) -> str:
        """The line that reports how many lines were dropped at this place."""
        message = "Log lines were dropped: the log could not be written, or its reader was too slow"
        event = {"log_time": time.time(), "aigw_message": message, "aigw_fields": {"dropped": dropped}}
        return self._whole(event, LogLevel.warn)


class QueuedLines(JsonLines):
    """JSON lines that a thread (``writer``) writes, so that a full pipe or a full disk does not block the gateway."""

    def __init__(
        self,
        write: Write,
        priorities: bool = False,
        form: Callable[[LogWriter], LineFile] = lambda writer: writer,
        descriptor: int | None = None,
        is_file: bool = False,
    ) -> None:
        """``write`` is called in the thread. The thread starts when the reactor runs, because twistd forks before that.

        ``form`` wraps the writer in a file that changes the form of each line. ``descriptor`` is the file that
        ``write`` writes to, if the lines of a turn may be written to it without the thread. ``is_file``: see LogWriter.
        """
        from twisted.internet import reactor as installed

        reactor = cast(_Reactor, installed)
        self.writer = LogWriter(write, is_file=is_file)
        self.writer.notice = self.notice
        super().__init__(form(self.writer), priorities)

        def start() -> None:
            self.writer.start()
            if descriptor is not None and (attempt := without_waiting(descriptor)) is not None:
                # Any reactor makes the calls that are due before it waits for events.
                self.writer.write_each_turn(attempt, partial(reactor.callLater, 0))
                self._write_now = self.writer.write_now

        reactor.callWhenRunning(start)
        reactor.addSystemEventTrigger("after", "shutdown", self.writer.finish)
        atexit.register(self.writer.finish)  # for a process whose reactor never ran


def json_lines() -> QueuedLines:
    """The factory for ``--logger aigw.telemetry.logs.json_lines``: writes to standard error."""
    return to_stream(sys.__stderr__, priorities=is_journal(os.environ, 2))


def to_stream(
    stream: TextIO | None, priorities: bool = False, form: Callable[[LogWriter], LineFile] = lambda writer: writer
) -> QueuedLines:
    """JSON lines to standard output or error. Python has None for a stream that was closed at its start."""
    descriptor = stream.fileno() if stream else -1
    return QueuedLines(to_descriptor(descriptor), priorities, form, descriptor, is_on_disk(descriptor))


def info(message: str, request_id: str | None = None, **fields: object) -> None:
    """Log a message with fields."""
    write(LogLevel.info, message, request_id, fields)


def warn(message: str, request_id: str | None = None, **fields: object) -> None:
    """Log a message with fields, as a warning."""
    write(LogLevel.warn, message, request_id, fields)


def error(message: str, request_id: str | None = None, **fields: object) -> None:
    """Log a message with fields, as an error."""
    write(LogLevel.error, message, request_id, fields)


def request(record: Record, level: object) -> None:
    """Log the line of a request that has ended. Where no other observer would see the event, none is made."""
    if len(_observers) == 1:
        observer = _observers[0]
        if isinstance(observer, JsonLines) and observer.write_request(record, level):
            return
    write(level, "Request", record.request_id, for_log(record), are_known=True)


def write(
    level: object, message: str, request_id: str | None, fields: dict[str, object], are_known: bool = False
) -> None:
    """Log a message. Does what ``Logger.emit`` does, but faster: that searches all levels at each line.

    ``are_known``: all names of ``fields`` are in FIELDS, so they are not looked up again.
    """
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
            "aigw_are_known": are_known,
        }
    )


def _kind(event: LogEvent) -> object:
    """The kind of an event, for the DuplicateFilter; None for an event that is always logged.

    Two failures are of one kind if they have the same type and the same places in the code. Another kind is Twisted's
    line for each client that it cannot accept because the process has too many open files.
    """
    failure = event.get("log_failure") or event.get("failure")
    if failure is None:
        return event.get("log_format") if event.get("log_namespace") == _ACCEPTING else None
    places = tuple((name, file, line) for name, file, line, *_ in failure.frames)
    return hash((failure.type, places or failure.getErrorMessage()))


def _line(event: LogEvent, level: object, hide: Hide) -> str:
    seconds = event.get("log_time", 0.0)
    fields = event.get("aigw_fields")
    if fields is None:  # an event of another library: its text is logged, not its other values
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
        if not event.get("aigw_are_known") and not fields.keys() <= FIELDS:
            fields = {name: value for name, value in fields.items() if name in FIELDS}
    if len(message) > MAX_MESSAGE:  # keys are hidden first: a part of a key would not be found
        message = hide(message)[:MAX_MESSAGE]
    shape = {
        "time": written_time(seconds),
        "level": _LEVELS[level],
        "message": message,
    }
    if request_id := event.get("aigw_request_id"):
        shape["request_id"] = request_id
    return _encoded({**shape, "fields": fields}, hide)


def _encoded(shape: dict[str, object], hide: Hide) -> str:
    """``shape`` as JSON, without keys, and bounded. Only a line with a key, or a long or unusual line, is slow."""
    try:
        line = _encode(shape).decode()
    except (TypeError, ValueError):  # a value that JSON cannot hold is written as its repr
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


def _plain(value: object, hide: Hide) -> Any:
    """``value`` with every key hidden, in types that JSON can hold."""
    if isinstance(value, list | tuple):
        return [_plain(member, hide) for member in value]
    if isinstance(value, dict):
        return {name if name in _OURS else hide(str(name)): _plain(member, hide) for name, member in value.items()}
    if isinstance(value, int | float | None):
        return value
    if isinstance(value, msgspec.Struct):
        return _plain(msgspec.structs.asdict(value), hide)
    return hide(value if isinstance(value, str) else repr(value)).encode(errors="replace").decode()
