"""R3a, R10: the further endpoints: their other paths, requests without a model, and what the list of models shows."""

from __future__ import annotations

import json

import pytest

from aigw.errors import ConfigError
from aigw.protocols.endpoints import ENDPOINTS
from aigw.settings import endpoint_names
from tests.harness import AUTH, request
from tests.memory import MemoryGateway, error_of
from tests.providers import head
from tests.test_multipart import FILE, MODEL, form, named, part

MODERATION = b'{"id": "m", "model": "m", "results": [{"flagged": false}]}'
RANKED = b'{"results": [{"index": 0, "relevance_score": 0.9}]}'
IMAGES = b'{"created": 1, "data": [{"url": "http://x/y.png"}]}'


def routes(*more: dict) -> dict:
    steps = [{"provider": "p1", "model": "model-of-p1"}]
    return {"routes": [{"name": f"route-{number}", "steps": steps, **each} for number, each in enumerate(more, 1)]}


def ask(world: MemoryGateway, path: str, body: bytes, kind: bytes = b"application/json"):
    client = world.open()
    client.say(request(body, path, headers={**AUTH, "Content-Type": kind.decode()}))
    world.turns()
    return client


def sent_to(world: MemoryGateway, name: str = "p1") -> tuple[bytes, bytes]:
    """The line of a request and its body."""
    line, _, rest = world.doors[name].wire.take().partition(b"\r\n")
    return line, rest.partition(b"\r\n\r\n")[2]


def body_of(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_r3a_rerank_has_three_paths_and_one_at_the_provider(path):
    world = MemoryGateway()
    asked = b'{"model":"route","query":"q","documents":["a","b"],"stream":true}'
    client = ask(world, path, asked)
    assert sent_to(world) == (b"POST /v1/rerank HTTP/1.1", asked.replace(b"route", b"model-of-p1"))
    world.doors["p1"].wire.say(head(Content_Length=str(len(RANKED))) + RANKED)
    assert body_of(client.take()) == RANKED
    assert world.records[0].path == "/v1/rerank"


@pytest.mark.parametrize("path", ["/v2", "/v2/", "/v2/chat/completions", "/rerank/x", "/v2/rerank/x"])
def test_s4_below_the_other_paths_is_nothing(path):
    world = MemoryGateway()
    answer = ask(world, path, b"{}").take()
    assert (answer[9:12], error_of(answer)["code"]) == (b"404", "unknown_url")


# Requests without a model


@pytest.mark.parametrize("asked", [b'{"input":"x"}', b'{"model":null,"input":"x"}'])
def test_r10_moderations_without_a_model_go_to_the_default(asked):
    """The provider gets the step's model: its own default would be another one."""
    world = MemoryGateway(steps=1, top=routes({}, {"default_for": ["moderations"]}))
    client = ask(world, "/v1/moderations", asked)
    assert json.loads(sent_to(world)[1]) == {"input": "x", "model": "model-of-p1"}
    world.doors["p1"].wire.say(head(Content_Length=str(len(MODERATION))) + MODERATION)
    assert b"\r\nX-Aigw-Route: route-2\r\n" in (answer := client.take())
    assert body_of(answer) == MODERATION


def test_r10_a_model_that_is_named_counts_whatever_the_default_is():
    world = MemoryGateway(steps=1, top=routes({}, {"default_for": ["moderations"]}))
    ask(world, "/v1/moderations", b'{"model":"route-1","input":"x"}')
    assert sent_to(world)[1] == b'{"model":"model-of-p1","input":"x"}'
    assert (
        error_of(ask(world, "/v1/moderations", b'{"model":"no such","input":"x"}').take())["code"] == "model_not_found"
    )


@pytest.mark.parametrize("path", ["images/edits", "images/variations"])
def test_r10_a_form_without_a_model_gets_one_more_part(path):
    world = MemoryGateway(steps=1, top=routes({"default_for": ["images/edits", "images/variations"]}))
    body = form(FILE, part(b"n", b"1"), preamble=b"before\r\n", epilogue=b"\r\nbehind")
    ask(world, f"/v1/{path}", body, named())
    more = form(part(b"model", b"model-of-p1"), epilogue=b"")
    last = more[more.rindex(b"--") - len(named()) + len(b"multipart/form-data; boundary=") - 2 :]
    assert sent_to(world)[1] == body.replace(last, more)


@pytest.mark.parametrize("path", endpoint_names.MAY_LACK_MODEL)
def test_r10_without_a_default_the_model_is_missing(path):
    world = MemoryGateway()
    kind = named() if "variations" in path else b"application/json"
    answer = ask(world, f"/v1/{path}", form(FILE) if "variations" in path else b'{"prompt":"x"}', kind).take()
    assert (answer[9:12], error_of(answer)["param"]) == (b"400", "model")
    assert f"default_for: [{path}]" in error_of(answer)["message"]
    assert not world.doors["p1"].wires


@pytest.mark.parametrize("path", [path for path in ENDPOINTS if path not in endpoint_names.MAY_LACK_MODEL])
def test_r10_elsewhere_a_model_is_needed(path):
    world = MemoryGateway(steps=1, top=routes({"default_for": [*endpoint_names.MAY_LACK_MODEL]}))
    kind = b"application/json" if b"application/json" in ENDPOINTS[path].takes else named()
    answer = ask(world, f"/v1/{path}", form(FILE) if kind == named() else b'{"input":"x"}', kind).take()
    assert "'model' is missing" in error_of(answer)["message"]


def test_r10_a_model_in_a_form_counts_too():
    world = MemoryGateway(steps=1, top=routes({"default_for": ["images/edits"]}))
    client = ask(world, "/v1/images/edits", form(FILE, part(b"model", b"no such")), named())
    assert error_of(client.take())["code"] == "model_not_found"
    ask(world, "/v1/images/edits", form(FILE, part(b"model", b"route-1")), named())
    assert sent_to(world)[1] == form(FILE, part(b"model", b"model-of-p1"))


def test_r10_two_defaults_of_one_endpoint_are_a_mistake():
    with pytest.raises(ConfigError) as caught:
        MemoryGateway(
            steps=1, top=routes({"default_for": ["moderations"]}, {"default_for": ["images/edits", "moderations"]})
        )
    assert caught.value.mistakes == [
        "routes[1].default_for: moderations has a default route already, 'route-1'; keep one of the two"
    ]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            {"default_for": ["embeddings"]},
            "is not an endpoint whose requests may have no model; write one of moderations",
        ),
        ({"endpoints": ["embedding"]}, "did you mean embeddings?"),
        ({"endpoints": []}, "expected a list with at least one entry"),
        ({"endpoints": "embeddings"}, "expected a list with at least one entry"),
    ],
)
def test_b20_the_names_of_endpoints_are_checked(setting, message):
    with pytest.raises(ConfigError) as caught:
        MemoryGateway(steps=1, top=routes(setting))
    assert message in caught.value.mistakes[0]


