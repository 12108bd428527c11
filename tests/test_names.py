"""N: names of routes: aliases, and names that end in a star."""

from __future__ import annotations

import gc
import itertools
import json
import random
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from aigw.config import loader
from aigw.config.model import Config
from aigw.errors import ConfigError, RouteNotFound
from aigw.routing.finishing import Finishing
from aigw.routing.nearest import Names
from aigw.routing.route_names import Routes, sent_models
from aigw.routing.router import Router
from aigw.telemetry.redaction import Redaction
from aigw.telemetry.telemetry import Telemetry
from tests.harness import HELLO, KEY, request
from tests.memory import MemoryGateway, Wire, body_of, error_of
from tests.properties import times
from tests.providers import STREAM_HEAD, chunk, event, head
from tests.test_cost import WHOLE, asked_and_answered, calls

PROVIDER = {"name": "p1", "base_url": "http://p1/v1", "api_key": "sk-key-of-p1-0123456789"}
BOUNDARY = b"----boundary0123456789"
FORM = (
    b'--%s\r\nContent-Disposition: form-data; name="model"\r\n\r\n%s\r\n'
    b'--%s\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n--%s--\r\n'
)


def route(name: object, model: object = "m", **more: object) -> dict:
    return {"name": name, "steps": [{"provider": "p1", "model": model}], **more}


def built(*routes: dict) -> Config:
    return loader.build({"api_key": KEY, "providers": [PROVIDER], "routes": list(routes)}, {}, Path("/nonexistent"))


def mistakes(*routes: dict) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        built(*routes)
    return caught.value.mistakes


def gateway(*routes: dict, **more) -> MemoryGateway:
    return MemoryGateway(top={"routes": list(routes)}, **more)


def names(*written: str) -> Routes:
    return Routes(built(*(route(each) for each in written)).routes.values())


# N1: aliases


def test_n1_an_alias_is_a_name_of_the_route():
    world = gateway(route("assistant", "real", also=["gpt-4o", "n8n"]), route("other"))
    client = world.ask(model="n8n")
    assert b'{"model":"real","messages"' in world.doors["p1"].wire.take()
    world.doors["p1"].wire.say(WHOLE)
    answered = client.take()
    assert b"\r\nX-Aigw-Route: assistant\r\n" in answered
    assert b"\r\nX-Aigw-Model: real\r\n" in answered
    (record,) = world.records
    assert (record.route, record.requested_model, record.model) == ("assistant", "n8n", "real")


