"""Which headers cross the gateway, in either direction."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from email.utils import parsedate_to_datetime
from functools import lru_cache
from urllib.parse import quote

Header = tuple[bytes, bytes]
GetHeader = Callable[[bytes], "bytes | None"]

_TO_PROVIDER = (b"accept", b"openai-beta", b"idempotency-key", b"http-referer", b"x-title")
_TO_CLIENT = re.compile(rb"content-type|retry-after(-ms)?|x-ratelimit-.*|openai-.*")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def for_provider(get: GetHeader) -> list[Header]:
    """What of a client's request goes on to a provider; ``get`` gives a header's value by its lower-case name."""
    kind = get(b"content-type") or b""
    json = kind.partition(b";")[0].strip().lower() == b"application/json"
    headers = [(b"content-type", kind if json else b"application/json")]
    headers += [(name, value) for name in _TO_PROVIDER if (value := get(name))]
    trace = get(b"traceparent")
    if trace and _TRACEPARENT.fullmatch(trace):
        headers.append((b"traceparent", trace))
    return headers


def for_client(answered: Iterable[tuple[bytes, list[bytes]]]) -> list[Header]:
    """What of a provider's answer goes on to the client, names in lower case."""
    headers = []
    for name, values in answered:
        name = name.lower()
        if name == b"x-request-id":
            headers.append((b"x-upstream-request-id", values[-1]))
        elif _TO_CLIENT.fullmatch(name):
            headers.append((name, values[-1]))
    return headers


def lines(sent: Sequence[Header]) -> bytes:
    """Headers as they go over the wire, each line ended; no value can begin a line of its own."""
    written = b"".join([b"%s: %s\r\n" % (_cased(name), value) for name, value in sent])
    if written.count(b"\n") != len(sent) or written.count(b"\r") != len(sent):
        return lines([(b" ".join(name.splitlines()), b" ".join(value.splitlines())) for name, value in sent])
    return written


@lru_cache(maxsize=1000)
def _cased(name: bytes) -> bytes:
    return b"-".join([word.capitalize() for word in name.split(b"-")])


def retry_after(get: GetHeader, now: float) -> float | None:
    """The seconds that ``retry-after-ms`` or ``Retry-After`` (seconds or HTTP-date) ask for; ``now`` in Unix seconds.

    RFC 9110, section 10.2.3. None where there is neither or it makes no sense.
    """
    millis, written = get(b"retry-after-ms"), get(b"retry-after") or b""
    try:
        if millis:
            seconds = float(millis) / 1000
        elif written[:1].isdigit():
            seconds = float(written)
        else:
            seconds = parsedate_to_datetime(written.decode("latin-1")).timestamp() - now
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, seconds) if seconds < float("inf") else None


def request_id(offered: bytes | None) -> str:
    """The client's request id if it is sane, else a new one of 32 hexadecimal digits."""
    if offered and _REQUEST_ID.fullmatch(offered):
        return offered.decode()
    return os.urandom(16).hex()


def value(text: str) -> bytes:
    """``text`` as a header's value: what is not printable ASCII is percent-encoded."""
    if text.isascii() and text.isprintable() and "%" not in text:
        return text.encode()
    return quote(text, safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}~").encode()
