"""W1: what a step changes in a body, and that every other byte of it stays."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from hypothesis import strategies as st

from aigw.config import loader
from aigw.config.yaml_tree import parse
from aigw.errors import ConfigError
from aigw.protocols.endpoint import RawRequest
from aigw.protocols.endpoints import ENDPOINTS
from aigw.protocols.envelope import SMALL, split_members
from aigw.protocols.shaping import UNCHANGED, Difference
from aigw.settings.bodies import BodyChanges, Value, changes_of
from tests.calls import read_call
from tests.harness import AUTH, HELLO, request
from tests.memory import MemoryGateway, body_of, error_of
from tests.properties import given
from tests.providers import STREAM_HEAD, chunk, completion, head
from tests.test_hold import unchunked
from tests.test_multipart import MODEL, form, named, part

CHAT = ENDPOINTS["chat/completions"]
REAL = msgspec.Raw(b'"real"')
FORMAT = b'"response_format":{"type":"json_object"}'


value = get_args(Value)[1].decode  # as the configuration reads it


def changes(remove=(), rename=None, default=None, set=None, conflict=None, ask=False) -> BodyChanges | None:
    given = ({name: value(each) for name, each in (which or {}).items()} for which in (default, set))
    return changes_of(tuple(remove), rename or {}, *given, conflict, ask)


def chat(*members: bytes) -> bytes:
    return b"{%s}" % b",".join([b'"model":"smart"', b'"messages":[{"role":"user"}]', *members])


def shaped(body: bytes, made: BodyChanges | None, endpoint=CHAT) -> tuple[bytes, Difference]:
    sent, difference = endpoint.rewrite(read_call(endpoint, body), REAL, made)
    data = sent if isinstance(sent, bytes) else b"".join(sent)
    assert len(sent) == len(data)
    return data, difference


# The table: what a step has, what a client sends, what the provider gets, and what the difference is.

TABLE = [
    # remove
    ({"remove": ["a"]}, [b'"a":1'], [], {"dropped": ("a",)}),
    ({"remove": ["a"]}, [b'"a":null', b'"b":2'], [b'"b":2'], {"dropped": ("a",)}),
    ({"remove": ["a", "c"]}, [b'"b": 2 '], [b'"b":2'], {}),
    ({"remove": ["A"]}, [b'"a":1'], [b'"a":1'], {}),
    ({"remove": ["a"]}, [b'"\\u0061":1'], [], {"dropped": ("a",)}),
    ({"remove": ["b"]}, [b'"a":{"b":1}'], [b'"a":{"b":1}'], {}),  # the top level only
    ({"remove": ["a.b"]}, [b'"a":{"b":1}'], [b'"a":{"b":1}'], {}),
    # rename: the bytes of the value stay, and so does the place
    ({"rename": {"a": "x"}}, [b'"a":1.0', b'"b":2'], [b'"x":1.0', b'"b":2'], {"renamed": (("a", "x"),)}),
    ({"rename": {"a": "x"}}, [b'"b":2'], [b'"b":2'], {}),
    ({"rename": {"a": "x"}}, [b'"a":1', b'"x":2'], [b'"x":2'], {"dropped": ("a",)}),
    ({"rename": {"a": "x"}}, [b'"x":null', b'"a":1'], [b'"x":null'], {"dropped": ("a",)}),
    ({"rename": {"a": "x", "b": "x"}}, [b'"b":2', b'"a":1'], [b'"x":1'], {"dropped": ("b",), "renamed": (("a", "x"),)}),
    ({"rename": {"a": "b", "b": "c"}}, [b'"a":1'], [b'"c":1'], {"renamed": (("a", "b"), ("b", "c"))}),
    # default: where the member is absent; null is a value
    ({"default": {"a": 1}}, [], [b'"a":1'], {"added": ("a",)}),
    ({"default": {"a": 1}}, [b'"a": 2.50'], [b'"a":2.50'], {}),
    ({"default": {"a": 1}}, [b'"a":null'], [b'"a":null'], {}),
    ({"default": {"b": {"c": [None, True]}, "a": "x"}}, [b'"z":0'], [b'"z":0', b'"b":{"c":[null,true]}', b'"a":"x"'], {"added": ("b", "a")}),
    # set: always, in its place or at the end
    ({"set": {"a": 1}}, [], [b'"a":1'], {"added": ("a",)}),
    ({"set": {"a": 1}}, [b'"a":2', b'"b":3'], [b'"a":1', b'"b":3'], {"replaced": ("a",)}),
    ({"set": {"a": None}}, [b'"a":2'], [b'"a":null'], {"replaced": ("a",)}),
    # in this order
    ({"remove": ["a"], "rename": {"a": "x"}}, [b'"a":1'], [], {"dropped": ("a",)}),
    ({"remove": ["x"], "rename": {"a": "x"}}, [b'"x":1', b'"a":2'], [b'"x":2'], {"dropped": ("x",), "renamed": (("a", "x"),)}),
    ({"remove": ["a"], "default": {"a": 5}}, [b'"a":1', b'"b":2'], [b'"b":2', b'"a":5'], {"replaced": ("a",)}),
    ({"remove": ["a"], "set": {"a": 5}}, [b'"b":2'], [b'"b":2', b'"a":5'], {"added": ("a",)}),
    ({"rename": {"a": "x"}, "default": {"x": 5, "a": 6}}, [b'"a":1'], [b'"x":1', b'"a":6'], {"renamed": (("a", "x"),), "added": ("a",)}),
    ({"rename": {"a": "x"}, "set": {"x": 5}}, [b'"a":1'], [b'"x":5'], {"renamed": (("a", "x"),), "replaced": ("x",)}),
    ({"default": {"a": 1}, "set": {"a": 2}}, [], [b'"a":2'], {"added": ("a",)}),
    ({"default": {"a": 1}, "set": {"b": 2}}, [b'"b":0'], [b'"b":2', b'"a":1'], {"added": ("a",), "replaced": ("b",)}),
    # conflict_resolution comes last
    ({"conflict": "tools"}, [b'"tools":[1]', FORMAT], [b'"tools":[1]'], {"dropped": ("response_format",)}),
    ({"conflict": "tools", "remove": ["tools"]}, [b'"tools":[1]', FORMAT], [FORMAT], {"dropped": ("tools",)}),
    ({"conflict": "tools", "set": {"tools": [1]}}, [FORMAT], [b'"tools":[1]'], {"dropped": ("response_format",), "added": ("tools",)}),
    ({"conflict": "format", "rename": {"functions": "tools"}}, [b'"functions":[1]', FORMAT], [FORMAT], {"dropped": ("functions",)}),
    ({"conflict": "format", "rename": {"a": "b", "b": "tools"}}, [b'"a":[1]', FORMAT], [FORMAT], {"dropped": ("a",)}),
    # what the settings added and it removes was never the client's
    ({"conflict": "format", "default": {"tools": [1], "x": 1}}, [FORMAT], [FORMAT, b'"x":1'], {"added": ("x",)}),
    ({"conflict": "format", "set": {"tools": [1]}}, [b'"tools":[2]', FORMAT], [FORMAT], {"dropped": ("tools",)}),
    ({"conflict": "format", "remove": ["tools"], "set": {"tools": [1]}}, [b'"tools":[2]', FORMAT], [FORMAT], {"dropped": ("tools",)}),
]  # fmt: skip


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_w1_the_table(large):
    filler = [b'"input":"%s"' % (b"x" * SMALL)] if large else []
    for step, client, provider, difference in TABLE:
        sent, found = shaped(chat(*filler, *client), changes(**step))
        assert sent == chat(*filler, *provider).replace(b"smart", b"real"), (step, client)
        assert found == Difference(**difference), (step, client)


def test_w1_every_combination_of_the_four_settings():
    """Against a model that knows lists only: two members, each present or not, and each setting for each of them."""
    for has, remove, rename, default, replace in itertools.product(
        *[[(), ("a",), ("b",), ("a", "b")]] * 2, [{}, {"a": "b"}, {"b": "a"}, {"a": "c"}, {"a": "c", "b": "c"}],
        *[[{}, {"a": 1}, {"b": 2}, {"c": 3}, {"a": 1, "c": 3}]] * 2,
    ):  # fmt: skip
        client = [(name, f"the client's {name}") for name in has]
        left = [each for each in client if each[0] not in remove]
        for old, new in rename.items():
            if new in [name for name, _ in left]:
                left = [each for each in left if each[0] != old]
            left = [(new if name == old else name, text) for name, text in left]
        left += [each for each in default.items() if each[0] not in dict(left)]
        left = [(name, replace.get(name, text)) for name, text in left]
        left += [each for each in replace.items() if each[0] not in dict(left)]
        body = chat(*[b'"%s":"%s"' % (name.encode(), text.encode()) for name, text in client])
        sent, found = shaped(body, changes(remove, rename, default, replace))
        assert [*json.loads(sent).items()][2:] == left, (has, remove, rename, default, replace)
        # Whoever applies the difference to the names that the client sent has the names that the provider gets.
        names = [name for name in has if name not in found.dropped]
        for old, new in found.renamed:
            names = [new if name == old else name for name in names]
        assert sorted([*names, *found.added]) == sorted(dict(left)), (has, remove, rename, default, replace)
        assert set(found.replaced) <= {*names}


NAMES = st.sampled_from(["a", "b", "c", "max_tokens", "user"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda below: st.lists(below, max_size=2) | st.dictionaries(st.text(max_size=3), below, max_size=2),
    max_leaves=5,
)
WRITTEN = st.sampled_from([b"1.0", b"1e5", b'"\\ud83d"', b'{"b" : 1, "b":2}', b"[ ]", b"123456789012345678901234567890", b'"\\/"', b"null"])  # fmt: skip


@given(
    st.dictionaries(NAMES | st.text(min_size=1, max_size=4).filter(lambda name: name.isalnum() and name.isascii()), WRITTEN),
    st.lists(NAMES, max_size=2),
    st.dictionaries(NAMES, NAMES, max_size=2),
    st.dictionaries(NAMES, VALUES, max_size=2),
    st.dictionaries(NAMES, VALUES, max_size=2),
    st.booleans(),
    examples=(60, 3000),
)  # fmt: skip
def test_w1_whatever_is_not_touched_keeps_its_bytes_and_its_place(client, remove, rename, default, replace, large):
    rename = {old: new for old, new in rename.items() if old != new}
    members = [
        b'"%s":%s' % (name.encode(), raw) for name, raw in client.items() if name.lower() not in ("model", "stream")
    ]
    filler = [b'"input":"%s"' % (b"x" * SMALL)] if large else []
    body = chat(*filler, *members)
    sent, _ = shaped(body, changes(remove, rename, default, replace))
    touched = {*remove, *rename, *rename.values(), *default, *replace}
    before, after = split_members(body), split_members(sent)
    kept = [(name, bytes(raw)) for name, raw in before.items() if name not in touched and name != "model"]
    assert [(name, bytes(raw)) for name, raw in after.items() if name not in touched and name != "model"] == kept
    assert [*after][:2] == ["model", "messages"]


def test_w1_without_settings_nothing_is_prepared():
    assert changes_of((), {}, {}, {}, None, False) is None
    assert shaped(chat(b'"a":1'), None) == (chat(b'"a":1').replace(b"smart", b"real"), UNCHANGED)


def test_w1_the_call_is_not_touched():
    call = read_call(CHAT, chat(b'"a":1', b'"b":2'))
    first = CHAT.rewrite(call, REAL, changes(["a"], {"b": "x"}, {"c": 1}, {"messages": []}))
    second = CHAT.rewrite(call, REAL, None)
    assert first[0] == b'{"model":"real","messages":[],"x":2,"c":1}'
    assert second[0] == chat(b'"a":1', b'"b":2').replace(b"smart", b"real")


BODIES = {
    "chat/completions": chat(b'"a":1'),
    "completions": b'{"model":"smart","prompt":"x","a":1}',
    "embeddings": b'{"model":"smart","input":"x","a":1}',
    "responses": b'{"model":"smart","input":"x","a":1}',
    "responses/compact": b'{"model":"smart","input":"x","a":1}',
    "responses/input_tokens": b'{"model":"smart","input":"x","a":1}',
    "messages": chat(b'"a":1'),
    "messages/count_tokens": chat(b'"a":1'),
    "moderations": b'{"model":"smart","input":"x","a":1}',
    "rerank": b'{"model":"smart","query":"x","a":1}',
    "images/generations": b'{"model":"smart","prompt":"x","a":1}',
    "images/edits": b'{"model":"smart","prompt":"x","a":1}',
    "audio/speech": b'{"model":"smart","input":"x","a":1}',
}


def test_w1_at_every_endpoint_that_takes_json():
    assert {*ENDPOINTS} - {*BODIES} == {"images/variations", "audio/transcriptions", "audio/translations"}
    for path, body in BODIES.items():
        call = ENDPOINTS[path].read(RawRequest(ENDPOINTS[path], body, content_type=b"application/json"))
        sent, difference = ENDPOINTS[path].rewrite(call, REAL, changes(["a"], {}, {"d": 1}, {"s": 2}, ask=True))
        assert sent == body.replace(b'"a":1}', b'"d":1,"s":2}').replace(b"smart", b"real"), path
        assert difference == Difference(dropped=("a",), added=("d", "s")), path


def test_w1_a_model_that_was_missing_is_in_front_of_what_is_added():
    sent, _ = shaped(b'{"input":"x"}', changes(default={"a": 1}), ENDPOINTS["moderations"])
    assert sent == b'{"input":"x","model":"real","a":1}'


# ask_usage: what is sent

ASKED = b'"stream_options":{"include_usage":true}'
OPTIONS = [
    ([], [ASKED], {"added": ("stream_options",), "hides_usage": True}),
    ([b'"stream_options":{}'], [ASKED], {"added": ("stream_options.include_usage",), "hides_usage": True}),
    ([b'"stream_options":{ }'], [ASKED], {"added": ("stream_options.include_usage",), "hides_usage": True}),
    ([b'"stream_options":null'], [ASKED], {"added": ("stream_options.include_usage",), "hides_usage": True}),
    (
        [b'"stream_options":{"include_obfuscation" : false, "x":[1.0] }', b'"z":1'],
        [b'"stream_options":{"include_obfuscation" : false, "x":[1.0] ,"include_usage":true}', b'"z":1'],
        {"added": ("stream_options.include_usage",), "hides_usage": True},
    ),
    ([b'"stream_options":{"include_usage":true}'], None, {}),
    ([b'"stream_options":{"include_usage":false}'], None, {}),
    ([b'"stream_options":{"include_usage":null,"x":1}'], None, {}),
    ([b'"stream_options":{"include_us\\u0061ge":false}'], None, {}),
    ([b'"stream_options":"yes"'], None, {}),
    ([b'"stream_options":[]'], None, {}),
    ([b'"stream_options":{"x":"%s"}' % (b"x" * 20_000)], None, {}),
]


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_w4_a_stream_that_lacks_it_is_asked_for_its_usage(path):
    for client, provider, difference in OPTIONS:
        sent, found = shaped(chat(b'"stream":true', *client), changes(ask=True), ENDPOINTS[path])
        wanted = chat(b'"stream":true', *(client if provider is None else provider)).replace(b"smart", b"real")
        assert (sent, found) == (wanted, Difference(**difference)), client


def test_w4_no_other_endpoint_is_asked():
    for path in {*BODIES} - {"chat/completions", "completions"}:
        body = BODIES[path].replace(b'"a":1', b'"stream":true,"stream_format":"sse"')
        call = ENDPOINTS[path].read(RawRequest(ENDPOINTS[path], body, content_type=b"application/json"))
        assert ENDPOINTS[path].rewrite(call, REAL, changes(ask=True)) == (body.replace(b"smart", b"real"), UNCHANGED)


@pytest.mark.parametrize("stream", [b'"stream":false', b'"stream":null', b'"n":1'])
def test_w4_a_plain_request_is_not_asked(stream):
    assert shaped(chat(stream), changes(ask=True)) == (chat(stream).replace(b"smart", b"real"), UNCHANGED)


@pytest.mark.parametrize(
    ("step", "client", "provider", "hides"),
    [
        ({"remove": ["stream_options"]}, [b'"stream_options":{"x":1}'], [], False),
        ({"rename": {"stream_options": "y"}}, [b'"stream_options":{"x":1}'], [b'"y":{"x":1}'], False),
        ({"default": {"stream_options": {"x": 1}}}, [], [b'"stream_options":{"x":1,"include_usage":true}'], True),
        ({"set": {"stream_options": {"include_usage": True}}}, [], [ASKED], False),
        ({"set": {"stream_options": {"x": 1}}}, [ASKED], [b'"stream_options":{"x":1,"include_usage":true}'], False),
    ],
)
def test_w4_the_settings_of_the_step_come_before(step, client, provider, hides):
    sent, found = shaped(chat(b'"stream":true', *client), changes(**step, ask=True))
    assert sent == chat(b'"stream":true', *provider).replace(b"smart", b"real")
    assert found.hides_usage == hides


# Through the gateway

OK = head(Content_Length=str(len(completion()))) + completion()


def gateway_with(*steps: dict, **route) -> MemoryGateway:
    """A route with these settings of its steps, which are at the providers p1, p2 ..."""
    made = [{"provider": f"p{n}", "model": f"m{n}", **step} for n, step in enumerate(steps, 1)]
    return MemoryGateway(len(steps), {"routes": [{"name": "route", "steps": made, **route}]})


def sent_to(gateway: MemoryGateway, name: str) -> dict:
    return json.loads(body_of(gateway.doors[name].wire.take()))


def test_w1_each_step_gets_its_own_body_and_the_answer_names_what_was_dropped():
    gateway = gateway_with({"set": {"a": 1}}, {"rename": {"max_tokens": "max_completion_tokens"}, "remove": ["user"]})
    client = gateway.ask({**HELLO, "max_tokens": 5, "user": "u"})
    assert sent_to(gateway, "p1") == {**HELLO, "model": "m1", "max_tokens": 5, "user": "u", "a": 1}
    gateway.doors["p1"].wire.say(head(500, Content_Length="0"))
    assert sent_to(gateway, "p2") == {**HELLO, "model": "m2", "max_completion_tokens": 5}
    gateway.doors["p2"].wire.say(OK)
    assert b"\r\nx-aigw-dropped: user\r\n" in client.take().lower()
    assert gateway.records[0].dropped == ("user",)


def test_w1_a_repeated_step_sends_the_same_body():
    gateway = gateway_with({"retries": 1, "default": {"a": 1}})
    gateway.ask()
    first = gateway.doors["p1"].wire.take()
    gateway.doors["p1"].wire.say(head(500, Content_Length="0"))
    gateway.clock.advance(1)
    assert body_of(gateway.doors["p1"].wire.take()) == body_of(first)
    assert json.loads(body_of(first))["a"] == 1


def test_w1_a_compressed_body_is_changed_as_any_other():
    gateway = gateway_with({"remove": ["user"], "set": {"seed": 7}})
    body = gzip.compress(json.dumps({**HELLO, "user": "u"}).encode())
    client = gateway.open()
    client.say(request(body, headers={**AUTH, "Content-Encoding": "gzip"}))
    gateway.turns()
    assert sent_to(gateway, "p1") == {**HELLO, "model": "m1", "seed": 7}


IMAGE = b'data: {"type":"image_generation.completed","b64_json":"aGk="}\n\n'
EDITED = IMAGE.replace(b"generation", b"edit")
NUMBERS = [({"default": {"n": 2}}, None, 2), ({"set": {"n": 1}}, 2, 1), ({"remove": ["n"]}, 2, 1), ({"rename": {"n": "number"}}, 2, 1), ({"rename": {"number": "n"}}, None, 3), ({"set": {"n": None}}, 2, 1)]  # fmt: skip


@pytest.mark.parametrize("path", ["images/generations", "images/edits"])
@pytest.mark.parametrize(("step", "asked", "sent"), NUMBERS)
def test_a7_w1_a_stream_of_images_has_as_many_as_the_step_asks_for(path, step, asked, sent):
    gateway = gateway_with(step)
    client = gateway.open()
    numbers = {"number": 3, **({"n": asked} if asked else {})}
    kind = named().decode()
    if path == "images/edits":
        fields = [part(name.encode(), b"%d" % number) for name, number in numbers.items()]
        body: object = form(MODEL, part(b"stream", b"true"), *fields)
        sent = asked if step == {"set": {"n": None}} else sent  # which a form cannot have
        client.say(request(body, f"/v1/{path}", headers={**AUTH, "Content-Type": kind}))
    else:
        client.say(request({"model": "route", "prompt": "x", "stream": True, **numbers}, f"/v1/{path}"))
    gateway.turns()
    provider = gateway.doors["p1"].wire
    image = EDITED if path == "images/edits" else IMAGE
    provider.say(STREAM_HEAD)
    for number in range(sent):
        assert not client.value().endswith(b"\r\n0\r\n\r\n"), number
        provider.say(chunk(image))
    assert unchunked(client.take()) == image * sent
    assert gateway.records[0].outcome == "ok"


# max_body

PADDED = {**HELLO, "user": "u" * 2000}


def size_of(body: dict) -> int:
    return len(json.dumps(body).encode())


@pytest.mark.parametrize(("limit", "fits"), [(size_of(PADDED), True), (size_of(PADDED) - 1, False)])
def test_w3_a_step_with_max_body_is_passed_over_for_a_larger_request(limit, fits):
    gateway = gateway_with({"max_body": limit}, {})
    client = gateway.open()
    client.say(request(json.dumps(PADDED).encode()))
    name = "p1" if fits else "p2"
    assert [*gateway.doors] == ["p1", "p2"]
    assert [bool(gateway.doors[each].wires) for each in ("p1", "p2")] == [fits, not fits]
    gateway.doors[name].wire.take()
    gateway.doors[name].wire.say(OK)
    assert (b"x-aigw-skipped: 1=too_large" in client.take().lower()) == (not fits)
    skipped = [(each.step, each.reason, each.until) for each in gateway.records[0].skipped]
    assert skipped == ([] if fits else [(1, "too_large", None)])


def test_w3_if_the_request_is_too_large_for_every_step_it_is_413():
    gateway = gateway_with({"max_body": 1024}, {"max_body": "1500B"}, keepalive={"every": "1s", "before_output": True})
    client = gateway.ask({**PADDED, "stream": True})
    answered = client.take()
    assert answered.startswith(b"HTTP/1.1 413 ")
    error = error_of(answered)
    assert (error["code"], error["type"]) == ("request_too_large", "invalid_request_error")
    assert "has 2" in error["message"]
    assert error["message"].endswith("no step of the route 'route' takes more than 1500 bytes.")
    assert not gateway.doors["p1"].wires + gateway.doors["p2"].wires
    assert [each.reason for each in gateway.records[0].skipped] == ["too_large", "too_large"]
    assert gateway.records[0].error == "request_too_large"


def test_w3_if_the_others_fail_it_is_the_error_of_those():
    gateway = gateway_with({"max_body": 1024}, {})
    client = gateway.ask(PADDED)
    gateway.doors["p2"].wire.say(head(500, Content_Length="0"))
    answered = client.take()
    assert answered.startswith(b"HTTP/1.1 502 ")
    assert [each["step"] for each in error_of(answered)["attempts"]] == [2]


def test_w3_the_size_is_that_of_the_client_s_body_uncompressed_and_before_changes():
    gateway = gateway_with({"max_body": 1024, "remove": ["user"]}, {"max_body": 4096, "set": {"x": "y" * 9000}})
    client = gateway.open()
    client.say(request(gzip.compress(json.dumps(PADDED).encode()), headers={**AUTH, "Content-Encoding": "gzip"}))
    gateway.turns()
    assert len(sent_to(gateway, "p2")["x"]) == 9000
    assert not gateway.doors["p1"].wires


def test_w3_of_a_hedge_too():
    gateway = gateway_with({}, {"max_body": 1024}, {}, hedge={"after": "1s"})
    gateway.ask({**PADDED, "stream": True})
    gateway.clock.advance(1.5)
    assert [len(gateway.doors[each].wires) for each in ("p1", "p2", "p3")] == [1, 0, 1]
    gateway = gateway_with({}, {"max_body": 1024}, hedge={"after": "1s"})
    gateway.ask({**PADDED, "stream": True})
    gateway.clock.advance(1.5)
    assert [len(gateway.doors[each].wires) for each in ("p1", "p2")] == [1, 0]


@pytest.mark.parametrize("where", [0, 1])
@pytest.mark.parametrize(("given", "hedged"), [({"store": True}, False), ({"store": False}, True), ({"a": 1}, True)])
def test_f8b_a_step_that_adds_state_is_not_hedged(given, hedged, where):
    steps: list[dict] = [{}, {}]
    steps[where] = {"set": given}
    gateway = gateway_with(*steps, hedge={"after": "1s"})
    gateway.ask(stream=True)
    gateway.clock.advance(1.5)
    assert bool(gateway.doors["p2"].wires) == hedged


# The configuration

GOOD = """
api_key: the-gateway-key-of-some-length-1
providers:
  - {name: a, base_url: "https://a.example/v1"}