@pytest.mark.parametrize(
    ("routes", "found"),
    [
        (
            [route("a", also=["b"]), route("b")],
            ["routes[0].also[0]: is the same as routes[1].name; write a unique name"],
        ),
        (
            [route("a", also=["c"]), route("b", also=["d", "c"])],
            ["routes[1].also[1]: is the same as routes[0].also[0]; write a unique name"],
        ),
        ([route("a", also=["a"])], ["routes[0].also[0]: is the same as routes[0].name; write a unique name"]),
        ([route("a", also=["x", "x"])], ["routes[0].also[1]: is the same as routes[0].also[0]; write a unique name"]),
        (
            [route("a/*"), route("b", also=["a/*"])],
            ["routes[1].also[0]: is the same as routes[0].name; write a unique name"],
        ),
        ([route("a"), route("a")], ["routes[1].name: is the same as the name of routes[0]; write a unique name"]),
        ([route("a", also=[])], ["routes[0].also: expected a list with at least one entry, not an empty list"]),
        ([route("a", also="b")], ["routes[0].also: expected a list with at least one entry, not a string"]),
        (
            [route("a", also=[""])],
            [
                "routes[0].also[0]: the value is not a name; write a string of 1 to 256 printable characters, in quotes if "
                "YAML would read a number"
            ],
        ),
        (
            [route("a*b")],
            [
                "routes[0].name: 'a*b' has a * before its end; write one * at the end, such as openai/*, or * alone",
            ],
        ),
        (
            [route("a", also=["**"])],
            [
                "routes[0].also[0]: '**' has a * before its end; write one * at the end, such as openai/*, or * alone",
            ],
        ),
        (
            [route("a/*", "*-*")],
            [
                "routes[0].steps[0].model: '*-*' has more than one *; write one, which stands for what the * in the "
                "route's name stands for"
            ],
        ),
        (
            [route("a", "*")],
            [
                "routes[0].steps[0].model: has a *, but the name 'a' of the route has none that it could stand for; "
                "write a model, or end each name of the route in *"
            ],
        ),
        (
            [route("a/*", "x-*", also=["b"])],
            [
                "routes[0].steps[0].model: has a *, but the name 'b' of the route has none that it could stand for; "
                "write a model, or end each name of the route in *"
            ],
        ),
        (
            [route("a/*", "*", default_for=["moderations"])],
            [
                "routes[0].steps[0].model: has a *, but requests without a model come here too (default_for); "
                "write a model, or remove default_for"
            ],
        ),
        (
            [route("a", models=["b"])],
            [
                "routes[0].models: has no effect, because no name of the route ends in *; write other names of the "
                "route in also"
            ],
        ),
        (
            [route("a/*", models=["a/1", "b/1", "a/"], also=["c/*"])],
            [
                "routes[0].models[1]: 'b/1' does not match a/* or c/*; write a name that does",
                "routes[0].models[2]: 'a/' does not match a/* or c/*; write a name that does",
            ],
        ),
        (
            [route("a/*", models=["a/*"])],
            ["routes[0].models[0]: 'a/*' has a *; write the whole name of a model"],
        ),
        (
            [
                {
                    "name": "a",
                    "steps": [{"targets": [{"provider": "p1", "model": "m"}, {"provider": "p1", "model": "*"}]}],
                }
            ],
            [
                "routes[0].steps[0].targets[1].model: has a *, but the name 'a' of the route has none that it could "
                "stand for; write a model, or end each name of the route in *"
            ],
        ),
        (  # with other mistakes, all at once
            [route("a", also=["b"], deadline="soon"), route("b")],
            [
                "routes[0].deadline: 'soon' is not a duration; write 300s, 1m30s, 500ms or a number of seconds, more "
                "than 0 and at most 24h",
                "routes[0].also[0]: is the same as routes[1].name; write a unique name",
            ],
        ),
    ],
)
def test_n1_n2_n4_mistakes(routes, found):
    assert mistakes(*routes) == found


@pytest.mark.parametrize(
    "routes",
    [None, 1, "x", [], [None], [1], [[]], [{"also": {}}], [{"name": [], "also": [[], {}]}], [{"steps": {}, "also": 1}]],
)
def test_n1_a_file_of_any_shape_is_only_a_mistake(routes):
    with pytest.raises(ConfigError):
        loader.build({"api_key": KEY, "providers": [PROVIDER], "routes": routes}, {}, Path("/nonexistent"))


@pytest.mark.parametrize("line", ["name: *", "also: [*]", "also: [a, *]", "name: *-mini"])
def test_n2_a_star_without_quotes_is_named(tmp_path, line):
    path = tmp_path / "config.yaml"
    path.write_text(f"routes:\n  - {line}\n")
    path.chmod(0o600)
    with pytest.raises(ConfigError) as caught:
        loader.load(path, {})
    assert caught.value.mistakes == [
        f'{path}, line 2: not YAML: a value begins with a *, which needs quotes; write "*" in quotes'
    ]


# N2: patterns


@pytest.mark.parametrize(
    ("asked", "found", "star"),
    [
        ("openai/gpt-4o", "openai/gpt-4o", ""),
        ("openai/gpt-4o-mini", "openai/gpt-*", "4o-mini"),
        ("openai/gpt-", "openai/*", "gpt-"),  # a star stands for something
        ("openai/o3", "openai/*", "o3"),
        ("openai/o3/high", "openai/*", "o3/high"),
        ("openai/", "*", "openai/"),
        ("openai", "*", "openai"),
        ("OpenAI/o3", "*", "OpenAI/o3"),
        ("openai/zzz", "openai/*", "zzz"),
        ("openaj", "*", "openaj"),
        ("opena", "*", "opena"),
        ("p", "*", "p"),
        ("~", "*", "~"),
        ("é/模型", "*", "é/模型"),
        ("z-1", "z*", "-1"),
        ("openai/*", "openai/*", "*"),
        ("*", "*", "*"),
    ],
)
def test_n2_exact_before_pattern_then_the_longest_beginning(asked, found, star):
    routes = names("openai/*", "z*", "openai/gpt-4o", "*", "openai/gpt-*", "openai/gpt-5*", "opera*", "openai/gpt-4.1")
    assert (routes[asked].name, routes.star(asked), routes.pattern(asked)) == (found, star, found)


