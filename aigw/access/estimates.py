"""How many tokens a request may use, and how many it used: as the provider reported, else by an estimate.

A token is taken for 4 bytes of a request. Each attempt on which a provider may have worked counts: hedges and retries
are charged for what they used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import msgspec

from aigw.protocols.requests import count
from aigw.protocols.walk import Members
from aigw.settings.endpoint_names import LISTED_FOR
from aigw.telemetry.record import AttemptRecord, RecordBuilder

BYTES_OF_A_TOKEN = 4
MOST_OF_AN_EVENT = 1000  # bytes of one that is taken for one token
MOST_TOKENS = 10**9
_MOST_DIGITS = 24
_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_NO_WORK = frozenset(["refused", "unreachable"])
_number = msgspec.json.Decoder(float)


class Estimated(Protocol):
    """Has the estimate of a request: ``prompt`` tokens of its body, ``output`` of its answer. ``is_limit``: the request
    limits the answer. A form has files and counts as an answer alone.
    """

    @property
    def prompt(self) -> int:
        """Tokens of its body."""

    @property
    def output(self) -> int:
        """Tokens of the answer."""

    @property
    def is_limit(self) -> bool:
        """Whether the request limits it."""


def limit_in(members: Members) -> int:
    """How many tokens the request allows its answer; 0 if it does not limit it."""
    limits = [_limit(bytes(memoryview(members[name])[:_MOST_DIGITS])) for name in _LIMITS if name in members]
    limit = max(limits, default=0)
    if limit and "n" in members:
        limit *= count(bytes(members["n"]))
    return min(limit, MOST_TOKENS)


def _limit(written: bytes) -> int:
    """The number; 0 where it is none."""
    if written.isdigit():
        return int(written)
    try:
        number = _number.decode(written)
    except ValueError:
        return 0
    return math.ceil(number) if 0 < number <= MOST_TOKENS else 0


def used(record: RecordBuilder, about: Estimated, events: int, path: str) -> tuple[int, bool]:
    """The tokens of all attempts, and whether some are estimated; ``events`` are those of a stream to the client."""
    attempts = record.attempts
    reported = tokens_in(record.usage)
    if reported and len(attempts) == 1 and attempts[0].outcome == "ok":
        return reported, False
    worked = sum([may_have_worked(attempt) for attempt in attempts])
    if not worked:
        return 0, False
    if record.first_byte is None:  # none of them answered
        return worked * max(1, about.prompt), True
    answered = any([attempt.outcome == "ok" for attempt in attempts])
    if not (reported and answered):
        reported = max(reported, about.prompt + _output(record, about, events, path), 1)
    others = (worked - 1) * max(1, about.prompt)
    return reported + others, bool(others) or not (tokens_in(record.usage) and answered)


def may_have_worked(attempt: AttemptRecord) -> bool:
    """Whether the provider may have charged the attempt."""
    return attempt.outcome not in _NO_WORK and not attempt.message.startswith("connect limit")


def _output(record: RecordBuilder, about: Estimated, events: int, path: str) -> int:
    """An event of a stream is about one token; of any other answer 4 bytes are. It is no more than was allowed."""
    if record.stream:
        tokens = events + max(0, record.bytes_out - MOST_OF_AN_EVENT * events) // BYTES_OF_A_TOKEN
    else:
        tokens = -(-record.bytes_out // BYTES_OF_A_TOKEN)
    is_text = path in LISTED_FOR
    return min(tokens, about.output) if about.is_limit or not is_text else tokens


def tokens_in(usage: Mapping[str, int]) -> int:
    """All tokens that a provider reported, those that it read from a cache and wrote to it too."""
    total = usage.get("total_tokens")
    if total:
        return total
    given = usage.get("prompt_tokens", 0) or usage.get("input_tokens", 0)
    made = usage.get("completion_tokens", 0) or usage.get("output_tokens", 0)
    return given + made + usage.get("cache_read_input_tokens", 0) + usage.get("cache_creation_input_tokens", 0)
