"""The OpenAI wire, as plain functions: what is read, what is rewritten, what an answer means, how errors look."""

import itertools
import json
import re

import msgspec
import pytest
from hypothesis import example
from hypothesis import strategies as st

from aigw.errors import AllStepsFailed, BadRequest, RouteNotFound, StreamBroken
from aigw.protocols.endpoint import Endpoint
from aigw.protocols.endpoints import ENDPOINTS, model
from aigw.protocols.envelope import split_members
from aigw.protocols.error_bodies import error_body, error_event
from aigw.protocols.refusals import reason_in
from aigw.protocols.requests import TOOL_MEMBERS, dumps
from aigw.protocols.scanner import Meaning
from aigw.secret import Secret
from aigw.settings.bodies import BodyChanges
from aigw.settings.callers import Caller
from tests.calls import read_call, rewrite
from tests.properties import given

CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES = (
    ENDPOINTS[path] for path in ("chat/completions", "completions", "embeddings", "responses")
)
OF_JSON = {path: endpoint for path, endpoint in ENDPOINTS.items() if b"application/json" in endpoint.takes}
NOTHING, OUTPUT, DONE, ERROR = Meaning.SILENCE, Meaning.OUTPUT, Meaning.END, Meaning.ERROR

MESSAGES = b'"messages":[{"role":"user"}]'
RIGHT_MESSAGES = "'messages' must be a non-empty array of objects, each with a non-empty string 'role'"
DEEP = 100_000

QUICK = (60, 300)


def chat(more: bytes) -> bytes:
    """A good chat body with more members behind ``messages``."""
    return b'{"model":"smart",%s,%s}' % (MESSAGES, more)


def sent(body: bytes, conflict_resolution: str | None = None, endpoint=CHAT) -> bytes:
    """What a step with the model ``real`` is sent for ``body``."""
    return rewrite(read_call(endpoint, body), msgspec.Raw(b'"real"'), conflict_resolution)


def nested(depth: int, opening: bytes = b"[", closing: bytes = b"]", core: bytes = b"") -> bytes:
    return opening * depth + core + closing * depth


# R1: only the value of model changes


@pytest.mark.parametrize(
    "members",
    [
        rb'"top_k":5,"x-vendor":{"a":[1,{"b":null}]}',
        rb'"z":1,"a":2,"m":3',
        rb'"seed":123456789012345678901234567890,"n":-0,"big":' + b"9" * 5000,
        rb'"temperature":1.0,"top_p":1E+2,"min_p":0.10,"huge":1e999',
        rb'"a":"\u00e9\/\"\\\n\u0000","b":"caf\u00e9"',
        '"a":"é€😀"'.encode(),
        rb'"pair":"\ud83d\ude00"',
        rb'"a":"\ud800","b":"x\udfffy","c":{"d":["\uDBFF"]}',
        rb'"a":"\ud800","seed":123456789012345678901234567890,"t":1.0,"u":"\u00e9\/"',
        b'"a":{ "b" :\t[ 1 ,\r\n2 ] }',
        b'"a":{"twice":1,"twice":2}',
        b'"":""',
        b'"a":' + nested(200),
    ],
)
def test_r1_other_members_reach_the_provider_as_they_came(members):
    body = b'{"first":0,"model":"smart",%s,"stream":true,%s}' % (MESSAGES, members)
    assert sent(body) == body.replace(b'"smart"', b'"real"')


@pytest.mark.parametrize("endpoint", OF_JSON.values(), ids=OF_JSON)
def test_r1_r3_nothing_is_added_whatever_the_endpoint(endpoint):
    body = b'{"input":[1.0],"model":"smart",%s,"prompt":null}' % MESSAGES
    assert sent(body, endpoint=endpoint) == body.replace(b'"smart"', b'"real"')


@pytest.mark.parametrize("model_name", [rb'"a\"b"', rb'"\ud83d\ude00"', rb'"org/\u006dodel:free"', '"modèle"'.encode()])
def test_r1_the_model_may_be_written_in_any_way(model_name):
    call = read_call(CHAT, b'{"model":%s,%s}' % (model_name, MESSAGES))
    assert call.model == json.loads(model_name)


def test_r1_white_space_around_members_is_not_part_of_their_values():
    body = b' {\r\n "model" : "smart" ,\t"messages" : [ {"role":"user"} ] , "n" :\n1.0 } \n'
    assert sent(body) == b'{"model":"real","messages":[ {"role":"user"} ],"n":1.0}'


@pytest.mark.parametrize("key", [r"\ud800", r"x\udc00y", r"a\"\ud800", r"\u00e9\ud800"])
def test_r1_a_key_may_hold_a_lone_surrogate(key):
    body = chat(b'"%s":1.0,"last":"\\ud800"' % key.encode())
    pairs = json.loads(sent(body), object_pairs_hook=list)
    assert [name for name, _ in pairs] == ["model", "messages", json.loads(f'"{key}"'), "last"]
    assert b":1.0," in sent(body)
    assert rb'"\ud800"}' in sent(body)


@pytest.mark.parametrize("tail", [b"", rb',"z":"\ud800"'], ids=["msgspec", "lone surrogate"])
def test_r1_of_a_key_that_stands_twice_the_last_counts(tail):
    body = b'{"model":"first","n":1,"model":"smart",%s,"n":2,"mod\\u0065l":"last"%s}' % (MESSAGES, tail)
    call = read_call(CHAT, body)
    assert call.model == "last"
    assert json.loads(sent(body), object_pairs_hook=list)[:2] == [("model", "real"), ("n", 2)]
    with pytest.raises(BadRequest):
        read_call(CHAT, b'{"model":"good","model":"",%s%s}' % (MESSAGES, tail))


@pytest.mark.parametrize("tail", [b"", rb',"z":"\ud800"'], ids=["msgspec", "lone surrogate"])
def test_b3_members_have_a_bound(tail):
    members = b",".join(b'"m%d":1' % number for number in range(10_000))
    with pytest.raises(BadRequest, match=r"^The body has over 10000 members at its top level\.$"):
        read_call(CHAT, chat(members + tail))
    few = members.rpartition(b',"m9995"')[0]
    assert bytes(read_call(CHAT, chat(few + tail)).members["m9994"]) == b"1"