def test_n2_the_search_finds_what_a_look_at_all_finds():
    chosen = random.Random(16)
    every = ["".join(each) for n in range(1, 5) for each in itertools.product("ab", repeat=n)]
    for _ in range(200):
        patterns = chosen.sample(every, 6)
        routes = names(*(f"{each}*" for each in patterns))
        for asked in every:
            right = max((each for each in patterns if asked.startswith(each) and asked != each), key=len, default=None)
            if right is None:
                with pytest.raises(RouteNotFound):
                    routes[asked]
            else:
                assert routes[asked].name == f"{right}*"


@pytest.mark.parametrize(
    "text",
    [
        *["", " ", " x", "x ", "\t", "a\nb", "a\r\nX-Header: 1", "a\x00b", "a\x7f", "a\u202eb", "\ud83d", "\u2028"],
        *[".", "..", "../../models", "a/../b", "a/..", "a/./b", "..\\a", "a\\..", "x" * 257],
        *["--", f"--{BOUNDARY.decode()}"],
    ],
)
def test_n2_what_a_star_does_not_stand_for(text):
    assert names("*", "openai/*").star(f"openai/{text}") in ("", f"openai/{text}")
    with pytest.raises(RouteNotFound):
        names("openai/*")[f"openai/{text}"]


def test_n2_a_long_name_has_no_route_and_a_short_message():
    told = gateway(route("*", "*")).ask(model="x" * 5000).take()
    assert told.startswith(b"HTTP/1.1 404 ")
    assert len(error_of(told)["message"]) < 300


@pytest.mark.parametrize(
    ("name", "model", "asked", "sent"),
    [
        ("openai/*", "*", "openai/gpt-4o", "gpt-4o"),
        ("openai/*", "openai/*", "openai/gpt-4o", "openai/gpt-4o"),
        ("*", "*", "any", "any"),
        ("*", "*:free", "a/b", "a/b:free"),
        ("o-*", "x-*-y", "o-1", "x-1-y"),
        ("o-*", "fixed", "o-1", "fixed"),
        ("o-*", "*", 'o-"\\', '"\\'),
        ("o-*", "*", "o-é模", "é模"),
        ("o-*", "*", "o-*", "*"),
    ],
)
def test_n2_the_star_in_a_model_is_what_the_name_has(name, model, asked, sent):
    world = gateway(route(name, model))
    client = world.ask(model=asked)
    said = world.doors["p1"].wire.take()
    assert json.loads(body_of(said)) == {**HELLO, "model": sent}
    world.doors["p1"].wire.say(WHOLE)
    answered = client.take()
    assert b"\r\nX-Aigw-Step: 1\r\n" in answered
    if sent.isascii():
        assert f"\r\nX-Aigw-Model: {sent}\r\n".encode() in answered
        assert f"\r\nX-Aigw-Route: {name}\r\n".encode() in answered


def test_n2_the_next_step_has_its_own_model():
    steps = [{"provider": "p1", "model": "*"}, {"provider": "p2", "model": "openai/*"}]
    world = gateway({"name": "openai/*", "steps": steps})
    client = world.ask(model="openai/o3")
    assert json.loads(body_of(world.doors["p1"].wire.take()))["model"] == "o3"
    world.doors["p1"].wire.say(head(503, Content_Length="0"))
    assert json.loads(body_of(world.doors["p2"].wire.take()))["model"] == "openai/o3"
    world.doors["p2"].wire.say(WHOLE)
    assert b"\r\nX-Aigw-Model: openai/o3\r\n" in client.take()


