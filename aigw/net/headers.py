"""Which headers cross the gateway, in either direction."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from urllib.parse import quote

Header = tuple[bytes, bytes]
GetHeader = Callable[[bytes], "bytes | None"]

_TO_PROVIDER = (b"accept", b"openai-beta", b"idempotency-key", b"http-referer", b"x-title")
_TO_CLIENT = re.compile(rb"content-type|retry-after(-ms)?|x-should-retry|request-id|x-ratelimit-.*|openai-.*")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")  # RFC 9110, section 5.5, allows tabs and what is not ASCII
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_TRACEPARENT = re.compile(  # as in telemetry/trace_context
    rb"(?!ff)(?=00.{53}\Z|(?!00))[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?"
)


# What goes on to a client: Python's http.client takes 100 headers, Node 16 KiB, and we add some of our own.
MOST_HEADERS = 50
MOST_BYTES = 8 * 1024
MOST_OF_A_VALUE = 4 * 1024
MOST_OF_A_NAME = 64
_SURELY_FEW = min(MOST_OF_A_VALUE, MOST_BYTES - MOST_HEADERS * (MOST_OF_A_NAME + len(": \r\n")))  # bytes of values
_FIRST = (
    b"content-type",
    b"retry-after",
    b"retry-after-ms",
    b"x-should-retry",
    b"x-upstream-request-id",
    b"request-id",
)


def for_provider(get: GetHeader) -> list[Header]:
    """What of a client's request goes on to a provider; ``get`` gives a header's value by its lower-case name.

    A value with a control character does not.
    """
    kind = get(b"content-type") or b""
    if kind != b"application/json" and (
        kind.partition(b";")[0].strip().lower() != b"application/json" or _CONTROL.search(kind)
    ):
        kind = b"application/json"
    headers = [(b"content-type", kind)]
    headers += [(name, value) for name in _TO_PROVIDER if (value := get(name)) and not _CONTROL.search(value)]
    trace = get(b"traceparent")
    if trace and _TRACEPARENT.fullmatch(trace) and not _CONTROL.search(trace):
        headers.append((b"traceparent", trace))
    return headers


def for_client(answered: Iterable[tuple[bytes, list[bytes]]]) -> list[Header]:
    """What of a provider's answer goes on to the client, the last of each, names in lower case.

    Of more than clients can be expected to take the most important ones: the result is bounded.
    """
    sent = [(goes_as, values[-1]) for name, values in answered if (goes_as := _TO_CLIENT_AS[name])]
    together = b"".join([value for _, value in sent])
    if len(sent) <= MOST_HEADERS and len(together) <= _SURELY_FEW and not _CONTROL.search(together):
        return sent
    return _bounded(sent)


def _bounded(sent: list[Header]) -> list[Header]:
    kept: list[Header] = []
    left = MOST_BYTES
    for name, value in sorted(sent, key=_rank):
        size = len(name) + len(value) + len(": \r\n")
        if size <= left and len(value) <= MOST_OF_A_VALUE and not _CONTROL.search(value):
            kept.append((name, value))
            left -= size
    return kept[:MOST_HEADERS]


def _rank(header: Header) -> int:
    """How important a header is to a client; equal ones stay as the provider sent them."""
    name = header[0]
    return _FIRST.index(name) if name in _FIRST else len(_FIRST) + (not name.startswith(b"openai-"))


class _Names(dict[bytes, bytes | None]):
    """How a provider's header goes on to the client, None where it does not. Remembers names, within bounds."""

    def __missing__(self, name: bytes) -> bytes | None:
        if len(name) > MOST_OF_A_NAME:
            return None
        lower = name.lower()
        passes = _TO_CLIENT.fullmatch(lower) is not None
        if len(self) >= 1000:
            self.clear()
        self[name] = b"x-upstream-request-id" if lower == b"x-request-id" else lower if passes else None
        return self[name]


_TO_CLIENT_AS = _Names()


def lines(sent: Sequence[Header]) -> bytes:
    """Headers as they go over the wire, each line ended; no value can begin a line of its own."""
    written = b"\r\n".join([_cased(name) + value for name, value in sent]) + (b"\r\n" if sent else b"")
    if written.count(b"\n") != len(sent) or written.count(b"\r") != len(sent):
        return lines([(b" ".join(name.splitlines()), b" ".join(value.splitlines())) for name, value in sent])
    return written


@lru_cache(maxsize=1000)
def _cased(name: bytes) -> bytes:
    return b"-".join([word.capitalize() for word in name.split(b"-")]) + b": "


def request_id(offered: bytes | None) -> str:
    """The client's request id if it is sane, else a new one of 32 hexadecimal digits."""
    if offered and _REQUEST_ID.fullmatch(offered):
        return offered.decode()
    return os.urandom(16).hex()


@lru_cache(maxsize=1000)
def value(text: str) -> bytes:
    """``text`` as a header's value: what is not printable ASCII is percent-encoded."""
    if text.isascii() and text.isprintable() and "%" not in text:
        return text.encode()
    return quote(text, safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}~").encode()
