"""B5: an unknown model is answered with the names that it may have meant."""

from __future__ import annotations

import time

import pytest

from aigw.routing.nearest import MOST, Names
from tests.harness import request
from tests.memory import MemoryGateway, error_of

ROUTES = ["assistant", "dynamic/n8n", "gpt-4o", "gpt-4o-mini"]
MANY = [f"team-{n % 40}/model-{n}-{['fast', 'smart', 'cheap'][n % 3]}" for n in range(2000)]


def gateway(names: list[str]) -> MemoryGateway:
    steps = [{"provider": "p1", "model": "m"}]
    return MemoryGateway(top={"routes": [{"name": name, "steps": steps} for name in names]})


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ("asistant", ["assistant"]),
        ("ASSISTANT", ["assistant"]),
        ("n8n", ["dynamic/n8n"]),
        ("gpt-4o-mimi", ["gpt-4o-mini", "gpt-4o"]),
        ("gpt4o", ["gpt-4o", "gpt-4o-mini"]),
        ("claude", []),
        ("", []),
    ],
)
def test_b5_the_nearest_names(asked, near):
    assert Names(ROUTES).nearest(asked) == near


@pytest.mark.parametrize("at", [0, 3, 10, 17, 20])
@pytest.mark.parametrize("number", [0, 777, 1999])
def test_b5_one_wrong_character_among_many_names(number, at):
    right = MANY[number]
    at = min(at, len(right) - 1)
    names = Names(MANY)
    assert right in names.nearest(right[:at] + right[at + 1 :])
    assert right in names.nearest(right[:at] + "~" + right[at:])


def test_b5_the_404_names_them():
    client = gateway(ROUTES).ask(model="asistant")
    told = client.take()
    assert told.startswith(b"HTTP/1.1 404 ")
    assert error_of(told)["message"] == (
        "The model 'asistant' is not a route of this gateway; did you mean 'assistant'? GET /v1/models lists them."
    )


def test_b5_so_does_that_of_one_model():
    client = gateway(ROUTES).open()
    client.say(request(None, "/v1/models/dynamic/n8", "GET"))
    assert "did you mean 'dynamic/n8n'?" in error_of(client.take())["message"]


def test_b5_few_routes_are_all_named_where_none_is_like_it():
    told = gateway(["one", "two"]).ask(model="gpt-4o").take()
    assert "; this gateway has 'one' and 'two'. GET" in error_of(told)["message"]
    told = gateway(ROUTES).ask(model="zzz").take()
    assert error_of(told)["message"] == ("The model 'zzz' is not a route of this gateway. GET /v1/models lists them.")


def test_b5_names_are_cut():
    client = gateway(["r" * 256]).ask(model="r" * 10_000)
    message = error_of(client.take())["message"]
    assert message.count("r" * (MOST - 3) + "...'") == 2
    assert len(message) < 300


def test_b5_two_thousand_routes_cost_little():
    """Processor time, the best of five; all names were ten times of it."""
    names = Names(MANY)
    names.nearest("x")  # puts them in order
    spent = []
    for asked in ("team-7/modle-47-smart", "x" * 10_000, "é" * 64, MANY[5].upper(), ""):
        begun = time.process_time()
        names.advice(asked)
        spent.append(time.process_time() - begun)
    assert min(spent) < 0.003
    assert sorted(spent)[2] < 0.005