def test_n2_targets_and_a_path_have_the_star_too():
    providers = [
        {"name": "p1", "base_url": "http://p1/v1", "paths": {"chat/completions": "at/{model}/chat"}},
        {"name": "p2", "base_url": "http://p2/v1"},
    ]
    targets = [{"provider": "p1", "model": "*"}, {"provider": "p2", "model": "x-*"}]
    world = MemoryGateway(
        top={"providers": providers, "routes": [{"name": "openai/*", "steps": [{"targets": targets}]}]}
    )
    client = world.ask(model="openai/a/b c")
    sent = {}
    for _ in targets:
        (name,) = [name for name, door in world.doors.items() if name not in sent and door.wires]
        said = world.doors[name].wire.take()
        sent[name] = said.split(b" ")[1], json.loads(body_of(said))["model"]
        world.doors[name].wire.say(head(503, Content_Length="0"))
    assert sent == {"p1": (b"/v1/at/a%2Fb%20c/chat", "a/b c"), "p2": (b"/v1/chat/completions", "x-a/b c")}
    assert client.take().startswith(b"HTTP/1.1 502 ")
    assert {each.path for each in world.records[0].attempts} == {"/v1/at/%2A/chat", "/v1/chat/completions"}


@pytest.mark.parametrize(("asked", "status"), [(b"w/whisper", None), (b"w/--" + BOUNDARY, 404)])
def test_n2_in_a_form(asked, status):
    world = gateway(route("w/*", "*"))
    client = world.open()
    body = FORM % (BOUNDARY, asked, BOUNDARY, BOUNDARY)
    client.say(
        b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n"
        b"Content-Type: multipart/form-data; boundary=%s\r\nContent-Length: %d\r\n\r\n%s"
        % (KEY.encode(), BOUNDARY, len(body), body)
    )
    world.turns()
    if status:
        assert client.take().startswith(b"HTTP/1.1 404 ")
        assert world.doors["p1"].wires == []
    else:
        assert body_of(world.doors["p1"].wire.take()) == FORM % (BOUNDARY, b"whisper", BOUNDARY, BOUNDARY)


def test_n2_what_a_provider_keeps_is_asked_for_at_the_step_that_gave_it():
    steps = [{"provider": "p1", "model": "*"}, {"provider": "p2", "model": "x-*"}]
    world = gateway({"name": "r/*", "steps": steps})
    body = b'{"id": "resp_1", "object": "response", "status": "completed", "output": []}'
    whole = head(200, Content_Length=str(len(body))) + body

    def ask(body: dict | None, target: str = "/v1/responses", method: str = "POST") -> Wire:
        client = world.open()
        client.say(request(body, target, method))
        return client

    ask({"model": "r/one", "input": "hi"})
    world.doors["p1"].wire.say(head(503, Content_Length="0"))
    world.doors["p2"].wire.take()
    world.doors["p2"].wire.say(whole)
    client = ask({"model": "r/one", "input": "go on", "previous_response_id": "resp_1"})
    assert b'"model":"x-one"' in world.doors["p2"].wire.take()
    world.doors["p2"].wire.say(whole)
    assert b"\r\nX-Aigw-Model: x-one\r\n" in client.take()
    client = ask(None, "/v1/responses/resp_1", "GET")
    assert world.doors["p2"].wire.take().startswith(b"GET /v1/responses/resp_1 ")
    world.doors["p2"].wire.say(whole)
    assert client.take().startswith(b"HTTP/1.1 200 ")
    assert {(each.route, each.model) for each in world.records} == {("r/*", "x-*")}


# N3: no client makes a series or a state