TOO_DEEP = {
    "unknown member": chat(b'"d":' + nested(DEEP)),
    "objects": chat(b'"d":' + nested(DEEP, b'{"a":', b"}", b"1")),
    "beside a lone surrogate": chat(rb'"z":"\ud800","d":' + nested(DEEP)),
    "objects beside a lone surrogate": chat(rb'"z":"\ud800","d":' + nested(DEEP, b'{"a":', b"}", b"1")),
    "around a lone surrogate": chat(b'"d":' + nested(DEEP, core=rb'"\ud800"')),
    "messages": b'{"model":"smart","messages":' + nested(DEEP) + b"}",
    "content": b'{"model":"smart","messages":[{"role":"user","content":' + nested(DEEP) + b"}]}",
    "model": b'{"model":' + nested(DEEP) + b"," + MESSAGES + b"}",
    "stream": chat(b'"stream":' + nested(DEEP)),
    "never closed": b'{"a":' * DEEP,
    "top level": nested(DEEP),
}


@pytest.mark.parametrize("body", TOO_DEEP.values(), ids=TOO_DEEP)
def test_r1_nesting_beyond_the_parser_is_refused(body):
    with pytest.raises(BadRequest):
        read_call(CHAT, body)


@pytest.mark.parametrize("tail", [b"", rb',"z":"\ud800"'], ids=["msgspec", "lone surrogate"])
def test_r1_at_no_depth_does_it_crash(tail):
    """Around the recursion limit each parser gives up at a depth of its own."""
    verdicts = set()
    for depth in (*range(50, 3000, 50), *range(950, 1050)):
        body = b'{"model":"smart","messages":[{"role":"user","content":%s}]%s}' % (nested(depth), tail)
        try:
            verdicts.add(read_call(CHAT, body).model)
        except BadRequest as error:
            verdicts.add(error.status)
    assert verdicts == {"smart", 400}


@pytest.mark.parametrize(
    "body",
    [
        b"\xef\xbb\xbf" + chat(b'"n":1'),
        b"\xef\xbb\xbf" + chat(rb'"n":"\ud800"'),
        chat(b'"n":1').decode().encode("utf-16"),
        chat(b'"n":NaN'),
        chat(b'"n":Infinity'),
        chat(b'"n":[-Infinity]'),
        chat(rb'"n":NaN,"z":"\ud800"'),
        chat(rb'"z":"\ud800","n":{"a":-Infinity}'),
        chat(b'"n":1') + b"x",
        chat(b'"n":1') + b"{}",
        chat(b'"n":1') + b"\0",
        chat(rb'"n":"\ud800"') + b"x",
        chat(rb'"n":"\ud800"') + b" {}",
        chat(b'"n":1,'),
        chat(rb'"n":"\ud800",'),
        chat(b'"n":01'),
        chat(b'"n":+1'),
        chat(b'"n":1.'),
        chat(b'"n":.5'),
        chat(b"'n':1"),
        chat(b"n:1"),
        chat(b'"n" 1'),
        chat(rb'"n":"\ud800" "m":1'),
        chat(rb'"n":"\ud800",,"m":1'),
        chat(rb'"n":"\q"'),
        chat(rb'"n":"\u12"'),
        chat(rb'"n":"\ud800\u12"'),
        chat(b'"n":"\n"'),
        chat(b'"n":"\\ud800\x01"'),
        chat(b'"n":1 /* why */'),
        chat(rb'"n":"\ud800"')[:-1],
        chat(rb'"n":"\ud800"')[:-2],
    ],
)
def test_r1_what_is_no_json_is_refused(body):
    with pytest.raises(BadRequest) as caught:
        read_call(CHAT, body)
    assert caught.value.message.startswith("The body is not a JSON object: ")
    assert caught.value.param is None


def test_r1_a_number_that_nobody_reads_may_have_any_size():
    digits = b"9" * 100_000
    assert sent(chat(b'"n":' + digits)).endswith(b":" + digits + b"}")
    assert sent(chat(rb'"z":"\ud800","n":' + digits)).endswith(b":" + digits + b"}")


# R1 as properties

_hex = st.sampled_from("0 9 a F d D 8 c e".split())
_string_part = st.one_of(
    st.sampled_from([r"\"", r"\\", r"\/", r"\b", r"\f", r"\n", r"\r", r"\t", " ", "é", "😀", "\x7f", "\u2028"]),
    st.tuples(_hex, _hex, _hex, _hex).map(lambda four: "\\u" + "".join(four)),
    st.characters(min_codepoint=32, exclude_characters='"\\', exclude_categories=["Cs"]),
)
_string = st.lists(_string_part, max_size=6).map(lambda parts: '"{}"'.format("".join(parts)))
_space = st.sampled_from(["", "", " ", "\t", "\r\n", " \n "])
_scalar = st.one_of(
    st.sampled_from("null true false 0 -0 1.0 1.50 1E+5 -2e-7 1e999 123456789012345678901234567890".split()), _string
)


def _compound(inner):
    def array(parts):
        return "[" + ",".join(f"{a}{v}{b}" for a, v, b in parts) + "]"

    def objects(parts):
        return "{" + ",".join(f"{a}{k}{b}:{a}{v}{b}" for a, k, v, b in parts) + "}"

    return st.one_of(
        st.lists(st.tuples(_space, inner, _space), min_size=1, max_size=3).map(array),
        st.lists(st.tuples(_space, _string, inner, _space), min_size=1, max_size=3).map(objects),
        st.sampled_from(["[]", "{}", "[ ]"]),
    )


_value = st.recursive(_scalar, _compound, max_leaves=8)
_members = st.lists(st.tuples(_space, _string, _value, _space), max_size=5)


def _written(members):
    return "{" + ",".join(f"{a}{key}{b}:{b}{value}{a}" for a, key, value, b in members) + "}"


_object = _members.map(_written)


@given(_members, examples=QUICK)
def test_r1_every_value_keeps_its_bytes(members):
    expected = {json.loads(key): value.encode() for _, key, value, _ in members}
    found = split_members(_written(members).encode())
    assert {key: bytes(raw) for key, raw in found.items()} == expected
    assert list(found) == list(expected)
    again = split_members(dumps(found))
    assert [(key, bytes(raw)) for key, raw in again.items()] == [(key, bytes(raw)) for key, raw in found.items()]


def _refuse(constant):
    raise ValueError(constant)


def _is_an_object(text: str) -> bool:
    """What the standard library says; the sizes of numbers do not matter."""
    try:
        return isinstance(json.loads(text, parse_constant=_refuse, parse_int=len, parse_float=len), dict)
    except ValueError:
        return False


@st.composite
def _damaged(draw):
    """A JSON object in which a piece was replaced, so that it may or may not still be one."""
    text = draw(_object)
    at = draw(st.integers(0, len(text)))
    until = draw(st.integers(at, min(len(text), at + 3)))
    piece = draw(st.text(alphabet='{}[]",:\\u0d8 \n\x0b\xa01.-eEtn\ufeff', max_size=3))
    return text[:at] + piece + text[until:]


