"""A4, A4a, A4b, F3: what an answer is worth is known at its end."""

from __future__ import annotations

import pytest

from tests.memory import MemoryGateway
from tests.providers import DONE, ERROR_EVENT, LAST_CHUNK, ROLE, STREAM_HEAD, chunk, event

HEL, STOP = event({"content": "hel"}), event(finish_reason="stop")
ERROR_FIELD = b'error: {"message": "no"}\n\n'


def streamed(gateway: MemoryGateway, *events: bytes, end: bytes = LAST_CHUNK) -> bytes:
    client = gateway.ask(stream=True)
    gateway.doors["p1"].wire.say(STREAM_HEAD + b"".join(map(chunk, events)) + end)
    return client.take()


def test_a4a_done_without_a_finish_reason_is_a_cut_once_the_model_has_given_one():
    gateway = MemoryGateway(steps=1)
    streamed(gateway, ROLE, HEL, DONE)
    streamed(gateway, ROLE, HEL, STOP, DONE)
    got = streamed(gateway, ROLE, HEL, DONE)
    assert got.index(b'"code":"stream_truncated"') < got.index(b"[DONE]")
    assert [record.outcome for record in gateway.records] == ["ok", "ok", "stream_truncated"]


def test_a4_the_answer_ends_at_done_and_the_connection_is_kept_if_its_body_ends_in_a_second():
    gateway = MemoryGateway(steps=1)
    got = streamed(gateway, ROLE, HEL, STOP, DONE, end=b"")
    assert got.endswith(b"0\r\n\r\n")
    assert gateway.records[0].outcome == "ok"
    gateway.clock.advance(0.9)
    gateway.doors["p1"].wire.say(LAST_CHUNK)
    streamed(gateway, ROLE, HEL, STOP, DONE, end=b"")
    assert len(gateway.doors["p1"].wires) == 1
    gateway.clock.advance(1.1)
    assert gateway.doors["p1"].wire.aborted


@pytest.mark.parametrize("failure", [ERROR_EVENT, ERROR_FIELD])
def test_a4b_a_client_that_leaves_at_an_error_does_not_hide_it(failure):
    gateway = MemoryGateway(steps=1)
    client = gateway.ask(stream=True)
    gateway.doors["p1"].wire.say(STREAM_HEAD + b"".join(map(chunk, [ROLE, HEL, failure])))
    client.loseConnection()
    assert [record.outcome for record in gateway.records] == ["provider_error"]


def test_f3_three_broken_streams_in_a_row_cool_the_step_down():
    gateway = MemoryGateway()
    for _ in range(3):
        streamed(gateway, ROLE, HEL)
    client = gateway.ask(stream=True)
    gateway.doors["p2"].wire.say(STREAM_HEAD + b"".join(map(chunk, [ROLE, HEL, STOP, DONE])) + LAST_CHUNK)
    assert b"[DONE]" in client.take()
