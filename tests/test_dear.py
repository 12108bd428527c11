"""R1, B3: JSON that is dear to read is read in short steps, as exactly as any other, or refused by its count."""

import gc
import itertools
import json
import time
import weakref
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import assume, example
from hypothesis import strategies as st
from twisted.internet.base import DelayedCall
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionLost

from aigw.errors import BadRequest
from aigw.net import slices
from aigw.protocols import envelope, skip, walk
from aigw.protocols.endpoint import Call
from aigw.protocols.endpoints import ENDPOINTS
from aigw.protocols.envelope import Pieces, split_members
from aigw.protocols.requests import dumps
from aigw.protocols.walk import Walk, whole
from tests.calls import begin_to_read, read_call, rewrite
from tests.harness import HELLO
from tests.memory import MemoryGateway, body_of, error_of
from tests.properties import given
from tests.test_openai import _damaged, _is_an_object, _members, _object, _tokens, _written

CHAT, RESPONSES = ENDPOINTS["chat/completions"], ENDPOINTS["responses"]
MEBI = 1024 * 1024
HEAD = b'{"model":"smart","messages":[{"role":"user"}],"x":'
LONE = rb',"z":"\ud800"}'
QUICK = (60, 300)


def many(unit: bytes, size: int, before: bytes, behind: bytes, between: bytes = b",") -> bytes:
    """``unit`` as often as it takes for a body of so many bytes."""
    count = (size - len(before) - len(behind)) // len(unit + between)
    return before + between.join([unit] * count) + behind


def of_members(size: int, tail: bytes = b"}") -> bytes:
    names = itertools.takewhile(lambda number: number * 14 < size, itertools.count())
    return HEAD + b"1," + b",".join([b'"%08x":1' % number for number in names]) + tail


DEEP = b"[" * 800 + b"]" * 800
DEAR: dict[str, tuple[Callable[[int], bytes], str | None]] = {
    "empty lists": (lambda size: many(b"[]", size, HEAD + b"[", b"]}"), None),
    "empty lists and a lone surrogate": (lambda size: many(b"[]", size, HEAD + b"[", b"]" + LONE), None),
    "numbers and a lone surrogate": (lambda size: many(b"1", size, HEAD + b"[", b"]" + LONE), None),
    "pairs of small members": (lambda size: many(b'"a":{}', size, HEAD + b"{", b"}" + LONE), None),
    "deep lists": (lambda size: many(DEEP, size, HEAD + b"[", b"]" + LONE), None),
    "deep lists in a message": (
        lambda size: many(DEEP, size, b'{"model":"smart","messages":[{"role":"u","c":[', b"]}]}"),
        None,
    ),
    "members": (of_members, "The body has over 10000 members at its top level."),
    "members and a lone surrogate": (lambda size: of_members(size, LONE), "The body has over 10000 members"),
    "one member again and again": (lambda size: many(b'"a":1', size, HEAD + b"1,", b"}"), "The body has over 10000"),
    "messages": (
        lambda size: many(b'{"role":"u"}', size, b'{"model":"smart","messages":[', b"]}"),
        "The body has over 100000 messages.",
    ),
    "messages that are none": (
        lambda size: many(b"{}", size, b'{"model":"smart","messages":[', b"]}"),
        "The body has over 100000 messages.",
    ),
    "members of a message": (
        lambda size: many(b'"a":1', size, b'{"model":"smart","messages":[{"role":"u",', b"}]}"),
        "The body has a message with over 10000 members.",
    ),
    "lone surrogates": (lambda size: many(rb"\ud800", size, HEAD + b'"', b'"}', b""), None),
    "pairs of surrogates": (lambda size: many(rb"\ud83d\ude00", size, HEAD + b'"', b'"}', b""), None),
    "backslashes": (lambda size: many(rb"\\", size, HEAD + b'"', b'"' + LONE, b""), None),
    "a string": (lambda size: many(b"x", size, HEAD + b'"', b'"}', b""), None),
    "white space": (lambda size: many(b" ", size, b"{", HEAD[1:] + b"1}", b""), None),
    "white space in an empty list": (lambda size: many(b" ", size, HEAD + b"[", b"]}", b""), None),
    "nothing but white space": (lambda size: b" " * size, "The body is not a JSON object: it ends too early."),
    "a number": (lambda size: many(b"1", size, HEAD, b"}", b""), "The body is not a JSON object: it has a number"),
    "a name": (lambda size: many(b"n", size, HEAD + b'1,"', b'":1}', b""), "The body has a name of over 65536 bytes"),
    "a model": (
        lambda size: many(rb"\n", size, b'{"messages":[{"role":"u"}],"model":"', b'"}', b""),
        "'model' takes over 16384 bytes; it must be a non-empty string.",
    ),
    "a stream": (
        lambda size: many(b"[]", size, b'{"messages":[{"role":"u"}],"model":"m","stream":[', b"]}"),
        "'stream' takes over 16384 bytes; it must be true or false.",
    ),
    "too deep": (lambda size: HEAD + b"[" * size, "The body is not a JSON object: it is nested too deeply."),
    "cut": (lambda size: many(b"[]", size, HEAD + b"[", b""), "The body is not a JSON object: it ends too early."),
}