_tokens = st.lists(
    st.sampled_from(
        [
            *r'{ } [ ] , : " "a" "\ud800" "\uD83D\uDE00" "\u123" \ 1 - .5 01 1. 1e NaN null nul Infinity //'.split(),
            *(" ", "\n", "\x00", "\x0c", "\ufeff"),
        ]
    ),
    max_size=12,
).map("".join)


@given(st.one_of(_damaged(), _object, _tokens, _tokens.map(lambda text: "{" + text + "}")), examples=(60, 1000))
@example('{"a":1}\x0c')
@example('{"a":"\\ud800"}\xa0')
@example('\ufeff{"a":"\\ud800"}')
def test_r1_what_is_an_object_is_what_the_standard_library_says(text):
    try:
        split_members(text.encode())
    except ValueError:
        taken = False
    else:
        taken = True
    assert taken is _is_an_object(text)


_almost = st.tuples(_object, st.binary(max_size=4), st.integers(0, 60)).map(
    lambda parts: parts[0].encode()[: parts[2]] + parts[1] + parts[0].encode()[parts[2] :]
)


@given(
    st.one_of(st.binary(), _almost, _almost.map(lambda more: chat(b'"x":%s' % more))),
    st.sampled_from([*OF_JSON]),
    examples=QUICK,
)
@example(b'{"messages":[{"role":"\xff"}],"model":"a"}', "chat/completions")
@example(b'{"model":"a","messages":[{"role":"\\ud800","\xff":1}]}', "chat/completions")
@example(b'{"model":"a","\xff":"\\ud800"}', "responses")
@example(b'{"\\ud800":1,"model":"a","\xff":2}', "responses")
def test_r2_whatever_bytes_come_they_are_read_or_refused(body, path):
    try:
        call = read_call(ENDPOINTS[path], body)
    except BadRequest as error:
        json.loads(error_body(error))
    else:
        assert call.model or call.endpoint.may_lack_model
        rewrite(call, msgspec.Raw(b'"real"'), "tools")


@pytest.mark.parametrize("member", ["model", "stream"])
def test_r2_a_value_that_is_not_utf_8_is_refused(member):
    body = {"model": b'"smart"', "stream": b"true", member: b'"a\xff"'}
    with pytest.raises(BadRequest) as caught:
        read_call(RESPONSES, b'{"model":%s,"stream":%s}' % (body["model"], body["stream"]))
    assert caught.value.param == member


# R2: validation is moderate

NOT_A_MODEL = "'model' must be a non-empty string."
NOT_A_STREAM = "'stream' must be true or false."
NO_MESSAGES = "'messages' is wrong: " + RIGHT_MESSAGES
BAD_MESSAGE = "'messages[%d]' is wrong: " + RIGHT_MESSAGES


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        (b"", "The body is empty; it must be a JSON object.", None),
        (b" ", "The body is empty; it must be a JSON object.", None),
        (b"[]", "The body is not a JSON object: ", None),
        (b"null", "The body is not a JSON object: ", None),
        (b'"model"', "The body is not a JSON object: ", None),
        (b"model=smart", "The body is not a JSON object: ", None),
        (b'{"model":"smart"', "The body is not a JSON object: ", None),
        (b"{}", "'model' is missing; it must be a non-empty string.", "model"),
        (b'{"Model":"smart"}', "'model' is missing", "model"),
        (b'{"model":null}', NOT_A_MODEL, "model"),
        (b'{"model":7}', NOT_A_MODEL, "model"),
        (b'{"model":["smart"]}', NOT_A_MODEL, "model"),
        (b'{"model":""}', NOT_A_MODEL, "model"),
        (rb'{"model":"\ud800"}', NOT_A_MODEL, "model"),
        (b'{"model":"smart","stream":1}', NOT_A_STREAM, "stream"),
        (b'{"model":"smart","stream":"true"}', NOT_A_STREAM, "stream"),
        (b'{"model":"smart","stream":[]}', NOT_A_STREAM, "stream"),
        (b'{"model":"smart"}', "'messages' is missing; it must be a non-empty array of objects.", "messages"),
        (b'{"model":"smart","messages":null}', NO_MESSAGES, "messages"),
        (b'{"model":"smart","messages":[]}', NO_MESSAGES, "messages"),
        (b'{"model":"smart","messages":"hi"}', NO_MESSAGES, "messages"),
        (b'{"model":"smart","messages":{"role":"user"}}', NO_MESSAGES, "messages"),
        (b'{"model":"smart","messages":["hi"]}', BAD_MESSAGE % 0, "messages[0]"),
        (b'{"model":"smart","messages":[null]}', BAD_MESSAGE % 0, "messages[0]"),
        (b'{"model":"smart","messages":[{}]}', BAD_MESSAGE % 0, "messages[0]"),
        (b'{"model":"smart","messages":[{"role":"user"},[]]}', BAD_MESSAGE % 1, "messages[1]"),
        (b'{"model":"smart","messages":[{"role":"user"},{"role":""}]}', BAD_MESSAGE % 1, "messages[1]"),
        (b'{"model":"smart","messages":[{"role":null}]}', BAD_MESSAGE % 0, "messages[0]"),
        (b'{"model":"smart","messages":[{"role":1}]}', BAD_MESSAGE % 0, "messages[0]"),
        (b'{"model":"smart","messages":[{"content":"\\ud800"}]}', BAD_MESSAGE % 0, "messages[0]"),
        (b'{"model":"smart","messages":[{"role":"user"},{"role":"","a":"\\ud800"}]}', BAD_MESSAGE % 1, "messages[1]"),
        (b'{"model":"smart","messages":[{"role":"user","a":"\\ud800"},7]}', BAD_MESSAGE % 1, "messages[1]"),
        (b'{"model":"smart","messages":"\\ud800"}', NO_MESSAGES, "messages"),
    ],
)
def test_r2_bad_input_is_refused_by_the_name_of_the_field(body, message, param):
    with pytest.raises(BadRequest, match=re.escape(message)) as caught:
        read_call(CHAT, body)
    shape = json.loads(error_body(caught.value))["error"]
    assert (caught.value.status, shape["type"], shape["param"]) == (400, "invalid_request_error", param)


def test_r2_the_message_does_not_repeat_what_the_client_wrote():
    with pytest.raises(BadRequest) as caught:
        read_call(CHAT, b'{"model":"smart","messages":[{"role":{"private":"words"}}]}')
    assert "private" not in caught.value.message


