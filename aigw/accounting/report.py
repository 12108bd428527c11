"""``--usage``: reads the file for accounting, with the files of earlier days, and sums up what was used.

It reads line by line, so the size of the files does not matter; the number of groups is bounded.
"""

from __future__ import annotations

import calendar
import csv
import glob
import gzip
import io
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import IO, NamedTuple, cast

import msgspec

from aigw.accounting.line import COLUMNS, Line, decode, moment
from aigw.config.prices import EXACT
from aigw.protocols.charges import CHARGED_KINDS

MAX_GROUPS = 100_000
MAX_LINE = 1024 * 1024  # bytes
DAY = 86_400
_UNITS = {"m": 60, "h": 3600, "d": DAY, "w": 7 * DAY}
_AGO = re.compile(r"(\d{1,6})([mhdw])")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}(?:T\d{2}:\d{2}(?::\d{2})?Z?)?")
_ROTATED = re.compile(r"[.-]\d[\d.-]*(?:\.gz)?")


class ReportError(Exception):
    """Why there is no report, in words."""


class Sum:
    """What one group used. ``unpriced`` counts requests with an unknown cost, ``estimated`` those with estimates."""

    __slots__ = ("cost", "estimated", "requests", "tokens", "unpriced")

    def __init__(self) -> None:
        self.requests = self.unpriced = self.estimated = 0
        self.tokens: Counter[str] = Counter()
        self.cost = Decimal(0)

    def add(self, tokens: dict[str, int], cost: Decimal | None) -> None:
        """Add tokens and a cost, if it is known."""
        for kind, count in tokens.items():
            self.tokens[kind] += count
        if cost is not None:
            self.cost = EXACT.add(self.cost, cost)


class Report(NamedTuple):
    """The groups by their names, how many lines could not be read, and how many the gateway could not write."""

    groups: dict[tuple[str, ...], Sum]
    unreadable: int
    lost: int


def since(text: str, now: float) -> float:
    """Unix seconds for ``7d``, ``12h``, or ``2026-11-01`` or ``2026-11-01T08:00`` in UTC. Raises ReportError."""
    if ago := _AGO.fullmatch(text):
        return now - int(ago[1]) * _UNITS[ago[2]]
    if _DATE.fullmatch(text):
        whole = f"{text.rstrip('Z')}{'T00:00:00'[len(text.rstrip('Z')) - 10 :]}"
        try:
            return float(_seconds(whole))
        except ValueError:
            pass
    raise ReportError(f"--since: {text!r} is no time; write 7d, 12h, 30m, 4w, or a date such as 2026-11-01 (UTC)")


def _seconds(text: str) -> int:
    return calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))


def columns(text: str) -> tuple[str, ...]:
    """The names in ``key,route,model``. Raises ReportError."""
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in COLUMNS:
            raise ReportError(f"--by: {name!r} is unknown; write one or more of {', '.join(COLUMNS)}")
    if len(set(names)) < len(names):
        raise ReportError("--by: a name is written twice; write each once")
    return names


def files_of(path: str, begin: float) -> list[str]:
    """The file and those of earlier times beside it, the oldest first, without those from before ``begin``.

    Raises ReportError if there is none.
    """
    found = [
        each for each in glob.glob(f"{glob.escape(path)}*") if each == path or _ROTATED.fullmatch(each[len(path) :])
    ]
    if not found:
        raise ReportError(f"there is no file {path} yet; the gateway writes it after the first request")
    times = {each: os.stat(each).st_mtime for each in found}
    return sorted((each for each in found if times[each] >= begin), key=lambda each: (times[each], each))