def steps_of(body: bytes) -> tuple[Call | str, float]:
    """What becomes of a body, and the CPU seconds of its longest step."""
    longest, found = 0.0, None
    while True:
        began = time.process_time()
        try:
            if found is None:
                found = begin_to_read(CHAT, body)
                if isinstance(found, Call):
                    return found, time.process_time() - began
            else:
                next(found)
        except StopIteration as end:
            return end.value, longest
        except BadRequest as error:
            return error.message, longest
        longest = max(longest, time.process_time() - began)


@pytest.mark.parametrize("size", [2 * MEBI, pytest.param(32 * MEBI, marks=pytest.mark.slow)], ids=["2", "32"])
@pytest.mark.parametrize("kind", DEAR)
def test_b3_no_step_holds_the_loop_and_what_can_be_read_is_passed_on(kind, size):
    make, refusal = DEAR[kind]
    body = make(size)
    call, longest = steps_of(body)
    assert longest < 0.05
    if refusal is not None:
        assert isinstance(call, str)
        assert call.startswith(refusal)
        return
    assert isinstance(call, Call)
    pieces = rewrite(call, msgspec.Raw(b'"real"'), "tools")
    sent = b"".join(pieces)
    assert len(sent) == len(pieces)
    expected = body.replace(b'"smart"', b'"real"')
    assert sent == (b"{" + expected[1:].lstrip() if body[1:2] == b" " else expected)


@pytest.mark.parametrize("body", [HEAD + b"1}", HEAD + rb'"\u00e9\ud83d\ude00"}'], ids=["plain", "escapes"])
def test_b3_a_small_body_is_read_at_once(body):
    assert isinstance(begin_to_read(CHAT, body), Call)


@pytest.mark.parametrize("unit", ["[]", '{"a":1}', r'"\ud800"', '"error"', "1"])
def test_b3_a_providers_answer_that_is_dear_to_read_is_read_in_bounded_time(unit):
    """A1: up to 1 MiB of it is held and looked at in one go."""
    members = b",".join(b'"%x":1' % number for number in range(50_000))
    for body in (
        many(unit.encode(), MEBI, b'{"choices":[', b"]}"),
        many(unit.encode(), MEBI, b'{"error":{},"choices":[', rb'],"z":"\ud800"}'),
        many(unit.encode(), MEBI, b'{"choices":[1],"error":[', b"]}"),
        b'{"choices":[1],%s}' % members,
        b'{"choices":[1],"z":"\\ud800",%s}' % members,
    ):
        began = time.process_time()
        assert CHAT.check_answer(body) is None
        assert time.process_time() - began < 0.05
    huge = many(unit.encode(), MEBI, b'{"error":[', rb'],"z":"\ud800"}')
    assert CHAT.check_answer(huge) == ("answered 2xx with an error", None)


def read(body: bytes) -> dict[str, bytes]:
    return {name: bytes(raw) for name, raw in whole(Walk(body).members()).items()}


def by_the_standard_library(body: bytes) -> dict[str, bytes]:
    """The same, made with its decoder."""
    text, decode = body.decode(), json.JSONDecoder(parse_int=len, parse_float=len).raw_decode
    found: dict[str, bytes] = {}
    at = text.index("{") + 1
    while not text[at:].lstrip().startswith("}"):
        at += len(text[at:]) - len(text[at:].lstrip(" \t\r\n,"))
        name, at = decode(text, at)
        at = text.index(":", at) + 1
        at += len(text[at:]) - len(text[at:].lstrip())
        _, end = decode(text, at)
        found[name] = text[at:end].encode()
        at = end
    return found


SMALLEST = 12  # an escaped character, and a digit


def with_pieces_of(size: int, run: Callable[[], object]) -> object:
    before = skip.PIECE, walk._WINDOWS
    skip.PIECE, walk._WINDOWS = size, (max(size, 16),)  # no less than a piece and a number
    try:
        return run()
    finally:
        skip.PIECE, walk._WINDOWS = before


