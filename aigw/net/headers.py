"""The headers that the gateway forwards, in both directions."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from functools import lru_cache
from urllib.parse import quote

Header = tuple[bytes, bytes]
Lines = dict[bytes, bytes]  # headers as they go over the wire, each line ended, by their lower-case names

_JSON = b"application/json"
_TO_PROVIDER = (b"accept", b"openai-beta", b"idempotency-key", b"http-referer", b"x-title")
_TO_CLIENT = re.compile(
    rb"content-type|retry-after(-ms)?|x-should-retry|request-id|x-ratelimit-.*|(?:openai|anthropic)-.*"
)
# JSON under the name of a charset that it does not have: a provider would read other members than the gateway.
_OTHER_CHARSET = re.compile(
    rb"application/json.*charset(?!=(?:utf-?8|\"utf-?8\")[ \t]*(?:;|\Z))", re.IGNORECASE | re.DOTALL
)
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")  # RFC 9110, section 5.5, allows tabs and what is not ASCII
_TRACEPARENT = re.compile(  # as in telemetry/trace_context
    rb"(?!ff)(?=00.{53}\Z|(?!00))[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?"
)


# Limits of what a client gets: Python's http.client takes 100 headers, Node 16 KiB, and the gateway adds its own.
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


def for_provider(
    given: Mapping[bytes, bytes], takes: Container[bytes] = (_JSON,), beginning: bytes | None = None
) -> Lines:
    """What of a client's request is sent to a provider; ``given`` are its headers by lower-case name.

    A value with a control character is left out. ``takes`` are the types of a body that are named as the client did.
    Every header whose name begins with ``beginning`` is sent too.
    """
    kind = given.get(b"content-type", b"")
    if kind != _JSON and (
        kind.partition(b";")[0].strip().lower() not in takes or _CONTROL.search(kind) or _OTHER_CHARSET.match(kind)
    ):
        kind = _JSON
    sent = {b"content-type": b"Content-Type: %s\r\n" % kind}
    for name in _TO_PROVIDER:
        if name in given and (value := given[name]) and not _CONTROL.search(value):
            sent[name] = b"%s%s\r\n" % (_cased(name), value)
    if beginning is not None:
        for name, value in given.items():
            if name.startswith(beginning) and not _CONTROL.search(value):
                written = _cased(name) if len(name) <= MOST_OF_A_NAME else name + b": "  # a client could fill the cache
                sent[name] = b"%s%s\r\n" % (written, value)
    trace = given.get(b"traceparent")
    if trace and _TRACEPARENT.fullmatch(trace) and not _CONTROL.search(trace):
        sent[b"traceparent"] = b"Traceparent: %s\r\n" % trace
    return sent


def for_client(answered: Iterable[tuple[bytes, list[bytes]]]) -> list[Header]:
    """The headers of a provider's answer that the client gets: the last value of each, names in lower case.

    The result is bounded: of too many headers the client gets the most important ones.
    """
    return bounded(forwarded(answered))


def forwarded(answered: Iterable[tuple[bytes, list[bytes]]]) -> list[Header]:
    """The same with all headers, also those that ``bounded`` removes."""
    return [(goes_as, values[-1]) for name, values in answered if (goes_as := _TO_CLIENT_AS[name])]


def bounded(sent: list[Header]) -> list[Header]:
    """Those of the headers that the client gets; see for_client."""
    together = b"".join([value for _, value in sent])
    if len(sent) <= MOST_HEADERS and len(together) <= _SURELY_FEW and not _CONTROL.search(together):
        return sent
    return _bounded(sent)


def is_forwarded(name: bytes) -> bool:
    """Whether a client gets the provider's header of this lower-case name."""
    return _TO_CLIENT_AS[name] is not None


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
    return _FIRST.index(name) if name in _FIRST else len(_FIRST) + (not name.startswith((b"openai-", b"anthropic-")))


class _Names(dict[bytes, bytes | None]):
    """The name under which the client gets a provider's header; None if the client does not get it. A bounded cache."""

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
    """Headers as bytes, each line ended; a value cannot begin another line."""
    written = b"\r\n".join([_cased(name) + value for name, value in sent]) + (b"\r\n" if sent else b"")
    if written.count(b"\n") != len(sent) or written.count(b"\r") != len(sent):
        return lines([(b" ".join(name.splitlines()), b" ".join(value.splitlines())) for name, value in sent])
    return written


@lru_cache(maxsize=1000)
def _cased(name: bytes) -> bytes:
    return b"-".join([word.capitalize() for word in name.split(b"-")]) + b": "


@lru_cache(maxsize=1000)
def value(text: str) -> bytes:
    """``text`` as a header's value: what is not printable ASCII is percent-encoded."""
    if text.isascii() and text.isprintable() and "%" not in text:
        return text.encode()
    return quote(text, safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}~").encode()


def of_a_stream(sent: list[Header], mislabelled: bool) -> list[Header]:
    """The headers of a streamed answer, which no proxy is to hold; ``mislabelled``: it was sent as something else."""
    if mislabelled:
        sent = [header for header in sent if header[0] != b"content-type"]
        sent.append((b"content-type", b"text/event-stream"))
    return [*sent, (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]


@lru_cache(maxsize=1000)
def about(route: str | None, attempts: int, step: int | None, provider: str | None, model: str | None) -> bytes:
    """The lines of an answer that name the route, and the step, provider and model that answered, if there are any."""
    sent: list[Header] = []
    if route is not None:
        sent += [(b"x-aigw-route", value(route)), (b"x-aigw-attempts", b"%d" % attempts)]
    if provider is not None and model is not None:
        sent.append((b"x-aigw-step", b"%d" % (step or 0)))
        sent.append((b"x-aigw-provider", value(provider)))
        sent.append((b"x-aigw-model", value(model)))
    return lines(sent)
