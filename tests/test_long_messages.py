"""R2: the roles of long messages are found without reading the texts. Where that says yes, a decoder says so too."""

from __future__ import annotations

import json
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import strategies as st

from aigw.protocols import walk
from aigw.protocols.envelope import split_members
from aigw.protocols.long_messages import surely_have_roles
from tests.properties import given

LONG = "A long text, of one sentence. " * 3000


def message(role: object = "user", content: object = LONG, **more: object) -> dict:
    return {"role": role, "content": content, **more}


def array(*messages: object, **how: object) -> bytes:
    return json.dumps(messages, **how).encode()


#   what is known to have roles, and what is left to a decoder
CASES: dict[str, tuple[bytes, bool]] = {
    "one": (array(message()), True),
    "several": (array(message("system"), message("user"), message("assistant")), True),
    "in lines": (array(message("system"), message(), indent=2), True),
    "content first": (array({"content": LONG, "role": "user"}, message()), True),
    "quotes in it": (array(message(content=LONG + 'He said: "No."' + LONG)), True),
    "a backslash before a quote": (array(message(content=LONG + '\\"')), False),
    "a backslash at its end": (array(message(content=LONG + "\\")), False),
    "many quotes": (array(message(content='"a"' * 20_000)), False),
    "many quotes behind a text": (array(message(content=LONG + '"a"' * 20_000)), False),
    "many messages": (array(*[message(content="a text")] * 2000), False),
    "short": (array(message(content="hi")), True),
    "no role": (array({"content": LONG}), False),
    "no role in the second": (array(message(), {"content": LONG}), False),
    "an empty role": (array(message("")), False),
    "an empty role behind": (array({"content": LONG, "role": ""}), False),
    "a role that is no string": (array(message(7)), False),
    "two roles": (array(message())[:-2] + b', "role": ""}]', False),
    "an escaped name": (array(message())[:-2] + rb', "r\u006fle": ""}]', False),
    "an escaped role": (array(message("caf\u00e9")), False),
    "no object": (array(message(), "text"), False),
    "an array in it": (array(message(), [message()]), False),
    "parts": (array(message(content=[{"type": "text", "text": LONG}])), False),
    "another member": (array(message(name="x")), False),
    "no content": (array({"role": "user", "x": LONG}), False),
    "an object": (json.dumps(message()).encode(), False),
    "a text": (json.dumps(LONG).encode(), False),
}


@pytest.mark.parametrize("case", CASES)
def test_r2_what_is_known_of_long_messages(case):
    written, known = CASES[case]
    raw = split_members(b'{"messages": %s }' % written)["messages"]
    assert surely_have_roles(raw) is known
    if known:
        assert refused(raw) is None


def refused(raw: msgspec.Raw) -> str | None:
    """By the decoder alone."""
    with patch.object(walk, "surely_have_roles", lambda _: False):
        return walk.mistake_in_messages({"messages": raw})


_name = st.sampled_from(['"role"', '"content"', r'"r\u006fle"', '"name"'])
_value = st.sampled_from(['"user"', '"u"', '""', "1", "null", "[]", "{}", r'"a\"b"', r'"\\"', r'"\\\""', '"}]"', '"é"'])
_item = st.one_of(
    st.lists(st.tuples(_name, _value), max_size=4).map(lambda each: "{" + ", ".join(map(" : ".join, each)) + "}"),
    st.sampled_from(['{"role":"user","content":"hi"}', '{"content":"hi", "role": "user" }']),
    _value,
)
_array = st.tuples(st.lists(_item, max_size=4), st.sampled_from([",", " ,\n"])).map(
    lambda each: "[" + each[1].join(each[0]) + "]"
)


@given(st.one_of(_array, _item), examples=(200, 3000))
def test_r2_messages_of_which_a_decoder_refuses_one_are_never_known_to_have_roles(text):
    raw = split_members(b'{"messages":%s}' % text.encode())["messages"]
    assert not (surely_have_roles(raw) and refused(raw))