@pytest.mark.parametrize(
    "messages",
    [
        b'[{"role":"developer","content":"be brief"}]',
        b'[{"role":"tool","tool_call_id":"1","content":"42"}]',
        b'[{"role":"anything at all"}]',
        rb'[{"role":"\ud800"}]',
        b'[{"role":"user","content":null}]',
        b'[{"role":"user","content":[]}]',
        b'[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:"}}]}]',
        b'[{"role":"user","content":7}]',
        rb'[{"role":"user","content":"\ud800"},{"role":"assistant","content":"\udfff"}]',
        b'[{"role":"user","content":1e999}]',
        b'[{"role":"user","content":' + b"9" * 5000 + b"}]",
        rb'[{"role":"user","content":"\ud800","n":' + b"9" * 5000 + b"}]",
        b'[{"content":"late role","role":"assistant","tool_calls":[{"id":"1"}],"x":1}]',
    ],
)
def test_r2_odd_but_good_messages_pass(messages):
    body = b'{"model":"smart","messages":' + messages + b"}"
    assert sent(body) == body.replace(b"smart", b"real")


@pytest.mark.parametrize(
    ("member", "stream"),
    [(b'"stream":true', True), (b'"stream":false', False), (b'"stream":null', False), (b"", False)],
)
def test_r2_stream(member, stream):
    body = b'{"model":"smart",%s%s%s}' % (MESSAGES, b"," if member else b"", member)
    assert read_call(CHAT, body).stream is stream


@pytest.mark.parametrize("endpoint", OF_JSON.values(), ids=OF_JSON)
@pytest.mark.parametrize("more", [b'"n":1', rb'"n":"\ud800"'], ids=["at once", "in steps"])
def test_r2_a_call_carries_what_the_hop_before_it_found_out(endpoint, more):
    """The caller goes along as an object, not as a name: limits will be asked of it."""
    team = Caller("team", Secret("sk-of-the-team"))
    call = read_call(endpoint, chat(more), {b"accept": b"Accept: */*\r\n"}, "req-1", team)
    assert (call.endpoint, call.headers, call.request_id) == (endpoint, {b"accept": b"Accept: */*\r\n"}, "req-1")
    assert call.caller is team


# R3: the other endpoints


@pytest.mark.parametrize("endpoint", [COMPLETIONS, EMBEDDINGS, RESPONSES], ids=lambda endpoint: endpoint.path)
@pytest.mark.parametrize("more", [b"", b',"messages":7', b',"input":null', b',"input":"x"', b',"prompt":["a","b"]'])
def test_r3_elsewhere_a_model_is_all_that_is_asked(endpoint, more):
    body = b'{"model":"smart"%s}' % more
    assert sent(body, endpoint=endpoint) == body.replace(b"smart", b"real")
    with pytest.raises(BadRequest, match="'model' is missing"):
        read_call(endpoint, b'{"x":1%s}' % more)


ANSWERS = {
    "chat/completions": "choices",
    "completions": "choices",
    "embeddings": "data",
    "responses": "output",
    "responses/compact": "output",
    "responses/input_tokens": "input_tokens",
    "messages": "content",
    "messages/count_tokens": "input_tokens",
    "moderations": "results",
    "rerank": "results",
    "images/generations": "data",
    "images/edits": "data",
    "images/variations": "data",
    "audio/transcriptions": "text",
    "audio/translations": "text",
    "audio/speech": None,  # which is no JSON
}


def test_r3_the_endpoints():
    assert {path: endpoint.path for path, endpoint in ENDPOINTS.items()} == {path: path for path in ANSWERS}


# B8: tools against response_format

FORMAT = b'{"type":"json_object"}'
TOOLS = {None: False, b"null": False, b"[]": False, b'[{"type":"function"}]': True}
FORMATS = {None: False, b"null": False, b"[]": False, FORMAT: True, b"{}": True}


@pytest.mark.parametrize("resolution", ["tools", "format", None])
def test_b8_conflict_resolution(resolution):
    """Every mixture of tools, functions and response_format; what goes with tools stands in each body."""
    for tools, functions, form in itertools.product(TOOLS, TOOLS, FORMATS):
        members = {
            "model": b'"smart"',
            "messages": b'[{"role":"user"}]',
            "tool_choice": b'"auto"',
            "tools": tools,
            "parallel_tool_calls": b"true",
            "response_format": form,
            "functions": functions,
            "function_call": b'"auto"',
            "n": b"1.0",
        }
        members = {name: raw for name, raw in members.items() if raw is not None}
        body = b"{%s}" % b",".join(b'"%s":%s' % (name.encode(), raw) for name, raw in members.items())
        conflict = (TOOLS[tools] or TOOLS[functions]) and FORMATS[form]
        drops = {"tools": {"response_format"}, "format": set(TOOL_MEMBERS), None: set()}[
            resolution if conflict else None
        ]
        kept = {name: raw for name, raw in members.items() if name not in drops} | {"model": b'"real"'}
        found = split_members(sent(body, resolution))
        assert {name: bytes(raw) for name, raw in found.items()} == kept, (tools, functions, form)


def test_b8_what_format_drops():
    assert set(TOOL_MEMBERS) == {"tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"}


@pytest.mark.parametrize("resolution", ["tools", "format"])
def test_b8_an_empty_list_with_space_in_it_is_empty(resolution):
    body = chat(b'"tools":[ ],"functions":[\n],"response_format":%s' % FORMAT)
    assert sent(body, resolution) == body.replace(b"smart", b"real")


def test_b8_the_call_itself_is_not_touched():
    call = read_call(CHAT, chat(b'"tools":[1],"response_format":' + FORMAT))
    first = rewrite(call, msgspec.Raw(b'"one"'), "tools")
    second = rewrite(call, msgspec.Raw(b'"two"'), "format")
    third = rewrite(call, msgspec.Raw(b'"three"'), None)
    assert (b"tools" in first, b"response_format" in first) == (True, False)
    assert (b"tools" in second, b"response_format" in second) == (False, True)
    assert (b"tools" in third, b"response_format" in third) == (True, True)


# The same at the Responses API, where the format is text.format

SCHEMA = b'{"type":"json_schema","name":"x","schema":{"type":"object","n":1.0}}'


def response(*members: bytes) -> bytes:
    return b'{"model":"smart","input":"x",%s}' % b",".join(members)


@pytest.mark.parametrize("form", [SCHEMA, FORMAT, b' { "type" : "json_object" } '])
def test_b8_tools_drop_text_format_and_nothing_else_of_text(form):
    tools, call = b'"tools":[{"type":"function"}]', b'"tool_choice":"auto"'
    body = response(tools, call, b'"text":{"verbosity": "low","format":%s,"more":[1.0, 2],"\\u00e9":"\\ud800"}' % form)
    found = split_members(sent(body, "tools", RESPONSES))
    assert bytes(found["tools"]) == b'[{"type":"function"}]'
    text = {name: bytes(raw) for name, raw in split_members(bytes(found["text"])).items()}
    assert text == {"verbosity": b'"low"', "more": b"[1.0, 2]", "é": b'"\\ud800"'}
    kept = split_members(sent(body, "format", RESPONSES))
    assert {"tools", "tool_choice"}.isdisjoint(kept)
    assert b"format" in bytes(kept["text"])
    assert sent(body, None, RESPONSES) == body.replace(b"smart", b"real")