def read(paths: Iterable[str], by: tuple[str, ...], begin: float) -> Report:
    """Sum up the lines of these files since ``begin``, in Unix seconds. Raises ReportError."""
    groups: dict[tuple[str, ...], Sum] = {}
    unreadable, lost, first = 0, 0, moment(max(begin, 0.0))

    def group(line: Line, provider: str | None, model: str | None) -> Sum:
        names = tuple(_value(line, name, provider, model) for name in by)
        found = groups.get(names)
        if found is None:
            if len(groups) >= MAX_GROUPS:
                raise ReportError(f"there are more than {MAX_GROUPS} groups; write fewer names in --by")
            found = groups[names] = Sum()
        return found

    for path in paths:
        for text in _lines(path):
            try:
                line = decode(text)
            except (msgspec.DecodeError, UnicodeDecodeError):
                unreadable += 1
                continue
            if line.time < first:
                continue
            if line.lost is not None:
                lost += line.lost
                continue
            whole = group(line, line.provider, line.model)
            whole.requests += 1
            whole.estimated += line.estimated
            whole.unpriced += line.cost is None or any(part.cost is None for part in line.attempts)
            if not line.attempts:
                whole.add(line.tokens, line.cost)
            for part in line.attempts:
                group(line, part.provider, part.model).add(part.tokens, part.cost)
    return Report(groups, unreadable, lost)


def _value(line: Line, name: str, provider: str | None, model: str | None) -> str:
    if name == "key":
        return line.caller
    if name == "day":
        return line.time[:10]
    if name in ("provider", "model"):
        return (provider if name == "provider" else model) or "-"
    return str(getattr(line, name) or "-")


def _lines(path: str) -> Iterator[bytes]:
    """The lines that are not empty; a line of more than MAX_LINE bytes comes in parts, which are not readable."""
    try:
        with cast("IO[bytes]", gzip.open(path) if path.endswith(".gz") else open(path, "rb")) as file:
            while text := file.readline(MAX_LINE):
                if text.strip():
                    yield text
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or "it is damaged"
        raise ReportError(f"{path}: cannot be read: {reason}") from None


HEADINGS = ("requests", *CHARGED_KINDS, "cost_usd", "unpriced", "estimated")


def _rows(report: Report) -> Iterator[tuple[str, ...]]:
    """The groups, the dearest first."""
    for names, found in sorted(report.groups.items(), key=lambda each: (-each[1].cost, each[0])):
        yield *names, *_figures(found)


def _figures(found: Sum) -> tuple[str, ...]:
    kinds = [str(found.tokens[kind]) for kind in CHARGED_KINDS]
    return str(found.requests), *kinds, f"{found.cost:f}", str(found.unpriced), str(found.estimated)


def as_csv(report: Report, by: tuple[str, ...]) -> str:
    """The report as CSV with a line of headings. No cell is a formula of a spreadsheet: a client names its session."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*by, *HEADINGS])
    writer.writerows(map(_no_formula, row) for row in _rows(report))
    return text.getvalue()


def _no_formula(cell: str) -> str:
    return f"'{cell}" if cell != "-" and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def as_table(report: Report, by: tuple[str, ...]) -> str:
    """The report for people, with a line for all of it."""
    everything = Sum()
    for found in report.groups.values():
        everything.add(dict(found.tokens), found.cost)
        everything.requests += found.requests
        everything.unpriced += found.unpriced
        everything.estimated += found.estimated
    rows = [(*by, *HEADINGS), *_rows(report)]
    if len(report.groups) != 1:
        rows.append(("total", *[""] * (len(by) - 1), *_figures(everything)))
    shown = [[_printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines = []
    for row in shown:
        names = [cell.ljust(width) for cell, width in zip(row[: len(by)], widths, strict=False)]
        figures = [cell.rjust(width) for cell, width in zip(row[len(by) :], widths[len(by) :], strict=True)]
        lines.append("  ".join([*names, *figures]).rstrip())
    return "\n".join(lines) + "\n"


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(each if each.isprintable() else "?" for each in text)


def print_report(path: str, by: str, begin: str | None, now: float, is_csv: bool, show: IO[str], warn: IO[str]) -> None:
    """Write the report on the file ``path`` to ``show``, and what is missing in it to ``warn``. Raises ReportError."""
    names = columns(by)
    earliest = since(begin, now) if begin is not None else 0.0
    report = read(files_of(path, earliest), names, earliest)
    show.write(as_csv(report, names) if is_csv else as_table(report, names))
    if report.unreadable:
        warn.write(f"{report.unreadable} line(s) could not be read; a process that was killed leaves half a line\n")
    if report.lost:
        warn.write(f"{report.lost} request(s) are missing, because the gateway could not write their lines\n")
