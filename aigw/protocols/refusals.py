"""What a provider's refusal says: its reason, its short words, and the pause that it asks for.

Providers agree on no shape for an error. The shapes here are those of their documentation and of what their servers
send; tests/test_refusals.py has an example of each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from aigw.protocols import sse

KEY_REFUSED = frozenset([401])  # statuses by which a provider refuses the key; 402 and 403 may be about the request
DEEPEST = 6  # objects within objects
MOST_LISTED = 3  # of several mistakes in one list
MOST_OF_TEXT = 300  # of a body that is no JSON

_TEXTS = tuple("message msg error_msg error_message errorMessage status_msg error_description title reason".split())
_INNER = ("error", "errors", "detail", "base_resp")
_SERVER_SENT = re.compile(rb"(?:data|event|error|id|retry)?:")
_TITLE = re.compile(r"<title>\s*([^<]*?)\s*</title>", re.IGNORECASE)
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*(milliseconds?|ms|seconds?|s|minutes?|m|hours?|h)(?![a-z])\s*")
_IN_WORDS = re.compile(rf"(?:try again|retry)\s+(?:in|after)\s+((?:{_AMOUNT.pattern})+)", re.IGNORECASE)
_PLAIN_HTTP = re.compile(
    rb"plain HTTP request was sent to HTTPS port|speaking plain HTTP to an SSL-enabled|"
    rb"HTTP request to an HTTPS server|combination of host and port requires TLS|This is an HTTPS port",
    re.IGNORECASE,
)


class Refusal(msgspec.Struct, frozen=True):
    """``reason`` in the provider's words, ``words`` its codes and types, ``pause`` in seconds; each where given."""

    reason: str | None = None
    words: tuple[str, ...] = ()
    pause: float | None = None


def read_refusal(body: bytes) -> Refusal:
    """What the body of a refusal says, in whatever shape it comes. Never fails."""
    for said in _values(body):
        objects = list(_objects(said, DEEPEST))
        reason = _reason(said, DEEPEST)
        if reason or objects:
            return Refusal(_encodable(reason), _words(objects), _pause_in(objects, reason or ""))
    return Refusal(_encodable(_text(body)))


def reason_in(said: Any) -> str | None:
    """The reason in an error that is read already: an object, a list of them, or a mere string."""
    return _encodable(_reason(said, DEEPEST))


def pause(get: Callable[[bytes], bytes | None], refusal: Refusal, now: float) -> float | None:
    """The seconds that a refusal asks to wait: ``retry-after-ms``, then ``Retry-After``, then what its body names.

    RFC 9110, section 10.2.3. ``get`` gives a header by its lower-case name; ``now`` is in Unix seconds. What makes no
    sense counts as not given; None where nothing is given.
    """
    millis, written = get(b"retry-after-ms"), get(b"retry-after")
    for given in (_number(millis, 0.001), _number(written, 1.0), _date(written, now), refusal.pause):
        if given is not None:
            return given
    return None


def asks_for_tls(body: bytes) -> bool:
    """Whether a server says that its TLS port was sent plain HTTP, as nginx, Apache, Go, Jetty and the gateway do."""
    return _PLAIN_HTTP.search(body[:4096]) is not None


# Where the error stands


def _values(body: bytes) -> Iterator[Any]:
    """The JSON values in a body: it is one, or an event stream, or one a line."""
    body = body.removeprefix(b"\xef\xbb\xbf").strip()
    parts = [body]
    if _SERVER_SENT.match(body):
        parts = [data for event in sse.events(body + b"\n\n") for data in _data_of(event)]
    elif b"\n" in body:
        parts.append(body.partition(b"\n")[0])
    for part in parts:
        if (said := _json(part)) is not None:
            yield said


def _data_of(event: bytes) -> list[bytes]:
    """The data of one event; llama.cpp writes ``error: {...}`` in the place of ``data: {...}``."""
    _, data = sse.fields(event)
    if data is not None:
        return [data]
    return [line.partition(b":")[2] for line in event.splitlines() if line.startswith(b"error:")]