def test_the_names_of_the_configuration_are_those_of_the_table():
    ours = {
        path
        for path in ENDPOINTS
        if "/" not in path.removeprefix("chat/").removeprefix("images/").removeprefix("audio/")
    }
    assert set(endpoint_names.NAMES) - {"messages"} == ours - {"messages"}
    assert set(endpoint_names.MAY_LACK_MODEL) == {path for path, each in ENDPOINTS.items() if each.may_lack_model}


# The list of models


def test_b4_a_route_for_embeddings_only_is_not_listed_and_is_there():
    world = MemoryGateway(
        steps=1,
        top=routes(
            {},
            {"endpoints": ["embeddings"]},
            {"endpoints": ["chat/completions", "embeddings"]},
            {"endpoints": ["rerank", "audio/speech"]},
        ),
    )
    client = world.open()
    client.say(request(None, "/v1/models", "GET"))
    assert [each["id"] for each in json.loads(body_of(client.take()))["data"]] == ["route-1", "route-3"]
    client.say(request(None, "/v1/models/route-2", "GET"))
    assert json.loads(body_of(client.take()))["id"] == "route-2"
    ask(world, "/v1/embeddings", b'{"model":"route-2","input":"x"}')
    assert sent_to(world)[1] == b'{"model":"model-of-p1","input":"x"}'


def test_r3a_a_form_goes_to_no_endpoint_of_json():
    world = MemoryGateway()
    answer = ask(world, "/v1/audio/speech", form(MODEL), named()).take()
    assert answer.startswith(b"HTTP/1.1 400 ")