def test_b8_a_text_with_nothing_but_a_format_becomes_an_empty_one():
    body = response(b'"tools":[1]', b'"text":{"format":%s}' % SCHEMA)
    assert sent(body, "tools", RESPONSES) == b'{"model":"real","input":"x","tools":[1],"text":{}}'


@pytest.mark.parametrize("resolution", ["tools", "format"])
@pytest.mark.parametrize(
    "text",
    [
        b"null",
        b"[]",
        b'"format"',
        b"{}",
        b'{"verbosity":"low"}',
        b'{"format":null}',
        b'{"format":{"type":"text"}}',
        b'{"format": {"type": "text"}, "verbosity":"low"}',
    ],
)
def test_b8_without_a_format_there_is_no_conflict_in_text(resolution, text):
    body = response(b'"tools":[1]', b'"text":' + text)
    assert sent(body, resolution, RESPONSES) == body.replace(b"smart", b"real")
    body = response(b'"text":{"format":%s}' % SCHEMA, b'"tools":[]')
    assert sent(body, resolution, RESPONSES) == body.replace(b"smart", b"real")


@pytest.mark.parametrize("resolution", ["tools", "format"])
def test_b8_text_is_the_default_format_and_conflicts_with_nothing(resolution):
    for form in (b'{"type":"text"}', b'{ "type" : "text" }'):
        body = chat(b'"tools":[1],"response_format":' + form)
        assert sent(body, resolution) == body.replace(b"smart", b"real")


@pytest.mark.parametrize("resolution", ["tools", "format"])
def test_b8_each_endpoint_looks_at_its_own_format_only(resolution):
    body = chat(b'"tools":[1],"text":{"format":%s}' % SCHEMA)
    assert sent(body, resolution) == body.replace(b"smart", b"real")
    body = response(b'"tools":[1]', b'"response_format":' + SCHEMA)
    assert sent(body, resolution, RESPONSES) == body.replace(b"smart", b"real")


@pytest.mark.parametrize(
    ("endpoint", "body", "resolution", "dropped"),
    [
        (CHAT, chat(b'"tools":[1],"response_format":%s' % FORMAT), "tools", ("response_format",)),
        (CHAT, chat(b'"tools":[1],"tool_choice":1,"response_format":%s' % FORMAT), "format", ("tools", "tool_choice")),
        (CHAT, chat(b'"tools":[1]'), "format", ()),
        (RESPONSES, response(b'"tools":[1]', b'"text":{"format":%s}' % FORMAT), "tools", ("text.format",)),
        (RESPONSES, response(b'"tools":[1]', b'"text":{"format":%s}' % FORMAT), "format", ("tools",)),
        (RESPONSES, response(b'"tools":[1]', b'"text":{"format":%s}' % FORMAT), None, ()),
    ],
)
def test_b8_what_was_dropped_is_named(endpoint, body, resolution, dropped):
    changes = resolution and BodyChanges(conflict_resolution=resolution)
    assert endpoint.rewrite(read_call(endpoint, body), msgspec.Raw(b'"real"'), changes)[1].dropped == dropped


@pytest.mark.parametrize("large", [False, True])
def test_r3_embeddings_are_never_streamed(large):
    more = b',"input":"%s"' % (b"x" * 300_000 * large)
    assert read_call(EMBEDDINGS, b'{"model":"m","stream":true%s}' % more).stream is False
    assert read_call(COMPLETIONS, b'{"model":"m","stream":true%s}' % more).stream is True


# A1: whole answers

EMPTY = "answered 2xx with an empty body"
NOT_JSON = "answered 2xx with a body that is not a JSON object"
AN_ERROR = "answered 2xx with an error"


@pytest.mark.parametrize(
    ("body", "mistake", "said"),
    [
        (b'{"choices":[{"message":{"content":"hi"}}]}', None, None),
        (b'{"choices":[]}', "answered 2xx without anything in `choices`", None),
        (b'\n{"choices":[{}]}\n', None, None),
        (b'\xef\xbb\xbf{"choices":[{}]}', None, None),
        (rb'{"choices":[{"message":{"content":"\ud800"}}]}', None, None),
        (b'{"something":"else"}', "answered 2xx without anything in `choices`", None),
        (b'{"choices":[{}],"error":null}', None, None),
        (b'{"error":null}', "answered 2xx without anything in `choices`", None),
        (b'{"choices":[{}],"error":{"message":"partly"}}', None, None),
        (b'{"choices":[{"error":{"message":"inside"}}]}', AN_ERROR, "inside"),
        (b"", EMPTY, None),
        (b" \r\n\t", EMPTY, None),
        (b"<html>502 Bad Gateway</html>", NOT_JSON, None),
        (b"null", NOT_JSON, None),
        (b"[]", NOT_JSON, None),
        (b'"hi"', NOT_JSON, "hi"),
        (b'data: {"choices":[{}]}\n\n', NOT_JSON, None),
        (b'{"choices":[{"message"', NOT_JSON, None),
        (b'{"choices":[NaN]}', None, None),
        (b'{"choices":[{}]}{"choices":[{}]}', NOT_JSON, None),
        (b'{"error":{"message":"no","code":500}}', AN_ERROR, "no"),
        (b'{"error":"no"}', AN_ERROR, "no"),
        (b'{"error":{"message":"no"},"choices":null}', AN_ERROR, "no"),
        (b'{"error":{"message":"no"},"choices":[]}', AN_ERROR, "no"),
        (b'{"error":{"message":"no"},"data":[1]}', AN_ERROR, "no"),
        (rb'{"error":{"message":"\ud800"}}', AN_ERROR, "?"),
        (b'{"error":%s}' % (b"9" * 5000), AN_ERROR, None),
        (b'{"error":%s}' % nested(900), AN_ERROR, None),
    ],
)
def test_a1_what_counts_as_an_answer(body, mistake, said):
    assert CHAT.check_answer(body) == (mistake and (mistake, said))