def test_n3_a_thousand_names_make_one_series_and_one_state():
    telemetry = Telemetry(lambda: None, Clock(), Redaction())
    world = gateway(route("openai/*", "*", cooldown="60s", hedge={"after": "3s"}), sink=telemetry.record)
    telemetry.use(world.config)
    client = world.open()
    for number in range(1000):
        asked = {**HELLO, "model": f"openai/canary-{number}", "stream": number % 2 == 0}
        client.say(request(asked))
        wire = world.doors["p1"].wire
        wire.take()
        if number % 2 == 0:
            wire.say(
                STREAM_HEAD
                + chunk(event({"content": "x"}))
                + chunk(event({}, "stop"))
                + chunk(b"data: [DONE]\n\n")
                + b"0\r\n\r\n"
            )
        else:
            wire.say(WHOLE)
        client.take()
    counted = telemetry.counters
    assert list(counted.routes) == ["openai/*"]
    assert list(counted.models) == [("p1", "*")]
    assert list(counted.routes["openai/*"].steps) == [(1, "p1", "*")]
    assert sum(counted.routes["openai/*"].requests.values()) == 1000
    assert len(texts_in(telemetry.counters, world.health, world.gateway.router)) > 10
    assert not [text for text in texts_in(telemetry, world.health, world.gateway) if "canary" in text]


def texts_in(*roots: object) -> list[str]:
    """All texts that objects of the gateway, and the collections in them, hold."""
    found, seen, left = [], set(), list(roots)
    while left:
        each = left.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, str | bytes):
            found.append(str(each))
        elif type(each).__module__.startswith("aigw.") or isinstance(each, dict | list | tuple | set | frozenset):
            left += gc.get_referents(each)
    return found


def test_n3_a_cooldown_is_that_of_the_step_with_its_star():
    world = gateway({"name": "o/*", "steps": [{"provider": "p1", "model": "*"}, {"provider": "p2", "model": "*"}]})
    world.ask(model="o/one")
    world.doors["p1"].wire.say(head(429, Content_Length="0"))
    world.doors["p2"].wire.take()
    client = world.ask(model="o/two")
    world.doors["p2"].wire.say(WHOLE)
    assert b'"model":"two"' in world.doors["p2"].wires[-1].take()
    world.doors["p2"].wires[-1].say(WHOLE)
    assert b"\r\nX-Aigw-Skipped: 1=cooling_down\r\n" in client.take()


def test_n3_no_model_of_a_star_is_known_to_give_a_finish_reason():
    config = built(route("o/*", "*"), route("plain", "m"))
    star, plain = (each.steps[0] for each in config.routes.values())
    finishing = Finishing()
    for step in (star, plain):
        finishing.note(step, "chat/completions")
    assert not finishing.expected(star, "chat/completions")
    assert finishing.expected(plain, "chat/completions")


# N1, N4: the list of models


def get(world: MemoryGateway, target: str) -> bytes:
    client = world.open()
    client.say(request(None, target, "GET"))
    return client.take()


def test_n4_the_list_has_names_and_aliases_and_of_a_pattern_its_models():
    world = gateway(
        route("a", also=["b", "z/*"], models=["z/1"]),
        route("openai/*", models=["openai/gpt-4o", "openai/o3"]),
        route("openai/o3"),
        route("*"),
        route("v/*", models=["v/1"], endpoints=["embeddings"]),
    )
    listed = json.loads(body_of(get(world, "/v1/models")))["data"]
    assert [each["id"] for each in listed] == ["a", "b", "z/1", "openai/gpt-4o", "openai/o3"]
    assert {each["owned_by"] for each in listed} == {"ai-gateway"}


@pytest.mark.parametrize("name", ["a", "b", "openai/gpt-4o", "openai/any/thing"])
def test_n1_one_model_is_shown_by_the_name_that_was_asked_for(name):
    world = gateway(route("a", also=["b"]), route("openai/*", models=["openai/gpt-4o"]))
    answered = get(world, f"/v1/models/{name}")
    assert answered.startswith(b"HTTP/1.1 200 ")
    assert json.loads(body_of(answered))["id"] == name


@pytest.mark.parametrize("name", ["openai/", "openai", "openai/%0a", "openai/..%2f..", "c"])
def test_n1_a_name_without_a_route_is_not_shown(name):
    world = gateway(route("a", also=["b"]), route("openai/*"))
    assert get(world, f"/v1/models/{name}").startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ("asistant", ["assistant"]),
        ("gpt4o", ["gpt-4o"]),
        ("opena/gpt-5", ["openai/*"]),
        ("openai", ["openai/*"]),
    ],
)
def test_n1_did_you_mean_knows_aliases_and_patterns(asked, near):
    routes = names("openai/*", "assistant", "gpt-4o", "dynamic/n8n")
    assert Names(["openai/*", "assistant", "gpt-4o", "dynamic/n8n"]).nearest(asked) == near
    with pytest.raises(RouteNotFound, match=f"did you mean '{near[0][:-1]}"):
        routes[asked]


