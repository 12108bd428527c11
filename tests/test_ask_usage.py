"""W4, W5: ``ask_usage`` asks a stream for its usage, and takes the chunk with it out of what the client gets."""

from __future__ import annotations

import json

import pytest
from hypothesis import strategies as st
from pytest_twisted import ensureDeferred
from twisted.internet.error import ConnectionLost

from aigw.protocols.endpoints import ENDPOINTS
from aigw.protocols.meaning import END
from aigw.protocols.scanner import HOLD_STREAM
from tests.harness import HELLO, KEY
from tests.memory import MemoryGateway, body_of
from tests.properties import given
from tests.providers import COMMENT, DONE, ERROR_EVENT, LAST_CHUNK, ROLE, STREAM, STREAM_HEAD, chunk, event, stream
from tests.test_clients import with_openai
from tests.test_hold import unchunked

CHAT = ENDPOINTS["chat/completions"]
USAGE = {"prompt_tokens": 12, "completion_tokens": 60, "total_tokens": 72}
HEL, LO, STOP = STREAM[1:4]


def data(made: object) -> bytes:
    return b"data: " + json.dumps(made).encode() + b"\n\n"


def extra(usage: object = USAGE, **more: object) -> bytes:
    """The chunk as OpenAI sends it."""
    return data(
        {
            "id": "c1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": [],
            "usage": usage,
            **more,
        }
    )


EMPTY = event({"role": "assistant", "content": ""}, usage=USAGE)  # as OpenRouter sends it
TEXT = data({"choices": [{"index": 0, "text": "hello", "logprobs": None, "finish_reason": None}]})
LARGE = event({"content": "x" * (HOLD_STREAM + 5000)})