@pytest.mark.parametrize("endpoint", ENDPOINTS.values(), ids=ENDPOINTS)
def test_a1_the_member_that_makes_an_answer_differs_by_endpoint(endpoint):
    for member in {*ANSWERS.values(), "else"} - {None}:
        value = {"text": b'"x"', "input_tokens": b"1"}.get(member, b"[1]")
        error = b'{"error":{"message":"no"},"%s":%s}' % (member.encode(), value)
        mistake = AN_ERROR if ANSWERS[endpoint.path] else "answered 2xx with text instead of audio"
        expected = None if member == ANSWERS[endpoint.path] else (mistake, "no")
        assert endpoint.check_answer(error) == expected, member


@pytest.mark.parametrize("body", [nested(DEEP), b'{"choices":%s}' % nested(DEEP), b'{"error":' * DEEP])
def test_a1_nesting_beyond_the_parser_is_no_answer(body):
    assert CHAT.check_answer(body) == (NOT_JSON, None)


# A2: streamed events


def meaning_of(endpoint: Endpoint, event: bytes) -> tuple[Meaning, object]:
    """What a scanner says of a stream that begins with the event, and the error object that it found."""
    scanner = endpoint.scanner()
    event += b"\n\n"  # also behind one that is whole
    passed, meaning = scanner.feed(event)
    assert passed == event or meaning is not OUTPUT
    assert scanner.has_output or meaning is not OUTPUT
    return meaning, scanner.error


def is_complete(endpoint: Endpoint, data: bytes) -> bool:
    """What a scanner says at the end of a stream whose rest, behind the first output, is this."""
    scanner = endpoint.scanner()
    scanner.feed(b"data: output\n\n")
    passed, _ = scanner.feed(data)
    rest = scanner.finish()
    assert passed + rest == data
    return scanner.complete


def delta(members: bytes, more: bytes = b'"finish_reason":null') -> bytes:
    """A chat event whose one choice has these members in its delta."""
    return b'data: {"id":"1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{%s},%s}]}\n\n' % (
        members,
        more,
    )


def text(members: bytes) -> bytes:
    """A completions event with one choice."""
    return b'data: {"object":"text_completion","choices":[{"index":0,%s}]}\n\n' % members


# What means the same in the stream of every endpoint.
ANYWHERE = [
    # the stream itself
    (b"\n", NOTHING, None),
    (b": ping\n\n", NOTHING, None),
    (b":\r\n\r\n", NOTHING, None),
    (b": OPENROUTER PROCESSING\r\r", NOTHING, None),
    (b"event: ping\n\n", NOTHING, None),
    (b"id: 1\nretry: 3000\n\n", NOTHING, None),
    (b"data:\n\n", NOTHING, None),
    (b"data\n\n", NOTHING, None),
    (b"data:  \n\n", NOTHING, None),
    (b'event: ping\ndata: {"type": "ping"}\n\n', NOTHING, None),
    (b'data: {"type":"keepalive"}\n\n', NOTHING, None),
    (b"event: ping\ndata: {}\n\n", NOTHING, None),
    # the end
    (b"data: [DONE]\n\n", DONE, None),
    (b"data:[DONE]\r\n\r\n", DONE, None),
    (b"data: [DONE] \r\r", DONE, None),
    (b": bye\nevent: done\ndata: [DONE]\n\n", DONE, None),
    (b"\xef\xbb\xbfdata: [DONE]\n\n", DONE, None),
    # failures
    (b"event: error\n\n", ERROR, "error"),
    (b"event: error\ndata: not json\n\n", ERROR, "error"),
    (b'event: error\ndata: {"message":"no"}\n\n', ERROR, {"message": "no"}),
    (b'event: error\ndata: {"error":{"message":"no"}}\n\n', ERROR, {"message": "no"}),
    (b'event: error\ndata: "no"\n\n', ERROR, "no"),
    (b'event:error\r\ndata:{"message":"no"}\r\n\r\n', ERROR, {"message": "no"}),
    (b'data: {"error":{"message":"no"}}\n\n', ERROR, {"message": "no"}),
    (b'data: {"error":"no"}\n\n', ERROR, "no"),
    (b'data: {"error":\ndata: {"message":"no"}}\n\n', ERROR, {"message": "no"}),
    (b'\xef\xbb\xbfdata: {"error":"no"}\n\n', ERROR, "no"),
    (b'data: {"type":"error","message":"no"}\n\n', ERROR, {"type": "error", "message": "no"}),
    (b'data: {"type":"error","error":{"message":"no"}}\n\n', ERROR, {"message": "no"}),
    (b'data: {"choices": [{"del\n\n', ERROR, "the data of an event is malformed JSON"),
    # when in doubt, it is output
    (b"data: hello\n\n", OUTPUT, None),
    (b"data: [DONE\n\n", OUTPUT, None),
    (b"data: [1]\n\n", OUTPUT, None),
    (b"data: null\n\n", OUTPUT, None),
    (b'data: "text"\n\n', OUTPUT, None),
    (b'data: {"unheard":"of"}\n\n', OUTPUT, None),
    (b'data: {"type":["list"]}\n\n', OUTPUT, None),
    (b'data: {"type":{"an":"object"}}\n\n', OUTPUT, None),
    (b'data: {"type":null}\n\n', OUTPUT, None),
    (b'data: {"x":"\xff"}\n\n', OUTPUT, None),
    (b"data: %s\n\n" % (b"9" * 5000), OUTPUT, None),
    (b"data: %s\n\n" % nested(DEEP), OUTPUT, None),
]