@pytest.mark.parametrize(
    ("name", "also", "model", "models", "sent"),
    [
        ("a", [], "m", [], ["m"]),
        ("o/*", [], "fixed", ["o/1"], ["fixed"]),
        ("o/*", [], "*", [], []),
        ("o/*", [], "x-*", ["o/1", "o/2"], ["x-1", "x-2"]),
        ("*", ["o/*"], "*", ["o/1", "p"], ["1", "p"]),
    ],
)
def test_n4_the_models_that_are_known(name, also, model, models, sent):
    more = {**({"also": also} if also else {}), **({"models": models} if models else {})}
    (made,) = built(route(name, model, **more)).routes.values()
    assert sent_models(made, made.steps[0]) == sent


# N5: cost


def many(routes: int, patterns: int) -> list[dict]:
    made = [route(f"team-{n % 40}/model-{n}", f"m-{n}", also=[f"alias-{n}"]) for n in range(routes)]
    return made + [route(f"family-{n}/{'x' * (n % 10)}*", "*") for n in range(patterns)]


def opcodes(run) -> int:
    """How many instructions of Python ``run`` takes."""
    counted = 0

    def trace(frame, kind, _):
        nonlocal counted
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        counted += kind == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
    return counted


@pytest.fixture(scope="module")
def sizes():
    return gateway(*many(10, 1)), gateway(*many(10_000, 100))


@pytest.mark.parametrize("asked", ["team-7/model-7", "alias-3", "family-0/some-model"])
def test_n5_ten_thousand_routes_cost_a_request_what_ten_cost(sizes, asked):
    spent = []
    for world in sizes:
        sent, client = request({**HELLO, "model": asked}), world.open()
        for _ in range(3):
            assert asked_and_answered(world, client, sent).startswith(b"HTTP/1.1 200 ")
        run = partial(asked_and_answered, world, client, sent)
        # The least of three: a second that begins, or garbage that is collected, is no request's.
        spent.append((*min(calls(run) for _ in range(3)), min(opcodes(run) for _ in range(3))))
    few, most = spent
    assert most[:2] == few[:2]
    assert most[2] <= few[2] * 1.01


@times(2_500, 10_000)
def test_n5_many_routes_load_in_bounded_time_and_memory(tmp_path, times):
    """In proportion to their number: of a time that grows with its square the fewer would be a sixteenth."""
    _, few, _ = loaded(tmp_path, times // 4)
    router, seconds, taken = loaded(tmp_path, times)
    assert seconds < times / 1000
    assert seconds < few * 9
    assert taken < 150 * times / 10_000
    assert router.routes[f"alias-{times - 1}"].name == f"team-{(times - 1) % 40}/model-{times - 1}"
    assert router.routes["family-99/x"].name == "family-99/*"


def loaded(folder: Path, times: int) -> tuple[Router, float, float]:
    """So many routes, the processor's seconds that they took, and the MB."""
    path = folder / "config.yaml"
    lines = [
        f"- {{name: team-{n % 40}/model-{n}, also: [alias-{n}], steps: [{{provider: p1, model: m-{n}}}]}}"
        for n in range(times)
    ]
    lines += [f'- {{name: family-{n}/*, steps: [{{provider: p1, model: "*"}}]}}' for n in range(100)]
    providers = "providers: [{name: p1, base_url: http://p1/v1}]"
    path.write_text("\n".join([f"api_key: {KEY}", providers, "routes:", *lines]))
    path.chmod(0o600)
    before, begun = memory(), time.process_time()
    config = loader.load(path, {})
    router = Router(config)
    return router, time.process_time() - begun, memory() - before


def memory() -> float:
    """Of this process, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