@given(_members, st.integers(SMALLEST, 40), examples=QUICK)
@example([("", '"a"', r'"\ud83d\ude00\ud83d\ude00\ud83d\ude00"', "")], 12)
@example([("", '"a"', r'["\\\\\\\\\\\\\\\\\"\"\"\\"]', "")], 13)
@example([("", '"a"', '{"":[{"a":[1,2,{"b":"c"}],"d":{"e":[]}}]}', " ")], 12)
def test_r1_in_pieces_of_any_size_every_value_keeps_its_bytes(members, size):
    body = _written([(a, k, v.replace("123456789012345678901234567890", "1234567"), b) for a, k, v, b in members])
    expected = by_the_standard_library(body.encode())
    assert read(body.encode()) == expected
    found = with_pieces_of(size, lambda: read(body.encode()))
    assert found == expected
    assert list(found) == list(expected)


@given(
    st.one_of(_damaged(), _object, _tokens, _tokens.map(lambda text: "{" + text + "}")),
    st.integers(SMALLEST, 40),
    examples=(80, 1500),
)
@example('{"a":[[1,2],{"b":"c}}', 12)
@example('{"a":[[1,2],{"b":"c"}}', 12)
@example('{"a":"bcdefghijklmnop", "b"}', 12)
@example('{"a":[1,2,3,4,5,6,7,8,9 10]}', 12)
@example('{"a":{"b":1,"c":2,"d"  ,"e":3}}', 12)
@example('{"a":{"b":1,"c":2,"d":"e":3}}', 12)
@example('{"a":["b","c","d","e" "f","g"]}', 12)
@example('{"a":["b","c","d","e":"f","g"]}', 12)
@example('{"a":[[[[[[[[[[[[}]]]]]]]]]]]]}', 12)
@example('{"a":[1,2,3,4,5]6,"b":1}', 12)
@example('{"a":[1,2,3,4,5,6,7 , ]}', 12)
def test_r1_in_pieces_what_is_an_object_is_what_the_standard_library_says(text, size):
    def verdict() -> bool:
        try:
            read(text.encode())
        except ValueError as error:
            assume("a number of over" not in str(error))
            return False
        return True

    assert with_pieces_of(size, verdict) is _is_an_object(text)


_role = st.sampled_from([*'"u" "" null 1 [] {} "\\ud800" "user"'.split(), '"a long name of a role"'])
_message = st.one_of(
    st.lists(st.tuples(st.sampled_from(['"role"', r'"r\u006fle"', '"content"', '"r"']), _role), max_size=3).map(
        lambda members: "{" + ",".join(f"{name}:{value}" for name, value in members) + "}"
    ),
    _role,
)
_messages = st.one_of(st.lists(_message, max_size=5).map(lambda each: "[" + ", ".join(each) + "]"), _message)


@given(_messages, st.integers(SMALLEST, 40), examples=(80, 1000))
def test_r2_in_pieces_the_same_messages_are_refused(messages, size):
    body = b'{"model":"smart","messages":%s}' % messages.encode()

    def verdict() -> str | None:
        walk_ = Walk(body)
        whole(walk_.members(with_messages=True))
        return walk_.mistake

    plain = body.replace(rb"\ud800", b"x")
    expected = walk.mistake_in_messages(split_members(plain))
    assert verdict() == with_pieces_of(size, verdict) == expected


@given(_members, st.integers(1, 50), examples=QUICK)
def test_r1_a_body_in_pieces_is_the_same_body(members, size):
    found = split_members(_written(members).encode())
    found["model"] = msgspec.Raw(b'"real"')
    pieces = Pieces(found)
    before, envelope.PIECE = envelope.PIECE, size
    try:
        assert b"".join(pieces) == dumps(found)
    finally:
        envelope.PIECE = before
    assert len(pieces) == len(dumps(found))


def test_r1_the_end_of_a_value_is_found_by_what_msgspec_says():
    """There is no other way to learn it without making the value: a release that words it differently fails here."""
    assert [skip.end_of_value(data) for data in (b"1,2", b'{"a":[1]} ]', b'"a" :', b"[]")] == [1, 10, 4, 2]


# Between the steps others are served


LARGE = {**HELLO, "x": [[]] * 2_000_000}


def test_b3_a_large_body_is_read_over_many_turns_and_goes_out_whole():
    world = MemoryGateway(1)
    body = json.dumps(LARGE, separators=(",", ":")).encode()
    world.ask(body)
    provider = world.doors["p1"]
    assert not provider.wires
    world.ask()  # meanwhile
    assert json.loads(body_of(provider.wire.take())) == {**HELLO, "model": "model-of-p1"}
    world.turns()
    first, second = provider.wires
    assert not first.take()
    assert body_of(second.take()) == body.replace(b'"route"', b'"model-of-p1"')