CHAT_EVENTS = [
    (delta(b""), NOTHING, None),
    (delta(b'"role":"assistant"'), NOTHING, None),
    (delta(b'"role":"assistant","content":""'), NOTHING, None),
    (delta(b'"role":"assistant","content":null,"refusal":null'), NOTHING, None),
    (delta(b'"content":[],"tool_calls":[],"reasoning":"","audio":null'), NOTHING, None),
    (delta(b'"content":""', b'"finish_reason":null,"logprobs":{"content":[]}'), NOTHING, None),
    (delta(b'"content":""', b'"content_filter_results":{"hate":{"filtered":false}}'), NOTHING, None),
    (delta(b'"content":""', b'"finish_reason":""'), NOTHING, None),
    (b'data: {"choices":[],"prompt_filter_results":[{"prompt_index":0}]}\n\n', NOTHING, None),
    (b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":0}}\n\n', NOTHING, None),
    (b'data: {"choices":[],"error":null}\n\n', NOTHING, None),
    (b'data: {"choices":\r\ndata: [{"delta":{"role":"assistant"}}]}\r\n\r\n', NOTHING, None),
    (b'\xef\xbb\xbfdata: {"choices":[{"delta":{"role":"assistant"}}]}\r\r', NOTHING, None),
    (delta(b'"content":"hi"'), OUTPUT, None),
    (delta(b'"content":" "'), OUTPUT, None),
    (delta(b'"content":"\\ud800"'), OUTPUT, None),
    (delta(b'"content":[{"type":"text","text":"hi"}]'), OUTPUT, None),
    (delta(b'"role":"assistant","content":"hi"'), OUTPUT, None),
    (delta(b'"content":null,"reasoning_content":"hm"'), OUTPUT, None),
    (delta(b'"reasoning":"hm"'), OUTPUT, None),
    (delta(b'"reasoning_details":[{"type":"reasoning.text"}]'), OUTPUT, None),
    (delta(b'"refusal":"no"'), OUTPUT, None),
    (delta(b'"tool_calls":[{"index":0,"function":{"name":"f","arguments":""}}]'), OUTPUT, None),
    (delta(b'"function_call":{"name":"f"}'), OUTPUT, None),
    (delta(b'"audio":{"id":"1"}'), OUTPUT, None),
    (delta(b'"never_heard_of":1'), OUTPUT, None),
    (delta(b"", b'"finish_reason":"stop"'), OUTPUT, None),
    (delta(b"", b'"finish_reason":"content_filter"'), OUTPUT, None),
    (delta(b'"content":"hi"').replace(b"\n", b"\r\n"), OUTPUT, None),
    (delta(b'"content":"hi"').replace(b"\n", b"\r"), OUTPUT, None),
    (b'data: {"choices":[{"delta":{}},{"index":1,"delta":{"content":"hi"}}]}\n\n', OUTPUT, None),
    (b'data: {"choices":[{"message":{"content":"hi"}}]}\n\n', OUTPUT, None),
    (b'data: {"choices":[{"delta":"hi"}]}\n\n', OUTPUT, None),
    (b'data: {"choices":["hi"]}\n\n', OUTPUT, None),
    (b'data: {"choices":[null]}\n\n', OUTPUT, None),
    (b'data: {"choices":null}\n\n', NOTHING, None),
    (b'data: {"choices":{"delta":{}}}\n\n', OUTPUT, None),
    (b'data: {"error":{"message":"no"},"choices":[{"delta":{"content":""}}]}\n\n', ERROR, {"message": "no"}),
    (b'data: {"error":{"message":"no"},"choices":[{"finish_reason":"error"}]}\n\n', ERROR, {"message": "no"}),
]

COMPLETIONS_EVENTS = [
    (text(b'"text":"","finish_reason":null'), NOTHING, None),
    (text(b'"text":"","logprobs":null,"finish_reason":null'), NOTHING, None),
    (b'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\n', NOTHING, None),
    (text(b'"text":"hi","finish_reason":null'), OUTPUT, None),
    (text(b'"text":"\\n"'), OUTPUT, None),
    (text(b'"text":"","finish_reason":"length"'), OUTPUT, None),
]

RESPONSES_EVENTS = [
    *(
        (b'event: %s\ndata: {"type":"%s","response":{"error":null}}\n\n' % (kind, kind), NOTHING, None)
        for kind in (
            b"response.created",
            b"response.queued",
            b"response.in_progress",
            b"response.output_item.added",
            b"response.content_part.added",
        )
    ),
    *(
        (b'event: %s\ndata: {"type":"%s","delta":"hi"}\n\n' % (kind, kind), OUTPUT, None)
        for kind in (
            b"response.output_text.delta",
            b"response.refusal.delta",
            b"response.reasoning_summary_text.delta",
            b"response.function_call_arguments.delta",
            b"response.audio.delta",
            b"response.something.new",
        )
    ),
    (b'event: response.completed\ndata: {"type":"response.completed","delta":"hi"}\n\n', DONE, None),
    (b'event: response.incomplete\ndata: {"type":"response.incomplete","delta":"hi"}\n\n', DONE, None),
    (
        b'event: response.failed\ndata: {"type":"response.failed","response":{"error":{"message":"no"}}}\n\n',
        ERROR,
        {"message": "no"},
    ),
    (b'event: error\ndata: {"type":"error","message":"no"}\n\n', ERROR, {"type": "error", "message": "no"}),
]


def _short(value):
    return value[:60].decode(errors="replace") if isinstance(value, bytes) else None


@pytest.mark.parametrize(("event", "meaning", "said"), ANYWHERE, ids=_short)
def test_a2_what_an_event_means_anywhere(event, meaning, said):
    for endpoint in ENDPOINTS.values():
        assert meaning_of(endpoint, event) == (meaning, said), endpoint.path


@pytest.mark.parametrize(("event", "meaning", "said"), CHAT_EVENTS, ids=_short)
def test_a2_what_an_event_means_in_chat(event, meaning, said):
    assert meaning_of(CHAT, event) == (meaning, said)


@pytest.mark.parametrize(("event", "meaning", "said"), COMPLETIONS_EVENTS, ids=_short)
def test_a2_what_an_event_means_in_completions(event, meaning, said):
    assert meaning_of(COMPLETIONS, event) == (meaning, said)


@pytest.mark.parametrize(("event", "meaning", "said"), RESPONSES_EVENTS, ids=_short)
def test_a2_what_an_event_means_in_responses(event, meaning, said):
    assert meaning_of(RESPONSES, event) == (meaning, said)


_parts = st.sampled_from(
    [
        *b'data: event:error {"choices": {"type": {"delta": "delta" [DONE] "x" null [ ] { } : , 1 \xff'.split(),
        *(b"\n", b"\r\n", b" "),
    ]
)


@given(
    st.lists(_parts, max_size=14).map(b"".join) | _object.map(lambda said: b"data: " + said.encode()), examples=QUICK
)
@example(b'data: {"type":[]}')
def test_a2_s7_every_event_means_something(event):
    for endpoint in ENDPOINTS.values():
        meaning, _ = meaning_of(endpoint, event)
        assert meaning in Meaning


@given(st.sampled_from(["type", "choices", "error", "delta"]), _value, examples=QUICK)
def test_a2_s7_no_value_of_a_known_member_surprises(name, value):
    for endpoint, shape in itertools.product(ENDPOINTS.values(), ('{"%s":%s}', '{"choices":[{"%s":%s}]}')):
        meaning, _ = meaning_of(endpoint, b"data: " + (shape % (name, value)).encode())
        assert meaning in Meaning


# A4: what says that a stream is complete

DONE_ANYWHERE = [
    (b"data: [DONE]\n\n", True),
    (b"data:[DONE]\n\n", True),
    (b"data: [DONE]", True),
    (b"data: {}\n\ndata: [DONE]\n\n", True),
    (b"data: {}\r\n\r\ndata: [DONE]\r\n\r\n", True),
    (b"data: {}\r\rdata: [DONE]\r\r", True),
    (b"event: done\ndata: [DONE]\n\n", True),
    (b": data: [DONE]\n\n", False),
    (b"metadata: [DONE]\n\n", False),
    (b"data: {}\n\n", False),
    (b'data: {"a":"data: [DONE]"}\n\n', False),
    (b'data: {"a":"\\ndata: [DONE]\\n\\n"}\n\n', False),
    (b'data: {"a":"[DONE]"}\n\n', False),
    (b'data: "[DONE]"\n\n', False),
]


@pytest.mark.parametrize(("data", "complete"), DONE_ANYWHERE)
def test_a4_done_says_that_a_stream_is_complete(data, complete):
    for endpoint in (CHAT, COMPLETIONS):
        assert is_complete(endpoint, data) is complete, endpoint.path


@pytest.mark.parametrize("data", [data for data, done in DONE_ANYWHERE if done])
def test_a4_done_alone_is_no_end_of_a_response(data):
    """Nothing but an event of its own completes one; the ``[DONE]`` is to go on behind ours."""
    scanner = RESPONSES.scanner()
    scanner.feed(b"data: output\n\n")
    passed, _ = scanner.feed(data)
    passed += scanner.finish()
    assert passed + scanner.last == data
    assert b"[DONE]" in scanner.last
    assert scanner.failure is not None
    assert (scanner.failure.code, scanner.finished) == ("stream_truncated", False)


@pytest.mark.parametrize(
    ("data", "complete"),
    [
        (delta(b"", b'"finish_reason":"stop"'), True),
        (delta(b'"content":"hi"', b'"finish_reason": "length"'), True),
        (delta(b"", b'"finish_reason"\t: "tool_calls"'), True),
        (text(b'"text":"","finish_reason":"stop"'), True),
        (delta(b'"content":"hi"') + delta(b"", b'"finish_reason":"stop"') + b": bye\n\n", True),
        (delta(b'"content":"hi"'), False),
        (delta(b'"content":"hi"', b'"finish_reason" : null'), False),
        (delta(b'"content":"hi"', b'"finish_reason":""'), False),
        (delta(b'"content":"hi"', b'"native_finish_reason":"stop"'), False),
        (delta(b'"content":"finish_reason"'), False),
        (delta(b'"content":"finish_reason","x":"stop"'), False),
        (delta(rb'"content":"\"finish_reason\":\"stop\""'), False),
        (delta(rb'"content":"\"finish_reason\": \"stop\"}]}\n\ndata: [DONE]\n\n"'), False),
        (b'data: {"type":"response.completed"}\n\n', False),
    ],
)
def test_a4_a_finish_reason_completes_a_stream(data, complete):
    for endpoint in (CHAT, COMPLETIONS):
        assert is_complete(endpoint, data) is complete, endpoint.path


@pytest.mark.parametrize(
    ("data", "complete"),
    [
        (b'event: response.completed\ndata: {"type":"response.completed","response":{}}\n\n', True),
        (b'data: {"sequence_number":9, "type" : "response.incomplete"}\n\n', True),
        (b'data: {"type":"response.failed"}\n\n', True),
        (b'data: {"type":"response.output_text.delta","delta":"response.completed"}\n\n', False),
        (b'data: {"type":"response.created"}\n\n', False),
        (b'data: {"type":"response.completed.not"}\n\n', False),
        (rb'data: {"delta":"\"type\":\"response.completed\""}' + b"\n\n", False),
        (delta(b"", b'"finish_reason":"stop"'), False),
    ],
)
def test_a4_a_response_is_complete_when_it_says_so(data, complete):
    assert is_complete(RESPONSES, data) is complete


@given(
    st.text(alphabet='"\\:{}[]\r\n \u2028ab', max_size=20),
    st.sampled_from(list(ENDPOINTS)),
    st.booleans(),
    examples=QUICK,
)
@example('"finish_reason":"stop"', "chat/completions", True)
@example('\n\ndata: [DONE]\n\n"finish_reason":"stop"', "chat/completions", False)
@example('{"type":"response.completed"}', "responses", False)
def test_a4_what_a_model_writes_never_completes_a_stream(text, path, ascii_only):
    for hidden in (text + '"finish_reason":"stop"', text + "\ndata: [DONE]\n", text + '"type":"response.completed"'):
        for shape in ({"a": hidden}, {hidden: None}, [hidden, hidden]):
            event = f"data: {json.dumps(shape, ensure_ascii=ascii_only)}\n\n".encode()
            assert not is_complete(ENDPOINTS[path], event)


# Error shapes


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"message": "no"}, "no"),
        ("no", "no"),
        ({"message": ["no"]}, "no"),
        ({"detail": "no"}, "no"),
        ({}, None),
        ([], None),
        (7, None),
        (None, None),
    ],
)
def test_f6_the_message_of_an_error_object(said, message):
    assert reason_in(said) == message


