"""The log for people at a terminal: a readable line for each line of JSON, in colour if that is allowed.

It is made from the finished line of JSON, in which keys are hidden and lengths bounded already. The line may have text
of clients and providers, so characters that could control the terminal are escaped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, TextIO

from aigw.log_output.log_writer import LineFile

_RESET, _DIM, _RED, _GREEN, _YELLOW = "\x1b[0m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m"
_BELOW = ("mistakes", "traceback")  # fields that are shown below the line, in lines of their own
# Twisted's lines about the listeners. No setting turns them off; the line "Listening" has the addresses.
_OF_TWISTED = re.compile(r"\w+ starting on .+|\((TCP|UNIX) Port .+ Closed\)")
_LEVELS = {"WARN": ("warning", _YELLOW), "ERROR": ("error", _RED), "CRITICAL": ("error", _RED)}


class TerminalFile:
    """A file for lines of JSON that writes a readable form of them to ``file``."""

    def __init__(self, file: LineFile, colour: bool) -> None:
        self._file = file
        self._colour = colour

    def write(self, line: str) -> None:
        """Write one whole line. A line in an unexpected form is written as JSON."""
        try:
            text = readable(line, self._colour)
        except (ValueError, KeyError, TypeError, AttributeError):
            text = f"{printable(line.rstrip())}\n"
        if text:
            self._file.write(text)

    def flush(self) -> None:
        """See TextIO."""
        self._file.flush()


def is_terminal(file: TextIO | None) -> bool:
    """Whether the file is a terminal."""
    try:
        return file is not None and file.isatty()
    except ValueError:  # the file is closed
        return False


def allows_colour(environ: Mapping[str, str]) -> bool:
    """Whether the environment allows colour, by https://no-color.org."""
    return not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def printable(text: str) -> str:
    """``text`` with every character escaped that is not printable, such as those that control the terminal."""
    if text.isprintable():
        return text
    return "".join([each if each.isprintable() else each.encode("unicode_escape").decode() for each in text])


def readable(line: str, colour: bool = False) -> str:
    """The readable form of a line of JSON: more lines for a traceback or mistakes, none for Twisted's own lines."""
    event = json.loads(line)
    fields = event["fields"]
    if event["level"] == "INFO" and not fields and _OF_TWISTED.fullmatch(event["message"]):
        return ""
    if event["message"] == "Request":
        words = _request(event.get("request_id", ""), fields)
    else:
        level, paint = _LEVELS.get(event["level"], ("", ""))
        words = [(level, paint), (event["message"], ""), (_named(event.get("request_id"), fields), _DIM)]
    time = datetime.fromisoformat(event["time"].replace("Z", "+00:00")).astimezone().strftime("%H:%M:%S")
    shown = [_painted(printable(text), each, colour) for text, each in [(time, _DIM), *words] if text]
    below = [f"    {printable(each)}" for each in _below(fields)]
    return "\n".join(["  ".join(shown), *below]) + "\n"


def _painted(text: str, paint: str, colour: bool) -> str:
    return f"{paint}{text}{_RESET}" if colour and paint else text


def _request(request_id: str, fields: dict[str, Any]) -> list[tuple[str, str]]:
    """The parts of a request's line with their colours: status, route, provider, time; for a failure also the id."""
    ok = fields["outcome"] == "ok"
    paint = _GREEN if ok else _RED if fields["status"] >= 500 or fields["status"] < 400 else _YELLOW
    where = fields["route"] or f"{fields['method']} {fields['path']}"
    if fields["provider"]:
        where += f" -> {_who(fields)} ({fields['model']})"
    facts = [_span(fields["duration_ms"])]
    if fields["stream"]:
        facts = [
            "stream",
            *([f"first output {_span(fields['ttft_ms'])}"] if fields["ttft_ms"] is not None else []),
            *facts,
        ]
    if tokens := fields["usage"].get("total_tokens"):
        facts.append(f"{tokens} tokens")
    no_failure = ("ok", "lost_race")
    failed = [f"{_who(each)} {each['outcome']}" for each in fields["attempts"] if each["outcome"] not in no_failure]
    if slower := [_who(each) for each in fields["attempts"] if each["outcome"] == "lost_race"]:
        facts.append(f"slower: {', '.join(slower)}")
    if failed:
        facts.append(f"failed: {', '.join(failed)}")
    words = [(str(fields["status"]), paint), (where, ""), (", ".join(facts), _DIM)]
    if not ok:
        words += [(fields["error"] or fields["outcome"], paint), (f"id {request_id}", _DIM)]
    return words


def _who(fields: dict[str, Any]) -> str:
    """The provider of a request or an attempt, with the position of the key if it has several."""
    key = fields.get("key_number")
    return str(fields["provider"]) if key is None else f"{fields['provider']} key {key}"


def _named(request_id: str | None, fields: dict[str, object]) -> str:
    """The fields on the line itself, as ``name=value``."""
    shown = [f"{name}={_value(each)}" for name, each in fields.items() if name not in _BELOW and each is not None]
    return " ".join([*shown, *([f"id={request_id}"] if request_id else [])])


def _below(fields: dict[str, Any]) -> Iterator[str]:
    for mistake in fields.get("mistakes", ()):
        yield str(mistake)
    yield from str(fields.get("traceback", "")).splitlines()


def _value(value: object) -> str:
    if isinstance(value, str) and value and " " not in value:
        return value
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return ",".join(value)
    return json.dumps(value, ensure_ascii=False)


def _span(milliseconds: int) -> str:
    return f"{milliseconds} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"