def _json(text: bytes | str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _objects(said: Any, deepest: int) -> Iterator[dict[str, Any]]:
    """The objects of an error, the innermost first."""
    if isinstance(said, list) and said and deepest:
        yield from _objects(said[0], deepest - 1)
    elif isinstance(said, dict) and deepest:
        for name in (*_INNER, "message"):
            yield from _objects(said.get(name), deepest - 1)
        yield said


def _reason(said: Any, deepest: int) -> str | None:
    if isinstance(said, str):
        inner = _json(said) if deepest and said.lstrip()[:1] in ("{", "[") and said.strip() else None
        return (_reason(inner, deepest - 1) if inner else None) or said.strip() or None
    if isinstance(said, list) and deepest:
        found = [reason for each in said[:MOST_LISTED] if (reason := _reason(each, deepest - 1))]
        return "; ".join(dict.fromkeys(found)) or None
    if not isinstance(said, dict) or not deepest:
        return None
    # A string under ``error`` may be a status in words ("Not Found"), and another member says more.
    is_last = isinstance(said.get("error"), str)
    for name in (*_INNER[is_last:], *_TEXTS, *_INNER[:is_last]):
        if reason := _reason(said.get(name), deepest - 1):
            return _with_place(said, reason, deepest) if name in _TEXTS else reason
    return None


def _with_place(said: dict[str, Any], reason: str, deepest: int) -> str:
    """The reason, with the field that it is about (FastAPI's ``loc``) or with what a router's own provider said."""
    place = said.get("loc")
    if isinstance(place, list) and place:
        return f"{'.'.join(str(part) for part in place[:8])}: {reason}"
    metadata = said.get("metadata")
    raw = metadata.get("raw") if isinstance(metadata, dict) else None
    more = _reason(raw, deepest - 1) if raw else None
    return f"{reason}: {more}" if more and more != reason else reason


def _text(body: bytes) -> str | None:
    """The reason in a body that is no JSON: the title of a page, or all of a short text."""
    text = body.decode(errors="replace").strip()
    if "<" in text:
        title = _TITLE.search(text)
        return title[1][:MOST_OF_TEXT] or None if title else None
    text = " ".join(text.split())[:MOST_OF_TEXT]
    if not text or text == "null" or text[0] in "{[" or "\ufffd" in text:  # broken JSON, or one without a reason
        return None
    return text if text.isprintable() else None


def _encodable(reason: str | None) -> str | None:
    """The same without lone surrogates, which JSON can hold and UTF-8 cannot."""
    return None if reason is None else reason.encode(errors="replace").decode()


def _words(objects: list[dict[str, Any]]) -> tuple[str, ...]:
    found = [word for each in objects for name in ("code", "type", "status") if isinstance(word := each.get(name), str)]
    return tuple(word for word in dict.fromkeys(found) if word and word != "error")


# The pause


def _pause_in(objects: list[dict[str, Any]], reason: str) -> float | None:
    for each in objects:
        details = each.get("details")
        for detail in [each, *(details if isinstance(details, list) else [])]:
            if not isinstance(detail, dict):
                continue
            for name, unit in (("retryDelay", 1.0), ("retry_after_ms", 0.001), ("retry_after", 1.0)):
                if (seconds := _duration(detail.get(name), unit)) is not None:
                    return seconds
    in_words = _IN_WORDS.search(reason)
    return _duration(in_words[1], 1.0) if in_words else None


def _duration(written: Any, unit: float) -> float | None:
    """Seconds of a number, or of a text such as ``17s``, ``1m30.5s`` or ``20 seconds``."""
    if isinstance(written, str):
        amounts = _AMOUNT.findall(written.lower())
        if amounts and not _AMOUNT.sub("", written.lower()).strip():
            written = repr(sum(float(number) * _UNITS[_short(name)] for number, name in amounts) / unit)
        written = written.encode(errors="replace")
    elif isinstance(written, int | float) and not isinstance(written, bool):
        written = repr(written).encode()
    return _number(written, unit) if isinstance(written, bytes) else None


def _short(unit: str) -> str:
    return "ms" if unit.startswith(("ms", "milli")) else unit[0]


def _number(written: bytes | None, unit: float) -> float | None:
    try:
        seconds = float(written) * unit if written else None
    except ValueError:
        return None
    return seconds if seconds is not None and 0 <= seconds < float("inf") else None


def _date(written: bytes | None, now: float) -> float | None:
    try:
        return max(0.0, parsedate_to_datetime(written.decode("latin-1")).timestamp() - now) if written else None
    except (ValueError, TypeError, OverflowError):
        return None