def test_s4_errors_have_the_openai_shape():
    error = RouteNotFound("No such route.", param="model")
    assert json.loads(error_body(error)) == {
        "error": {
            "message": "No such route.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    }


def test_f6_details_are_members_of_the_error():
    error = AllStepsFailed("None.", details={"attempts": [{"step": 1}]})
    assert json.loads(error_body(error))["error"] == {
        "message": "None.",
        "type": "upstream_error",
        "param": None,
        "code": "all_steps_failed",
        "attempts": [{"step": 1}],
    }


def test_f6_s7_a_provider_may_say_lone_surrogates():
    """JSON allows them as escapes, so they reach the message; the error must still be told."""
    mistake = CHAT.check_answer(rb'{"error":{"message":"bad \ud800 text"}}')
    assert mistake is not None
    error = AllStepsFailed("None.", details={"attempts": [{"message": reason_in(mistake[1])}]})
    told = json.loads(error_body(error))["error"]["attempts"][0]["message"]
    assert told.startswith("bad ")


@pytest.mark.parametrize("code", ["stream_truncated", "stream_idle_timeout", "stream_reset"])
def test_a4_a_broken_stream_ends_in_one_event_that_clients_raise(code):
    event = error_event(StreamBroken(code, 'It said "bye"\n\nand left.'))
    assert event.startswith(b"data: {")
    assert event.endswith(b"}\n\n")
    assert event.count(b"\n") == 2
    assert json.loads(event[6:]) == {
        "error": {"message": 'It said "bye"\n\nand left.', "type": "upstream_error", "param": None, "code": code}
    }
    assert meaning_of(CHAT, event)[0] is ERROR
    assert not is_complete(CHAT, event)


def test_b4_a_route_as_a_model():
    assert model("org/smart", 1700000000) == {
        "id": "org/smart",
        "object": "model",
        "created": 1700000000,
        "owned_by": "ai-gateway",
    }
