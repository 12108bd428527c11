"""W2: what a step changes in a form, and that every other byte of it stays."""

from __future__ import annotations

import email
import email.policy
import json

import msgspec
import pytest
from hypothesis import strategies as st

from aigw.protocols.endpoint import Call, RawRequest
from aigw.protocols.endpoints import ENDPOINTS
from aigw.protocols.shaping import Difference
from aigw.protocols.walk import whole
from tests.harness import AUTH, request
from tests.memory import body_of
from tests.properties import given
from tests.providers import head
from tests.test_multipart import BOUNDARY, FILE, MODEL, TEXT, TRANSCRIPTIONS, form, named, part
from tests.test_shaping import changes, gateway_with

REAL = part(b"model", b"real")


def field(name: str, text: str = "x", **more: bytes) -> tuple[bytes, bytes]:
    return part(name.encode(), text.encode(), **more)


def shaped(body: bytes, made, path: str = TRANSCRIPTIONS) -> tuple[bytes, Difference]:
    endpoint = ENDPOINTS[path]
    call = endpoint.read(RawRequest(endpoint, body, content_type=named()))
    call = call if isinstance(call, Call) else whole(call)
    parts, difference = endpoint.rewrite(call, msgspec.Raw(b'"real"'), made)
    data = b"".join(parts)
    assert len(parts) == len(data)
    return data, difference


def new(name: str, text: str) -> tuple[bytes, bytes]:
    return field(name, text)


LANGUAGE, PROMPT = field("language", "de"), field("prompt", "a\r\nb")
ENCODED = field("language", "ZGU=", headers=b"\r\nContent-Transfer-Encoding: base64")
AS_FILE = field("language", "de", more=b'; filename="l.txt"')
GRANULARITY = "timestamp_granularities[]"

# What a step has, the parts between model and file that a client sends, what the provider gets there and behind the file.
TABLE = [
    ({"remove": ["language"]}, [LANGUAGE, PROMPT], [PROMPT], [], {"dropped": ("language",)}),
    ({"remove": ["language"]}, [PROMPT], [PROMPT], [], {}),
    ({"remove": [GRANULARITY]}, [field(GRANULARITY, "word"), LANGUAGE, field(GRANULARITY, "segment")], [LANGUAGE], [], {"dropped": (GRANULARITY,)}),
    ({"remove": ["file"]}, [], [], [], {}),  # never the file
    ({"remove": ["language"]}, [AS_FILE], [AS_FILE], [], {}),
    ({"remove": ["language"]}, [ENCODED], [ENCODED], [], {}),
    ({"remove": ["language"]}, [AS_FILE, LANGUAGE], [AS_FILE], [], {"dropped": ("language",)}),
    ({"rename": {"language": "lang"}}, [LANGUAGE, PROMPT], [field("lang", "de"), PROMPT], [], {"renamed": (("language", "lang"),)}),
    ({"rename": {"language": "lang"}}, [LANGUAGE, field("lang", "fr")], [field("lang", "fr")], [], {"dropped": ("language",)}),
    ({"rename": {"language": "file"}}, [LANGUAGE], [], [], {"dropped": ("language",)}),
    ({"rename": {"file": "audio"}}, [], [], [], {}),
    ({"rename": {"language": "lang"}}, [field("language", "de", headers=b"\r\nContent-Type: text/plain; charset=utf-8")], [field("lang", "de", headers=b"\r\nContent-Type: text/plain; charset=utf-8")], [], {"renamed": (("language", "lang"),)}),
    ({"rename": {GRANULARITY: "g[]"}}, [field(GRANULARITY, "a"), field(GRANULARITY, "b")], [field("g[]", "a"), field("g[]", "b")], [], {"renamed": ((GRANULARITY, "g[]"),)}),
    ({"default": {"language": "de"}}, [], [], [LANGUAGE], {"added": ("language",)}),
    ({"default": {"language": "de"}}, [field("language", "")], [field("language", "")], [], {}),
    ({"default": {"file": "x"}}, [], [], [], {}),
    ({"default": {"temperature": 0.5, "flag": True, "top": 3}}, [], [], [field("temperature", "0.5"), field("flag", "true"), field("top", "3")], {"added": ("temperature", "flag", "top")}),
    ({"default": {"a": None, "b": [1], "c": {"d": 1}, "e": "x\r\n--" + BOUNDARY.decode(), "f": "--x", "g": "a\nb - --c"}}, [], [], [field("g", "a\nb - --c")], {"added": ("g",)}),
    ({"set": {"language": "fr"}}, [LANGUAGE, PROMPT], [field("language", "fr"), PROMPT], [], {"replaced": ("language",)}),
    ({"set": {"language": "fr"}}, [field("language", ""), PROMPT], [field("language", "fr"), PROMPT], [], {"replaced": ("language",)}),
    ({"set": {"language": "fr"}}, [], [], [field("language", "fr")], {"added": ("language",)}),
    ({"set": {"language": None}}, [LANGUAGE], [LANGUAGE], [], {}),
    ({"set": {"file": "x"}}, [], [], [], {}),
    ({"set": {GRANULARITY: "word"}}, [field(GRANULARITY, "a"), PROMPT, field(GRANULARITY, "b")], [field(GRANULARITY, "word"), PROMPT], [], {"replaced": (GRANULARITY,)}),
    ({"set": {"language": "fr"}}, [AS_FILE], [AS_FILE], [], {}),
    ({"remove": ["language"], "default": {"language": "fr"}}, [LANGUAGE], [], [field("language", "fr")], {"replaced": ("language",)}),
    ({"rename": {"language": "lang"}, "set": {"lang": "fr"}}, [LANGUAGE], [field("lang", "fr")], [], {"renamed": (("language", "lang"),), "replaced": ("lang",)}),
    ({"default": {"language": "de"}, "set": {"language": "fr"}}, [], [], [field("language", "fr")], {"added": ("language",)}),
    ({"conflict": "tools", "ask": True}, [LANGUAGE, field("stream", "true")], [LANGUAGE, field("stream", "true")], [], {}),
]  # fmt: skip


