"""The header lines of an answer that show a caller what is left of its limits.

Each answer to a caller with limits has them, so what does not change is text already when a request is admitted.
"""

from __future__ import annotations

from math import ceil

ROUNDING = 1e-6  # of sums of fractions
_UP = 1 - ROUNDING  # what int() of a number with this is, is the number rounded up


def renamed(lines: bytes) -> bytes:
    """The header lines of an answer. The limits of the provider are those of its key and go under other names: a client
    sees those of its own key.
    """
    if lines.find(_FROM_PROVIDER) < 0:
        return lines
    return (b"\n" + lines).replace(b"\n" + _FROM_PROVIDER, b"\nX-Upstream-Ratelimit-")[1:]


def of_requests(limit: int, left: int, seconds: float) -> bytes:
    """The lines of a limit of requests, of which all are left in so many seconds."""
    return form_of_requests(limit) % (left if left > 0 else 0, reset_of(seconds))


def of_tokens(limit: int, left: int, seconds: float) -> bytes:
    """The lines of a limit of tokens, whose window ends in so many seconds."""
    return form_of_tokens(limit, whole(seconds)) % (left if left > 0 else 0)


def form_of_requests(limit: int) -> bytes:
    """The lines of a limit of requests, with a ``%d`` for what is left and a ``%b`` for the time of the reset."""
    return _OF_REQUESTS % limit


def form_of_tokens(limit: int, seconds: float) -> bytes:
    """The lines of a limit of tokens whose window ends in ``seconds``, with a ``%d`` for what is left."""
    return _OF_TOKENS % (limit, reset_of(seconds))


def whole(seconds: float) -> float:
    """The time to the end of a window as it is shown: in whole seconds while it is one or more, rounded up."""
    return float(ceil(seconds - ROUNDING)) if seconds > 1 else seconds


def reset_of(seconds: float) -> bytes:
    """The time of the reset as OpenAI writes it: ``120ms``, ``1.5s``, ``6m0s``, ``1h0m0s``. It is rounded up."""
    milliseconds = int(seconds * 1000 + _UP)
    if milliseconds < 1000:
        return b"%dms" % milliseconds
    if milliseconds < 60_000:
        return b"%d%b" % (milliseconds // 1000, _THOUSANDTHS[milliseconds % 1000])
    minutes, rest = divmod(-(-milliseconds // 1000), 60)
    if minutes < 60:
        return b"%dm%ds" % (minutes, rest)
    return b"%dh%dm%ds" % (minutes // 60, minutes % 60, rest)


_FROM_PROVIDER = b"X-Ratelimit-"
_THOUSANDTHS = [f"{part / 1000:g}s"[1:].encode() for part in range(1000)]
_OF_REQUESTS = (
    b"X-Ratelimit-Limit-Requests: %d\r\nX-Ratelimit-Remaining-Requests: %%d\r\nX-Ratelimit-Reset-Requests: %%b\r\n"
)
_OF_TOKENS = b"X-Ratelimit-Limit-Tokens: %d\r\nX-Ratelimit-Remaining-Tokens: %%d\r\nX-Ratelimit-Reset-Tokens: %b\r\n"