def test_b3_t4_a_client_that_leaves_ends_the_reading_and_nothing_keeps_its_body():
    world = MemoryGateway(1)
    wire = world.ask(json.dumps(LARGE).encode())
    kept = weakref.ref(next(each for each in gc.get_objects() if isinstance(each, Walk)))
    gc.disable()
    try:
        wire.lost(ConnectionLost())
        assert kept() is None
    finally:
        gc.enable()
    assert world.records[-1].status == 499
    world.turns()
    assert not world.doors["p1"].wires


def test_r2_what_is_wrong_with_a_large_body_is_answered():
    world = MemoryGateway(1)
    client = world.ask(of_members(MEBI).replace(b'"smart"', b'"route"'))
    world.turns()
    assert error_of(client.take())["message"] == "The body has over 10000 members at its top level."
    client = world.ask(b'{"model":"nobody","messages":[{"role":"u"}],"x":[%s]}' % b",".join([b"[]"] * MEBI))
    world.turns()
    assert error_of(client.take())["code"] == "model_not_found"


class Turns:
    """A clock of which each turn is called for."""

    def __init__(self) -> None:
        self.due: list[Callable[[], None]] = []

    def callLater(self, seconds: float, call: Callable[[], None]) -> DelayedCall:
        assert seconds == 0
        self.due.append(call)
        return DelayedCall(0, call, (), {}, lambda _: self.due.remove(call), lambda _: None)

    def turn(self) -> None:
        self.due.pop()()


def test_slices_pass_on_what_steps_raise_later_and_share_the_turns():
    turns, done = Turns(), []
    shared = slices.Slices(turns)

    def steps(count: int, end: object):
        for _ in range(count):
            yield
        if isinstance(end, Exception):
            raise end
        return end

    shared.run(steps(2, "at once")).addCallback(done.append)
    assert done == ["at once"]
    with pytest.raises(BadRequest):
        shared.run(steps(2, BadRequest("at once")))
    shared.run(steps(50, "later")).addCallback(done.append)
    shared.run(steps(60, BadRequest("no"))).addErrback(lambda failure: done.append(failure.type))
    ended = shared.run(steps(10**9, "never"))
    ended.addErrback(lambda failure: done.append(failure.type))
    assert done == ["at once"]
    for _ in range(100):
        turns.turn()
        if len(done) == 3:
            break
    assert done == ["at once", "later", BadRequest]
    ended.cancel()
    assert done[3:] == [CancelledError]
    assert not turns.due


# Item 6 of the findings: names in other letters


@pytest.mark.parametrize(
    "name", ["Model", "MODEL", "mOdel", "Stream", "STREAM", "\u017ftream", r"\u004dodel", r"\u017Ftream"]
)
@pytest.mark.parametrize("more", ["", r',"z":"\ud800"'], ids=["msgspec", "lone surrogate"])
def test_r2_model_and_stream_in_other_letters_are_refused(name, more):
    """Providers in Go match names without case: of ``"model":"cheap","Model":"dear"`` they would serve the dear one."""
    with pytest.raises(BadRequest) as caught:
        read_call(RESPONSES, f'{{"model":"smart","{name}":"dear"{more}}}'.encode())
    assert caught.value.param == json.loads(f'"{name}"')
    assert "in lower case" in caught.value.message


@pytest.mark.parametrize("name", ["models", "mode", "stream_options", "Messages", "top_p", "Tools", "modeI", "ſtreams"])
def test_r2_other_names_in_any_letters_pass(name):
    call = read_call(RESPONSES, f'{{"model":"smart","{name}":1}}'.encode())
    assert bytes(call.members[name]) == b"1"


@given(st.text(max_size=8), examples=QUICK)
@example("\u212aey")
def test_r2_a_name_that_folds_to_model_or_stream_is_refused_and_no_other(name):
    """Go compares by simple folding, one character for one; Python's ``casefold`` makes two of a ligature."""
    assume(len(name.casefold()) == len(name))
    body = json.dumps({name: 1, "model": "smart", "stream": False}).encode()
    refused = name.casefold() in ("model", "stream") and name not in ("model", "stream")
    if refused:
        with pytest.raises(BadRequest, match="in lower case"):
            read_call(RESPONSES, body)
    elif name not in ("model", "stream"):
        assert read_call(RESPONSES, body).model == "smart"
