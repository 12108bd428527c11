"""What the stream of the log can take: which characters; whether the journal reads it, and whether it is on a disk."""

from __future__ import annotations

import codecs
import os
import re
import stat
from collections.abc import Mapping

_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]+")


def takes_unicode(file: object) -> bool:
    """Whether the file can write all characters. A file in ASCII writes escapes that are not valid in JSON."""
    encoding = getattr(file, "encoding", None)
    return not isinstance(encoding, str) or codecs.lookup(encoding).name.startswith("utf")


def in_ascii(line: str) -> str:
    """A line of JSON with an escape for each character that is not in ASCII."""
    return line if line.isascii() else _BEYOND_ASCII.sub(_escaped, line)


def _escaped(text: re.Match[str]) -> str:
    units = text[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join([f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4)])


def is_journal(environ: Mapping[str, str], fd: int) -> bool:
    """Whether the file descriptor leads to the journal, which reads ``<3>`` at the start of a line as a priority."""
    try:
        file = os.fstat(fd)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{file.st_dev}:{file.st_ino}"


def is_on_disk(fd: int) -> bool:
    """Whether it is an open file on a disk."""
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode)
    except OSError:
        return False