# What a provider sends; what is in a tuple is not for the client.
STREAMS: dict[str, list] = {
    "as OpenAI sends it": [ROLE, HEL, LO, STOP, (extra(),), DONE],
    "usage: null in the ordinary chunks": [event({"role": "assistant"}, usage=None), event({"content": "a"}, usage=None), event(finish_reason="stop", usage=None), (extra(),), DONE],
    "an empty delta, as OpenRouter sends it": [ROLE, COMMENT, HEL, LO, STOP, (EMPTY,), DONE],
    "an empty delta without a role": [ROLE, HEL, STOP, (event({}, usage=USAGE),), DONE],
    "an empty delta whose members are null": [ROLE, HEL, STOP, (event({"content": None, "tool_calls": None}, usage=USAGE),), DONE],
    "no choices, of other members only known ones": [ROLE, HEL, STOP, (data({"id": "c1", "usage": USAGE}),), DONE],
    "choices: null": [ROLE, HEL, STOP, (data({"id": "c1", "choices": None, "usage": USAGE}),), DONE],
    "other members beside empty choices": [ROLE, HEL, STOP, (extra(time_info={"queue": 1.0}, obfuscation="abc", x_groq={"id": 1}),), DONE],
    "twice": [ROLE, HEL, STOP, (extra({"prompt_tokens": 1}),), (extra(),), DONE],
    "twice, with a comment between": [ROLE, HEL, STOP, (extra(),), COMMENT, (extra(),), COMMENT, DONE],
    "in the last chunk with content": [ROLE, HEL, event({"content": "lo"}, "stop", usage=USAGE), DONE],
    "in the chunk with the finish_reason": [ROLE, HEL, event({}, "stop", usage=USAGE), DONE],
    "there and again": [ROLE, HEL, event({}, "stop", usage={"prompt_tokens": 1}), (extra(),), DONE],
    "in the middle, with content": [ROLE, event({"content": "a"}, usage={"prompt_tokens": 1}), LO, STOP, (extra(),), DONE],
    "in each chunk": [event({"role": "assistant", "content": ""}, usage={"prompt_tokens": 1}), event({"content": "a"}, usage={"prompt_tokens": 2}), event({}, "stop", usage={"prompt_tokens": 3}), (extra(),), DONE],
    "in each chunk, of two choices": [
        data({"choices": [{"index": index, "delta": {"role": "assistant"}, "finish_reason": None}], "usage": {"prompt_tokens": 1}}) for index in (0, 1)
    ] + [HEL, data({"choices": [{"index": 1, "delta": {"content": "b"}, "finish_reason": "stop"}]}), STOP, (extra(),), DONE],
    "at the start": [(extra(),), ROLE, HEL, STOP, DONE],
    "with a tool call": [ROLE, event({"tool_calls": [{"index": 0}]}, usage={"prompt_tokens": 1}), STOP, (extra(),), DONE],
    "with reasoning": [ROLE, HEL, event({"reasoning": "hm"}, usage={"prompt_tokens": 1}), STOP, (extra(),), DONE],
    "with a filter's result in a choice": [ROLE, HEL, STOP, data({"choices": [{"index": 0, "delta": {}, "content_filter_results": {"hate": {}}}], "usage": USAGE}), DONE],
    "with text outside of the choices": [ROLE, HEL, STOP, data({"response": "more", "usage": USAGE}), DONE],
    "with an error": [ROLE, HEL, extra(error={"message": "overloaded"}), DONE],
    "with a detail": [ROLE, HEL, STOP, extra(detail="overloaded")],
    "no choices and no usage": [extra(None, prompt_filter_results=[{"prompt_index": 0}]), ROLE, HEL, STOP, extra(None), (extra(),), DONE],
    "usage that is no object": [ROLE, HEL, STOP, extra(7), extra([USAGE]), extra("12"), (extra(),), DONE],
    "an empty object": [ROLE, HEL, STOP, (extra(),), (extra({}),), DONE],
    "in the words of the model": [ROLE, event({"content": '{"choices":[],"usage":{"total_tokens":1}}'}), STOP, (extra(),), DONE],
    "without a space": [ROLE, HEL, STOP, (extra().replace(b"data: ", b"data:"),), DONE.replace(b": ", b":")],
    "without spaces": [ROLE, HEL, STOP, (b'data:{"choices":[],"usage":%s}\n\n' % json.dumps(USAGE).encode(),), DONE],
    "with spaces in odd places": [ROLE, HEL, STOP, (b'data:  { "choices" : [ ] , "usage" : %s }  \n\n' % json.dumps(USAGE).encode(),), DONE],
    "on two lines": [ROLE, HEL, STOP, (b'data: {"choices":[],\ndata: "usage":%s}\n\n' % json.dumps(USAGE).encode(),), DONE],
    "with other fields": [ROLE, HEL, STOP, (b"event: message\nid: 7\n" + extra(),), DONE],
    "empty lines between": [ROLE, b"\n", HEL, b"\n\n", STOP, b"\n\n\n", (extra(),), b"\n", (extra(),), b"\n\n", DONE],
    "no [DONE]": [ROLE, HEL, STOP, (extra(),)],
    "no [DONE], no empty line": [ROLE, HEL, STOP, (extra().rstrip(),)],
    "no [DONE], one line end": [ROLE, HEL, STOP, COMMENT, (extra()[:-1],)],
    "behind [DONE]": [ROLE, HEL, STOP, DONE, (extra(),)],
    "a BOM in front": [b"\xef\xbb\xbf", (extra(),), ROLE, HEL, STOP, (extra(),), DONE],
    "completions": [TEXT, data({"choices": [{"index": 0, "text": "", "finish_reason": "length"}], "usage": None}), (extra(),), DONE],
    "completions, an empty text": [TEXT, data({"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]}), (data({"choices": [{"index": 0, "text": "", "logprobs": None, "finish_reason": None}], "usage": USAGE}),), DONE],
}  # fmt: skip


def crlf(written: bytes) -> bytes:
    return written.replace(b"\n", b"\r\n")


def cr(written: bytes) -> bytes:
    return written.replace(b"\n", b"\r")


def split(parts: list) -> tuple[bytes, bytes]:
    """What the provider sends, and what the client gets."""
    sent = b"".join([part[0] if isinstance(part, tuple) else part for part in parts])
    return sent, b"".join([part for part in parts if not isinstance(part, tuple)])


def read(*reads: bytes, scanner=None) -> tuple[bytes, dict[str, int]]:
    """What the client gets of these reads, as ``proxy.answers`` passes it on, and the usage."""
    scanner = scanner or CHAT.scanner_without_usage()
    passed, left = b"", list(reads)
    while left:
        given, meaning = scanner.feed(left.pop(0))
        passed += given
        if meaning is END:
            if given.endswith(b"\r") and left and left[0][:1] == b"\n":
                passed += b"\n"
            return passed, scanner.usage.counts()
    return passed + scanner.finish(), scanner.usage.counts()


def cuts(sent: bytes) -> list[int]:
    """Where reads are split: around each end of an event, in each name that matters, and here and there."""
    near = {
        at + step
        for text in (b"\n\n", b"\r\r", b"\n\r\n", b'"usage"', b"[DONE]")
        for at in range(len(sent))
        if sent.startswith(text, at)
        for step in range(-1, 4)
    }
    return sorted(at for at in near | {*range(1, len(sent), 29)} if 0 < at < len(sent))


@pytest.mark.parametrize("ends", [lambda written: written, crlf, cr], ids=["LF", "CRLF", "CR"])
def test_w5_the_extra_chunk_is_not_for_the_client_wherever_the_reads_are_split(ends):
    for name, parts in STREAMS.items():
        sent, wanted = map(ends, split(parts))
        usage = USAGE if name == "behind [DONE]" else read(sent, scanner=CHAT.scanner())[1]
        assert usage, name
        assert read(sent) == (wanted, usage), name
        for at in cuts(sent):
            got, counts = read(sent[:at], sent[at:])
            assert got == wanted, (name, at)
            assert counts == usage or name == "behind [DONE]", (name, at)
        assert read(*[bytes([byte]) for byte in sent])[0] == wanted, name


def test_w5_a_stream_that_is_not_asked_keeps_every_chunk():
    for name, parts in STREAMS.items():
        sent, _ = split(parts)
        got, _ = read(sent, scanner=CHAT.scanner())
        assert got == sent or (name == "behind [DONE]" and sent.startswith(got)), name


@pytest.mark.parametrize("size", [1000, 5000, 70_000, 200_000])
def test_w5_behind_an_event_that_is_passed_on_in_pieces(size):
    """The end of the large event and the extra chunk are in one read, in two, or the empty line is divided."""
    large = event({"content": "x" * (HOLD_STREAM + size)}, usage={"prompt_tokens": 1})
    for ends in (lambda written: written, crlf):
        sent, wanted = map(ends, split([ROLE, HEL, large, (extra(),), LO, STOP, (extra(),), DONE]))
        end = len(ends(ROLE + HEL + large))
        for at in [end + step for step in (-300, -4, -3, -2, -1, 0, 1, 2, 20)]:
            first = [sent[start : min(start + 40_000, at)] for start in range(0, at, 40_000)]
            assert read(*first, sent[at:])[0] == wanted, at
            assert read(*first, *[bytes([byte]) for byte in sent[at:]])[0] == wanted, at


def test_w5_the_rest_of_a_large_event_is_no_chunk_of_its_own():
    """Its second line begins a read, and would be an extra chunk alone."""
    large = b'data: "' + b"x" * (HOLD_STREAM + 10) + b"\n"
    got, _ = read(ROLE + HEL, large, extra(), LO + STOP + DONE)
    assert got == ROLE + HEL + large + extra() + LO + STOP + DONE


@given(
    st.lists(st.sampled_from([ROLE, HEL, LO, COMMENT, b"\n", event({"content": "a"}, usage=USAGE), STOP]), max_size=6),
    st.lists(st.sampled_from([(extra(),), COMMENT, b"\n", (event({}, usage=USAGE),)]), max_size=4),
    st.booleans(),
    st.lists(st.integers(1, 400), max_size=8),
    examples=(60, 5000),
)
def test_w5_every_other_byte_stays(before, behind, is_crlf, sizes):
    ends = crlf if is_crlf else lambda written: written
    sent, wanted = map(ends, split([*before, HEL, STOP, *behind, DONE]))
    reads, at = [], 0
    for size in sizes:
        reads.append(sent[at : at + size])
        at += size
    assert read(*[each for each in [*reads, sent[at:]] if each])[0] == wanted


# Through the gateway


def asking(steps: int = 1, top: dict | None = None, ask: bool = True, **route) -> MemoryGateway:
    names = [f"p{number}" for number in range(1, steps + 1)]
    providers = [{"name": name, "base_url": f"http://{name}/v1", "ask_usage": ask} for name in names]
    return MemoryGateway(steps, {"providers": providers, **(top or {})}, **route)


def chunks(*events: bytes) -> bytes:
    return b"".join(map(chunk, events))


SENT, WANTED = split([ROLE, HEL, LO, STOP, (extra(),), DONE])


def test_w4_the_provider_is_asked_and_the_usage_is_in_the_record():
    gateway = asking()
    client = gateway.ask(stream=True)
    provider = gateway.doors["p1"].wire
    assert json.loads(body_of(provider.take())) == {
        **HELLO, "model": "model-of-p1", "stream": True, "stream_options": {"include_usage": True}
    }  # fmt: skip
    provider.say(STREAM_HEAD + chunks(ROLE, HEL, LO, STOP, extra(), DONE) + LAST_CHUNK)
    assert unchunked(client.take()) == WANTED
    (record,) = gateway.records
    assert (record.usage, record.outcome, record.bytes_out) == (USAGE, "ok", len(WANTED))


@pytest.mark.parametrize(
    ("ask", "options", "gets"),
    [
        (False, None, True),
        (True, {"include_usage": True}, True),
        (True, {"include_usage": False}, True),  # which the provider then does not send
        (True, {"x": 1}, False),
        (True, None, False),
    ],
)
def test_w5_a_client_that_asked_gets_it(ask, options, gets):
    gateway = asking(ask=ask)
    client = gateway.ask(stream=True, **({"stream_options": options} if options else {}))
    gateway.doors["p1"].wire.say(STREAM_HEAD + chunks(SENT) + LAST_CHUNK)
    assert unchunked(client.take()) == (SENT if gets else WANTED)
    assert gateway.records[0].usage == USAGE


def test_w5_the_step_that_answers_decides():
    """The first step was asked, the second one is not: its chunk is passed on."""
    providers = [{"name": f"p{n}", "base_url": f"http://p{n}/v1", "ask_usage": n == 1} for n in (1, 2)]
    gateway = MemoryGateway(2, {"providers": providers})
    client = gateway.ask(stream=True)
    gateway.doors["p1"].wire.say(STREAM_HEAD + chunks(ROLE, ERROR_EVENT))
    assert "stream_options" not in json.loads(body_of(gateway.doors["p2"].wire.take()))
    gateway.doors["p2"].wire.say(STREAM_HEAD + chunks(SENT) + LAST_CHUNK)
    assert unchunked(client.take()) == SENT


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
@pytest.mark.parametrize("route", [{}, {"hold": "whole"}, {"keepalive": "15s"}, {"hedge": {"after": "1s"}}], ids=str)
def test_w5_on_every_kind_of_route(route, size):
    gateway = asking(2, **route)
    client = gateway.ask(stream=True)
    provider = gateway.doors["p1"].wire
    provider.say(STREAM_HEAD)
    for at in range(0, len(SENT), size):
        provider.say(chunk(SENT[at : at + size]))
    provider.say(LAST_CHUNK)
    assert unchunked(client.take()) == WANTED
    assert (gateway.records[0].usage, gateway.records[0].outcome) == (USAGE, "ok")


def test_w5_of_a_hedge_that_wins():
    gateway = asking(2, hedge={"after": "1s"})
    client = gateway.ask(stream=True)
    gateway.clock.advance(1.5)
    gateway.doors["p2"].wire.say(STREAM_HEAD + chunks(SENT) + LAST_CHUNK)
    assert unchunked(client.take()) == WANTED
    assert (gateway.records[0].usage, gateway.records[0].hedge) == (USAGE, "won")


def test_w5_a_keep_alive_comes_in_place_of_it_and_between_two_events():
    gateway = asking(keepalive="15s", idle_timeout="24h")
    client = gateway.ask(stream=True)
    provider = gateway.doors["p1"].wire
    provider.say(STREAM_HEAD + chunks(ROLE, HEL, STOP))
    gateway.clock.advance(10)
    provider.say(chunks(extra()))
    gateway.clock.advance(6)
    provider.say(chunks(DONE) + LAST_CHUNK)
    assert unchunked(client.take()) == ROLE + HEL + STOP + COMMENT + DONE


def test_w5_it_shows_that_the_provider_is_alive():
    gateway = asking(idle_timeout="10s")
    client = gateway.ask(stream=True)
    provider = gateway.doors["p1"].wire
    provider.say(STREAM_HEAD + chunks(ROLE, HEL, STOP))
    gateway.clock.advance(9)
    provider.say(chunks(extra()))
    gateway.clock.advance(9)
    provider.say(chunks(DONE) + LAST_CHUNK)
    assert unchunked(client.take()) == ROLE + HEL + STOP + DONE


def test_w5_it_is_no_output():
    """It never commits an answer: a failure behind it leads to the next step."""
    gateway = asking(2)
    client = gateway.ask(stream=True)
    gateway.doors["p1"].wire.say(STREAM_HEAD + chunks(ROLE, extra(), ERROR_EVENT))
    gateway.doors["p2"].wire.say(STREAM_HEAD + chunks(SENT) + LAST_CHUNK)
    assert unchunked(client.take()) == WANTED


def test_w5_a_stream_that_breaks_behind_it_is_broken():
    gateway = asking()
    client = gateway.ask(stream=True)
    provider = gateway.doors["p1"].wire
    provider.say(STREAM_HEAD + chunks(ROLE, HEL, extra()))
    provider.lost(ConnectionLost())
    got = body_of(client.take())
    assert b"stream_reset" in got
    assert b'"usage": {' not in got
    assert (gateway.records[0].usage, gateway.records[0].outcome) == (USAGE, "stream_reset")


def test_w5_a_client_that_does_not_read_holds_up_the_provider_as_before():
    gateway = asking()
    client = gateway.ask(stream=True)
    provider = gateway.doors["p1"].wire
    provider.say(STREAM_HEAD + chunks(ROLE, HEL))
    client.producer.pauseProducing()
    assert provider.producerState == "paused"
    provider.say(chunks(LO, STOP, extra(), DONE) + LAST_CHUNK)
    client.producer.resumeProducing()
    assert unchunked(client.take()) == WANTED


@ensureDeferred
async def test_w5_the_openai_client_gets_usage_if_it_asked_and_no_chunk_without_choices_else(world):
    """An o-series deployment behind ``rename``, ``remove`` and ``ask_usage``, as the official client finds it."""
    provider = world.provider(stream(ROLE, HEL, LO, STOP, extra(), DONE))
    gateway = world.gateway_of(
        {
            "api_key": KEY,
            "listen": ["tcp:0:interface=127.0.0.1"],
            "providers": [{"name": "azure", "base_url": world.base_url(provider), "api_key": "k1", "ask_usage": True}],
            "routes": [{"name": "route", "steps": [{
                "provider": "azure", "model": "o4", "rename": {"max_tokens": "max_completion_tokens"}, "remove": ["temperature"]
            }]}],
        },
        tls=True,
    )  # fmt: skip

    def use(client):
        more = {"model": "route", "messages": HELLO["messages"], "stream": True, "max_tokens": 9, "temperature": 0.5}
        with client.chat.completions.create(**more) as chunks:
            got = list(chunks)
        assert [each.choices[0].delta.content or "" for each in got] == ["", "hel", "lo", ""]
        assert [each.usage for each in got] == [None] * 4
        with client.chat.completions.create(**more, stream_options={"include_usage": True}) as chunks:
            *_, last = chunks
        assert (last.choices, last.usage.total_tokens) == ([], 72)

    await with_openai(gateway, use)
    first, second = provider.bodies
    assert first == second
    assert (first["max_completion_tokens"], first["stream_options"]) == (9, {"include_usage": True})
    assert not {"max_tokens", "temperature"} & {*first}
    assert [record["usage"] for record in world.records] == [USAGE, USAGE]