@pytest.mark.parametrize("model_first", [True, False], ids=["the model first", "the model last"])
def test_w2_the_table(model_first):
    def whole_form(model: tuple[bytes, bytes], parts: list, more: list) -> bytes:
        placed = [model, *parts, FILE, *more] if model_first else [*parts, FILE, model, *more]
        return form(*placed, preamble=b"a preamble\r\n", epilogue=b"\r\nan epilogue")

    for step, client, provider, behind, difference in TABLE:
        sent, found = shaped(whole_form(MODEL, client, []), changes(**step))
        assert sent == whole_form(REAL, provider, behind), (step, client)
        assert found == Difference(**difference), (step, client)


@pytest.mark.parametrize("head", [
    b'Content-Disposition: form-data; name=language',
    b'content-disposition: form-data ;  NAME = "language"; x="name"',
    b'X-A: 1\r\nCONTENT-DISPOSITION: form-data; x=y; name="language"\r\nContent-Type: text/plain; name2="language"',
])  # fmt: skip
def test_w2_a_rename_changes_the_bytes_of_the_name_alone(head):
    sent, found = shaped(form(MODEL, (head, b"de"), FILE), changes(rename={"language": "lang"}))
    assert found.renamed == (("language", "lang"),)
    at = head.lower().index(b"name")
    name = b'"language"' if b'"language"' in head[at : at + 20] else b"language"
    assert sent == form(REAL, (head.replace(name, b'"lang"', 1), b"de"), FILE)


def test_w2_a_model_that_was_missing_is_in_front_of_what_is_added():
    sent, _ = shaped(form(field("prompt", "x")), changes(default={"a": "1"}), "images/edits")
    assert sent == form(field("prompt", "x"), REAL, field("a", "1"))


NAMES = st.sampled_from(["language", "prompt", "a", "b", "file2"])
PARTS = st.tuples(NAMES, st.sampled_from(["", "x", "de\r\n", "--", "\r\n\r\n"]), st.booleans())