routes:
  - name: r
    steps:
      - provider: a
        model: m
"""


def loaded(step: str, environ: dict | None = None):
    document = parse(GOOD + step)
    read = loader.build(document.tree, environ or {}, Path("/cfg"), document.mistakes, (), "f.yaml", document.root)
    return read.routes["r"].steps[0]


def test_w1_values_are_json_once_when_the_configuration_is_read():
    step = loaded(
        """
        remove: [seed, "timestamp_granularities[]"]
        rename: {max_tokens: max_completion_tokens}
        default: {temperature: 1.0, user: "${NAME}", n: null, tags: [a, {b: true}], big: 123456789012345678901234567890}
        set: {metadata: {"${NAME}": "x${NAME}"}, text: "\u00fc\U0001f600"}
        max_body: 400KiB
        """,
        {"NAME": 'a"b'},
    )
    assert step.max_body == 400 * 1024
    assert step.changes.remove == ("seed", "timestamp_granularities[]")
    assert step.changes.rename == (("max_tokens", "max_completion_tokens"),)
    assert {name: each.json for name, each in step.changes.default} == {
        "temperature": b"1.0",
        "user": b'"a\\"b"',
        "n": b"null",
        "tags": b'["a",{"b":true}]',
        "big": b"123456789012345678901234567890",
    }
    assert {name: each.json.decode() for name, each in step.changes.set} == {
        "metadata": '{"${NAME}":"xa\\"b"}',
        "text": '"\u00fc\U0001f600"',
    }
    assert [each.text for _, each in step.changes.default] == [b"1.0", b'a"b', None, None, b"123456789012345678901234567890"]  # fmt: skip


MISTAKES = [
    ("remove: [model]", "remove[0]: 'model' cannot be changed, because the step's own model is sent; remove it"),
    ("remove: [Model]", "remove[0]: 'Model' cannot be changed"),
    ("remove: [stream]", "remove[0]: 'stream' cannot be changed, because it decides the kind of answer"),
    ("remove: ['stream[]']", "remove[0]: 'stream[]' cannot be changed"),
    ("rename: {model: x}", "rename.model: cannot be changed"),
    ("rename: {x: STREAM}", "rename.x: 'STREAM' cannot be changed"),
    ("default: {mOdel: x}", "default.mOdel: cannot be changed"),
    ("set: {stream: true}", "set.stream: cannot be changed"),
    ("set: {user: 1, User: 2}", "set.user: is written twice, in upper and lower case; keep one of the two"),
    ("remove: ['a b']", "remove[0]: 'a b' is not the name of a member of a request; write 1 to 64 visible ASCII"),
    ("remove: ['']", "is not the name of a member"),
    ("remove: [3]", "remove[0]: 3 is not the name of a member"),
    ("remove: []", "remove: expected a list with at least one entry"),
    ("remove: a", "remove: expected a list"),
    ("rename: [a]", "rename: expected a mapping"),
    ("rename: {a: a}", "rename.a: is renamed to itself; write another name, or remove it"),
    ("rename: {a: [b]}", "rename.a: a list is not the name of a member"),
    ("set: {a: 2024-01-01}", "set.a: 2024-01-01 is a date, which JSON does not have; write it in quotes"),
    ("set: {a: [2024-01-01 10:00:00]}", "set.a: a list has a date at [0], which JSON does not have"),
    ("set: {a: .nan}", "set.a: nan is infinite or not a number, which JSON does not have; write a number"),
    ("default: {a: {b: -.inf}}", "default.a: a mapping has infinite or not a number at b"),
    ("set: {a: !!binary aGk=}", "set.a: the value is binary data or a set, which JSON does not have"),
    ("set: {a: {1: x}}", "set.a: a mapping has a name that is no string at 1, which JSON does not have"),
    ("set: {a: {on: x}}", "set.a: a mapping has a name that is no string at True"),
    ("max_body: 10", "max_body: 10 is not a size"),
    ("max_body: big", "max_body: 'big' is not a size"),
]


def test_w1_a_mistake_is_named():
    for line, mistake in MISTAKES:
        with pytest.raises(ConfigError) as caught:
            loaded(f"        {line}\n")
        (found,) = caught.value.mistakes
        assert found.startswith("f.yaml, line 10: routes[0].steps[0]."), line
        assert mistake in found, line


@pytest.mark.parametrize(("more", "same"), [({}, True), ({"set": {"a": 1}}, False), ({"max_body": 2048}, False)])
def test_b22_two_steps_that_differ_in_this_are_not_the_same(more, same):
    gateway = MemoryGateway(1, {"routes": [{"name": "r", "steps": [
        {"provider": "p1", "model": "m"}, {"provider": "p1", "model": "m", **more}]}]})  # fmt: skip
    assert any("is the same as step 1" in each for each in gateway.config.warnings) == same
