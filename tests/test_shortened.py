"""C19: a text that is shortened ends with no part of a key, because no search finds that part any more."""

from __future__ import annotations

import json

import pytest

from aigw.key_forms import shortened
from aigw.protocols.refusals import read_refusal
from aigw.server.unknown_paths import unknown_path
from aigw.telemetry.record import requested
from tests.harness import HELLO, request
from tests.memory import MemoryGateway, body_of
from tests.test_keys import ALICE, BOB, named

SECRET = ALICE[5:]
OTHERS = ["sk-ant-api03-abcdefghij0123456789", "gateway-key-of-a-person", "$tr4nge:key!of\\one", "0123456789abcdef"]
OTHERS += ["Ab3/dE5fGh1Jk2Lm/nO4pQ6rS8tU0v+yZ==", "/wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLE/"]


@pytest.mark.parametrize("key", [ALICE, *OTHERS])
def test_c19_no_part_of_a_key_is_left(key):
    for before in range(0, 70):
        text = "ab " * (before // 3) + " " * (before % 3) + key + " and more" * 20
        for most in range(64 - len(key), 64):
            left = shortened(text, most)
            assert key in left or not any(key[:size] in left for size in range(4, len(key))), (text, most)
            assert len(left) <= most + 3


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [
        ("a short text", 20, "a short text"),
        ("two words", 4, "two "),
        ("two words", 3, "two"),
        ("x" * 100, 64, "x" * 64),
        ("a/path/of/some-parts-of-which-one-is-long", 20, "a/path/of/***"),
        ("see/a-path-of-words/which-is-long/and-4-more", 33, "see/a-path-of-words/which-is-long"),
        ("see /v1/Models/a-long-4-name", 20, "see ***"),
        ("word word shorten word", 15, "word word short"),
    ],
)
def test_c19_other_texts_are_cut_where_they_were(text, most, expected):
    assert shortened(text, most) == expected


def test_c19_every_place_that_shortens_a_text_of_a_client_or_a_provider():
    long = f"{'x' * 30}/{ALICE}"
    answers = []
    for path, body in (
        ("/v1/chat/completions", {"model": long, "messages": HELLO["messages"]}),
        ("/v1/messages", {"model": long, "messages": HELLO["messages"], "max_tokens": 1}),
        (f"/{long}", {}),
        (f"/v1/files/{long}", {}),
        (f"/v1/v1/{'x' * 150}/{ALICE}", {}),
        (f"/v1/models/{long}", None),
    ):
        world = MemoryGateway(top={"keys": [named("bob", BOB)]})
        client = world.open()
        client.say(request(body, path, "GET" if body is None else "POST"))
        answers.append(body_of(client.take()).decode())
        assert json.loads(answers[-1])
    answers += [
        unknown_path(f"/{long}".encode()).message,
        requested(long),
        requested("y" * 100 + " " + ALICE, 128),
        read_refusal(b"no access for " + b"z " * 130 + ALICE.encode()).reason or "",
    ]
    for answer in answers:
        assert SECRET[:6] not in answer, answer
        assert "***" in answer, answer


def test_c19_the_method_in_the_record_and_in_the_answer():
    world = MemoryGateway(top={"keys": [named("bob", BOB)]})
    client = world.open()
    client.say(request(None, "/v1/chat/completions", ALICE))
    assert SECRET[:6].encode() not in client.take()
    assert world.records[0].method == "***"