@given(
    st.lists(PARTS, max_size=5),
    st.lists(NAMES, max_size=2),
    st.dictionaries(NAMES, NAMES, max_size=2),
    *[st.dictionaries(NAMES, st.sampled_from(["1", "", "two\nlines", 3, True]), max_size=2)] * 2,
    examples=(60, 3000),
)
def test_w2_a_reader_of_forms_finds_what_the_settings_say(parts, remove, rename, default, replace):
    """Against Python's own reader of MIME, and a model that knows lists only."""
    rename = {old: name for old, name in rename.items() if old != name}
    given_parts = [field(name, text, more=b'; filename="f"' if is_file else b"") for name, text, is_file in parts]
    sent, _ = shaped(form(MODEL, *given_parts, FILE), changes(remove, rename, default, replace))
    left = [("model", "real", False), *parts, ("file", None, True)]
    left = [each for each in left if each[2] or each[0] not in remove]
    for old, name in rename.items():
        if any(each[0] == name for each in left):
            left = [each for each in left if each[2] or each[0] != old]
        left = [
            (name, text, False) if not is_file and each == old else (each, text, is_file)
            for each, text, is_file in left
        ]

    def written(value):
        return value if isinstance(value, str) else json.dumps(value)

    left += [(name, written(value), False) for name, value in default.items() if name not in [each[0] for each in left]]
    for name, value in replace.items():
        if (name, False) in [(each, is_file) for each, _, is_file in left]:
            first = next(index for index, each in enumerate(left) if each[0] == name and not each[2])
            left = [each for index, each in enumerate(left) if index == first or each[0] != name or each[2]]
            first = next(index for index, each in enumerate(left) if each[0] == name and not each[2])
            left[first] = (name, written(value), False)
        elif name not in [each[0] for each in left]:
            left.append((name, written(value), False))
    read = email.message_from_bytes(b"Content-Type: " + named() + b"\r\n\r\n" + sent, policy=email.policy.HTTP)
    found = []
    for each in read.get_payload():
        name = each.get_param("name", header="content-disposition")
        is_file = each.get_param("filename", header="content-disposition") is not None
        found.append((name, None if name == "file" else each.get_payload(decode=False).replace("\r\n", "\n"), is_file))
    assert found == [
        (name, text if text is None else text.replace("\r\n", "\n"), is_file) for name, text, is_file in left
    ]


def test_w2_through_the_gateway_each_step_gets_its_own_form():
    gateway = gateway_with({"remove": ["language"]}, {"rename": {"language": "lang"}, "set": {"prompt": "x"}})
    body = form(MODEL, LANGUAGE, FILE)
    client = gateway.open()
    client.say(request(body, "/v1/audio/transcriptions", headers={**AUTH, "Content-Type": named().decode()}))
    gateway.turns()
    first = body_of(gateway.doors["p1"].wire.take())
    assert first == form(part(b"model", b"m1"), FILE)
    gateway.doors["p1"].wire.say(head(500, Content_Length="0"))
    gateway.turns()
    second = body_of(gateway.doors["p2"].wire.take())
    assert second == form(part(b"model", b"m2"), field("lang", "de"), FILE, field("prompt", "x"))
    gateway.doors["p2"].wire.say(head(Content_Length=str(len(TEXT))) + TEXT)
    assert client.take().endswith(TEXT)
    assert gateway.records[0].dropped == ()


def test_w3_a_form_that_is_too_large_for_a_step():
    body = form(MODEL, FILE)
    for limit, name in ((max(1024, len(body)), "p1"), (1024, "p2")):
        gateway = gateway_with({"max_body": limit}, {})
        sent = form(MODEL, part(b"prompt", b"x" * 2000), FILE) if name == "p2" else body
        client = gateway.open()
        client.say(request(sent, "/v1/audio/transcriptions", headers={**AUTH, "Content-Type": named().decode()}))
        gateway.turns()
        assert gateway.doors[name].wires
