"""S28: the reason phrase in the status line is that of the standard, whether the answer is the gateway's or a provider's."""

from __future__ import annotations

import pytest

from tests.memory import MemoryGateway
from tests.test_limits import LimitedGateway

PHRASES = {
    408: b"Request Timeout",
    422: b"Unprocessable ",  # Entity or Content, as Python's version has it
    425: b"Too Early",
    428: b"Precondition Required",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    451: b"Unavailable For Legal Reasons",
    504: b"Gateway Timeout",
    511: b"Network Authentication Required",
    529: b"Unknown Status",
}


def status_line(answer: bytes) -> bytes:
    return answer.partition(b"\r\n")[0]


@pytest.mark.parametrize("status", PHRASES)
def test_s28_an_answer_has_the_phrase_of_the_standard(status):
    """A provider's refusal is passed on; where the gateway answers for the provider, its own status has its phrase."""
    gateway = MemoryGateway(steps=1, when_refused="pass_on")
    client = gateway.ask()
    error = b'{"error":{"message":"no"}}'
    gateway.doors["p1"].wire.say(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(error), error))
    gateway.turns()
    _, got, phrase = status_line(client.take()).split(b" ", 2)
    assert phrase.startswith(PHRASES.get(int(got), b"Bad Gateway"))


def test_s28_a_limit_of_a_key_is_too_many_requests():
    gateway = LimitedGateway(requests="1/m")
    gateway.ask()
    assert status_line(gateway.ask()) == b"HTTP/1.1 429 Too Many Requests"
