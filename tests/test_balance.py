"""J: several keys of a provider and several targets of a step, through the whole gateway in memory."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import fail
from twisted.internet.error import ConnectionRefusedError

from aigw.config import loader
from aigw.config.model import Step
from aigw.errors import ConfigError, UpstreamRefused
from aigw.log_output.terminal import readable
from aigw.protocols.endpoint import Call
from aigw.protocols.endpoints import ENDPOINTS
from aigw.proxy.gateway import Gateway
from aigw.routing.balance import key_names
from aigw.routing.retry_policy import is_same_for_keys
from aigw.server import api
from aigw.telemetry.record import RecordBuilder, for_log
from tests import providers
from tests.harness import AUTH, HELLO, KEY, request, until
from tests.memory import MemoryGateway, Wire, error_of
from tests.providers import DONE, ROLE, STREAM_HEAD, chunk, event, head
from tests.test_daemon import run
from tests.test_trace import Collector, set_environment

KEYS = [f"canary-of-a-key-{number}-4711" for number in range(1, 5)]
SPLIT = {"name": "many", "base_url": "http://many/v1", "api_keys": KEYS}
ONE = {"name": "one", "base_url": "http://one/v1", "api_key": "key-of-one"}
ANSWER = json.dumps(
    {"choices": [{"message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]}
).encode()


def ok(body: bytes = ANSWER, status: int = 200, **headers: str) -> bytes:
    return head(status, Content_Length=str(len(body)), **headers) + body


def refused(status: int, message: str = "no", **headers: str) -> bytes:
    return ok(json.dumps({"error": {"message": message}}).encode(), status, **headers)


def gateway(
    steps: list | None = None, providers: list | None = None, top: dict | None = None, **route
) -> MemoryGateway:
    """One step at a provider with four keys, and one behind it, unless there are others."""
    steps = steps or [{"provider": "many", "model": "m"}, {"provider": "one", "model": "n"}]
    routes = [{"name": "route", "steps": steps, **route}]
    return MemoryGateway(top={"providers": providers or [SPLIT, ONE], "routes": routes, **(top or {})})


def ask(world: MemoryGateway, session: str = "", **more) -> Wire:
    client = world.open()
    named = {"X-Session-Id": session} if session else {}
    client.say(request({**HELLO, **more}, headers={**AUTH, **named}))
    return client


def asked(world: MemoryGateway, host: str = "many") -> tuple[int, Wire] | None:
    """Which key the provider was sent now, from 1 (0: another one), and the connection; None if it was not asked."""
    for wire in world.doors[host].wires if host in world.doors else ():
        got = wire.value()
        if got and not wire.disconnected:
            wire.clear()
            sent = re.search(rb"Authorization: Bearer (\S+)", got)
            key = sent[1].decode() if sent else ""
            return (KEYS.index(key) + 1 if key in KEYS else 0), wire
    return None


def key_of(world: MemoryGateway, session: str = "", answer: bytes | None = None, **more) -> int:
    """The key that a request of the session is sent with; it is answered, and the client has the answer."""
    client = ask(world, session, **more)
    key, wire = asked(world)
    wire.say(answer or ok())
    if answer is None:
        assert b" 200 " in client.take()[:20]
        client.lost(ConnectionError())
    return key


class Session:
    """A client whose requests name only this."""

    def __init__(self, name: str) -> None:
        self.name = name.encode()

    def header(self, name: bytes) -> bytes | None:
        return self.name if name == b"x-session-id" else None


def chosen(world: MemoryGateway, session: str = "") -> Step:
    """The step that a request of the session is sent to first; the same as through the gateway, but quickly."""
    path = "chat/completions"
    record = RecordBuilder("id", "POST", path, 0.0, seconds=world.clock.seconds)
    call = Call(ENDPOINTS[path], "route", False, {}, caller=world.config.callers[0])
    route = world.config.routes["route"]
    order = world.gateway.balance.order(route, route.steps, call, Session(session), record)
    step = world.gateway.cooldowns[path].choose(order, record.skip)
    assert step is not None
    return step


def names(number: int) -> list[str]:
    return [f"session-{each}" for each in range(number)]


# J1: settings


MISTAKES = [
    ({"api_keys": KEYS, "api_key": "another-key"}, "providers[0].api_keys: cannot be used together with api_key"),
    ({"api_keys": [KEYS[0], KEYS[1], KEYS[0]]}, "providers[0].api_keys[2]: has the same key as entry 1 of the list"),
    ({"api_keys": KEYS[0]}, "providers[0].api_keys: expected a list"),
    ({"api_keys": []}, "providers[0].api_keys: expected a list with at least one entry"),
    ({"api_keys": [KEYS[0], "..."]}, "providers[0].api_keys[1]: the value has no letter and no digit"),
    ({"api_keys": KEYS, "balance": "weighted"}, "write sticky or round_robin or least_pending"),
]


@pytest.mark.parametrize(("more", "mistake"), MISTAKES)
def test_j1_a_mistake_about_keys_shows_none(more, mistake):
    provider = {"name": "many", "base_url": "http://many/v1", **more}
    with pytest.raises(ConfigError) as raised:
        gateway([{"provider": "many", "model": "m"}], [provider])
    (text,) = raised.value.mistakes
    assert mistake in text
    assert "canary" not in text


TARGETS = [{"provider": "many", "model": "m"}, {"provider": "one", "model": "n"}]
WRONG_STEPS = [
    ({"targets": TARGETS, "provider": "one"}, "steps[0].provider: cannot be used together with targets"),
    ({"targets": TARGETS, "model": "m"}, "steps[0].model: cannot be used together with targets"),
    ({"targets": [TARGETS[0], TARGETS[0]]}, "targets[1]: has the same provider and model as entry 1 of the list"),
    ({"targets": [{"provider": "two", "model": "m"}]}, "targets[0].provider: no provider is named 'two'"),
    ({"targets": [{"provider": "one"}]}, "targets[0].model: is required and missing"),
    ({"targets": [{**TARGETS[0], "weight": 0}]}, "targets[0].weight: 0 is not a weight"),
    ({"targets": []}, "targets: expected a list with at least one entry"),
    ({"targets": TARGETS, "balance": "round_robin"}, "write sticky or weighted or least_pending"),
    ({"provider": "one"}, "steps[0].model: is required and missing"),
    ({"model": "m"}, "steps[0].provider: is required and missing"),
]


@pytest.mark.parametrize(("step", "mistake"), WRONG_STEPS)
def test_j3_a_mistake_about_targets_is_named(step, mistake):
    with pytest.raises(ConfigError) as raised:
        gateway([step])
    assert [mistake in each for each in raised.value.mistakes] == [True], raised.value.mistakes


def test_j1_and_j3_all_mistakes_are_reported_at_once():
    providers = [{**SPLIT, "api_key": "x"}, ONE]
    with pytest.raises(ConfigError) as raised:
        gateway([{"targets": TARGETS, "model": "m"}, {"provider": "one"}], providers, session_from=["a b"])
    assert len(raised.value.mistakes) == 4


ADVICE = [
    ({}, [{**SPLIT, "balance": "round_robin", "api_keys": KEYS[:1]}], "has no effect without several api_keys"),
    ({}, [{**SPLIT, "api_keys": [*KEYS, "short"]}], "providers[0].api_keys[4]: has fewer than 8 characters"),
    ({}, [{**SPLIT, "headers": {"Authorization": "Basic canary-of-a-header"}}], "is sent instead of api_keys"),
    ({}, [{**SPLIT, "base_url": "http://api.example.com/v1"}], "sends a key unencrypted"),
    ({"balance": "weighted"}, [SPLIT], "steps[0].balance: has no effect without targets"),
]


@pytest.mark.parametrize(("step", "providers", "advice"), ADVICE)
def test_j1_what_has_no_effect_is_warned_of(step, providers, advice):
    world = gateway([{"provider": "many", "model": "m", **step}], providers)
    assert [advice in each for each in world.config.warnings] == [True]


def test_b22_keys_and_targets_are_not_the_same_step_twice():
    assert gateway([{"targets": TARGETS}], hedge={"after": "1s"}).config.warnings == ()
    twice = gateway([{"targets": TARGETS}, {"provider": "many", "model": "m"}])
    assert [each.partition(": ")[2] for each in twice.config.warnings] == [
        "is the same as step 1; remove it, or use retries to repeat that step"
    ]


def test_b10_a_file_with_keys_is_a_file_with_a_key(tmp_path):
    file = tmp_path / "config.yaml"
    text = "api_key: ${K}\nproviders: [{name: p, base_url: 'http://p/v1', api_keys: ['${A}', %s]}]\n"
    text += "routes: [{name: r, steps: [{provider: p, model: m}]}]\n"
    environ = {"K": "a-key-of-the-gateway", "A": "a-key-of-the-provider", "B": "another-key-of-it"}
    file.write_text(text % "'${B}'")
    file.chmod(0o644)
    assert [each.reveal() for each in loader.load(file, environ).providers["p"].api_keys] == [
        environ["A"],
        environ["B"],
    ]
    file.write_text(text % "a-literal-key")
    with pytest.raises(ConfigError, match="chmod 600"):
        loader.load(file, environ)


# J2: cooldowns of keys


def key_chosen(world: MemoryGateway, session: str) -> int:
    step = chosen(world, session)
    key = step.provider.keys[step.key].reveal()
    return KEYS.index(key) + 1 if key in KEYS else 0


def moved(world: MemoryGateway, sessions: list[str], before: dict[str, int]) -> list[str]:
    return [name for name in sessions if key_chosen(world, name) != before[name]]


ASKS = [key_chosen, pytest.param(key_of, marks=pytest.mark.slow)]


@pytest.mark.parametrize("key_in", ASKS)
def test_j4_each_of_1000_sessions_of_20_turns_stays_on_one_key_and_each_key_gets_its_share(key_in):
    world = gateway()
    seen: dict[str, set[int]] = {}
    for _ in range(20):
        for name in names(1000):
            seen.setdefault(name, set()).add(key_in(world, name))
    assert all(len(keys) == 1 for keys in seen.values())
    share = Counter(key for keys in seen.values() for key in keys)
    assert all(abs(share[key] - 250) <= 25 for key in (1, 2, 3, 4)), share


def test_j2_while_one_key_cools_down_only_its_sessions_move_and_they_come_back():
    world, sessions = gateway(), names(1000)
    before = {name: key_chosen(world, name) for name in sessions}
    assert all(key_of(world, name) == before[name] for name in sessions[:20]), "it is what the gateway does"
    first = next(name for name in sessions if before[name] == 2)
    client = ask(world, first)
    asked(world)[1].say(refused(429, Retry_After="30"))
    other, wire = asked(world)
    assert other != 2, "the next key is tried before the next step"
    wire.say(ok())
    got = client.take()
    assert b"x-aigw-key: %d\r\n" % other in got.lower()
    assert b"x-aigw-skipped" not in got.lower(), "the step was not passed over"
    assert moved(world, sessions, before) == [name for name in sessions if before[name] == 2]
    world.clock.advance(29)
    assert moved(world, sessions, before) == [name for name in sessions if before[name] == 2]
    world.clock.advance(1.1)
    assert moved(world, sessions, before) == []


def test_j4_a_key_that_is_removed_moves_a_quarter_and_one_that_is_added_a_fifth():
    sessions = names(1000)
    world = gateway()
    four = {name: key_chosen(world, name) for name in sessions}
    without = [{**SPLIT, "api_keys": [KEYS[0], KEYS[2], KEYS[3]]}, ONE]
    less = gateway(providers=without)
    assert moved(less, sessions, four) == [name for name in sessions if four[name] == 2], "whichever is removed"
    assert 200 < Counter(four.values())[2] < 300
    fifth = [*KEYS[:1], "canary-of-a-fifth-key", *KEYS[1:]]
    more = gateway(providers=[{**SPLIT, "api_keys": fifth}, ONE])
    gone = moved(more, sessions, four)
    assert 150 < len(gone) < 250
    assert {key_chosen(more, name) for name in gone} == {0}, "to the new one"


def test_j4_it_is_the_same_in_each_process_and_in_each_order_of_the_keys():
    again = gateway(providers=[{**SPLIT, "api_keys": KEYS[::-1]}, ONE])
    assert [key_chosen(gateway(), name) for name in names(20)] == [key_chosen(again, name) for name in names(20)]
    assert "".join(str(key_chosen(again, name)) for name in names(20)) == "22144434132332242414"


def test_j2_a_refused_key_cools_down_for_all_models_and_the_next_key_is_tried():
    steps = [{"provider": "many", "model": "m"}, {"provider": "many", "model": "n"}]
    world = gateway(steps)
    world_of_n = [{"name": "n", "steps": [{"provider": "many", "model": "n"}]}]
    world = gateway(steps, top={"routes": [{"name": "route", "steps": steps}, *world_of_n]})
    key = key_of(world, "a")
    assert key_of(world, "a", model="n") == key
    client = ask(world, "a")
    asked(world)[1].say(refused(401))
    second, wire = asked(world)
    assert second != key
    wire.say(refused(500))
    third, wire = asked(world)
    assert third not in (key, second)
    wire.say(ok())
    assert b"x-aigw-step: 1\r\n" in client.take().lower()
    assert key_of(world, "a", model="n") == second, "the other model is not tried with the refused key"
    world.clock.advance(60.1)
    assert key_of(world, "a", model="n") == key
    assert key_of(world, "a") == key, "and its answer ends that for all models"


def test_f4_a_refused_key_takes_only_its_own_steps_from_the_request():
    steps = [{"provider": "many", "model": "m"}, {"provider": "many", "model": "n"}]
    world = gateway(steps, [{**SPLIT, "api_keys": KEYS[:2]}])
    client = ask(world, "a")
    keys = []
    for _ in range(2):
        key, wire = asked(world)
        keys.append(key)
        wire.say(refused(401))
    assert sorted(keys) == [1, 2]
    assert asked(world) is None, "neither key works for another model"
    error = error_of(client.take())
    assert [each["key_number"] for each in error["attempts"]] == keys
    assert f"many key {keys[0]} (answered 401: no), many key {keys[1]}" in error["message"]
    assert [(each.step, each.reason) for each in world.records[0].skipped] == [(2, "key_refused")]


SAME = [400, 413, 415, 422]


@pytest.mark.parametrize("status", [400, 402, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503])
def test_j2_the_next_key_is_tried_where_it_can_help(status):
    world = gateway()
    ask(world, "a")
    asked(world)[1].say(refused(status))
    assert (asked(world) is None) == (status in SAME)
    if status in SAME:
        assert asked(world, "one") is not None, "the next step is tried at once"


def test_j2_a_wrong_key_that_is_refused_with_400_leads_to_the_next_key():
    assert not is_same_for_keys(UpstreamRefused(400, detail="API key not valid. Please pass a valid API key."))
    assert not is_same_for_keys(UpstreamRefused(400, words=["API_KEY_INVALID"]))
    assert is_same_for_keys(UpstreamRefused(400, detail="unknown parameter"))


def test_j2_a_provider_that_is_silent_is_not_asked_with_its_other_keys():
    """T3. Its time-outs count for all its keys, or each of them would need its own two."""
    world = gateway(timeout="5s")
    for _ in range(2):
        ask(world, "a")
        assert asked(world)[1]
        world.clock.advance(5.1)
        assert asked(world) is None
        asked(world, "one")[1].say(ok())
    for name in names(8):
        ask(world, name)
        assert asked(world) is None
        asked(world, "one")[1].say(ok())
    assert [each.reason for each in world.records[-1].skipped] == ["cooling_down"], "one entry for the step"


def test_j2_a_provider_that_is_not_reachable_is_not_asked_with_its_other_keys():
    world = gateway()
    world._door("many", 80).opens = fail(ConnectionRefusedError())
    world.doors["many"].opens.addErrback(lambda _: None)
    world.doors["many"].connect = lambda _: fail(ConnectionRefusedError())
    for _ in range(3):
        ask(world, "a")
        asked(world, "one")[1].say(ok())
    assert [[each.provider for each in record.attempts] for record in world.records] == [["many", "one"]] * 3
    ask(world, "another")
    asked(world, "one")[1].say(ok())
    assert [each.provider for each in world.records[-1].attempts] == ["one"]


def test_f8_a_hedge_goes_to_the_next_step_and_only_without_one_to_the_next_key():
    hedge = {"after": "2s", "share": "100%"}
    world = gateway(hedge=hedge)
    ask(world, "a")
    assert asked(world)
    world.clock.advance(2.1)
    assert asked(world) is None
    asked(world, "one")[1].say(ok())
    assert [each.outcome for each in world.records[0].attempts] == ["lost_race", "ok"]
    world = gateway([{"provider": "many", "model": "m"}], hedge=hedge)
    ask(world, "a")
    key, _ = asked(world)
    world.clock.advance(2.1)
    other, wire = asked(world)
    assert other != key
    wire.say(ok())
    (record,) = world.records
    assert [(each.key_number, each.outcome) for each in record.attempts] == [(key, "lost_race"), (other, "ok")]
    assert (record.step, record.key_number) == (1, other)


def test_j2_with_retries_the_same_key_is_repeated_first():
    world = gateway([{"provider": "many", "model": "m", "retries": 1}])
    ask(world, "a")
    key, wire = asked(world)
    wire.say(refused(500))
    world.clock.advance(1)
    again, wire = asked(world)
    assert again == key
    wire.say(refused(500))
    assert asked(world)[0] != key


def test_j2_if_all_keys_cool_down_the_next_step_is_tried_and_the_step_is_passed_over():
    world = gateway()
    client = ask(world, "a")
    for seconds in (40, 30, 20, 10):
        asked(world)[1].say(refused(429, Retry_After=str(seconds)))
    asked(world, "one")[1].say(ok())
    assert b"x-aigw-skipped" not in client.take().lower(), "it was tried"
    client = ask(world, "a")
    assert asked(world) is None
    asked(world, "one")[1].say(ok())
    assert client.take().lower().count(b"x-aigw-skipped: 1=cooling_down\r\n") == 1


def test_j2_cooldown_0_never_rests_a_key():
    world = gateway([{"provider": "many", "model": "m", "cooldown": 0}])
    key = key_of(world, "a", refused(401))
    asked(world)[1].say(ok())
    assert key_of(world, "a") == key


def test_j2_a_probe_of_a_refused_key_that_is_abandoned_leaves_the_next_one_to_probe():
    world = gateway()
    key = key_of(world, "a", refused(401))
    asked(world)[1].say(ok())
    world.clock.advance(60.1)
    client = ask(world, "a")
    assert asked(world)[0] == key
    assert key_of(world, "a") != key, "one request probes it"
    client.lost(ConnectionError())
    assert key_of(world, "a") == key


# J1: the other ways to spread


def test_j1_round_robin_takes_each_key_in_turn_and_leaves_out_those_that_cool_down():
    world = gateway(providers=[{**SPLIT, "balance": "round_robin"}, ONE])
    assert [key_of(world, "a") for _ in range(8)] == [1, 2, 3, 4, 1, 2, 3, 4]
    assert key_of(world, "a", refused(429, Retry_After="30")) == 1
    asked(world)[1].say(ok())
    share = Counter(key_of(world, "a") for _ in range(30))
    assert share == {2: 10, 3: 10, 4: 10}


@pytest.mark.parametrize("keys", ["round_robin", "least_pending"])
def test_j1_each_key_gets_its_share_behind_targets_that_take_turns(keys):
    pair = [
        {"name": name, "base_url": "http://many/v1", "api_keys": pair, "balance": keys}
        for name, pair in (("a", KEYS[:2]), ("b", KEYS[2:]))
    ]
    targets = [{"provider": name, "model": "m"} for name in ("a", "b")]
    world = gateway([{"targets": targets, "balance": "least_pending"}], pair)
    assert Counter(key_of(world) for _ in range(40)) == {1: 10, 2: 10, 3: 10, 4: 10}


def test_j1_each_key_gets_its_share_of_every_second_request():
    world = gateway(
        [{"provider": "one", "model": "n", "cooldown": "0s"}, {"provider": "many", "model": "m"}],
        [{**SPLIT, "balance": "round_robin"}, ONE],
    )
    used: list[int] = []
    for number in range(16):
        ask(world)
        _, first = asked(world, "one")
        if number % 2:
            first.say(ok())
        else:
            first.say(refused(500))
            key, wire = asked(world)
            wire.say(ok())
            used.append(key)
    assert Counter(used) == {1: 2, 2: 2, 3: 2, 4: 2}


def test_j8_least_pending_takes_the_key_with_the_fewest_running_attempts():
    world = gateway(providers=[{**SPLIT, "balance": "least_pending"}, ONE])
    running = {}
    for _ in range(4):
        ask(world, "a")
        key, wire = asked(world)
        running[key] = wire
    assert sorted(running) == [1, 2, 3, 4]
    running.pop(3).say(ok())
    ask(world, "a")
    assert asked(world)[0] == 3


def fails(world: MemoryGateway, client: Wire, wire: Wire) -> None:
    wire.say(refused(400))
    asked(world, "one")[1].say(ok())


def ends(world: MemoryGateway, client: Wire, wire: Wire) -> None:
    wire.say(ok())


def client_leaves(world: MemoryGateway, client: Wire, wire: Wire) -> None:
    client.lost(ConnectionError())


def client_leaves_a_stream(world: MemoryGateway, client: Wire, wire: Wire) -> None:
    wire.say(STREAM_HEAD + chunk(event({"content": "hi"})))
    assert len(world.health.pending) == 1, "an answer that flows is running"
    client.lost(ConnectionError())


def stream_ends(world: MemoryGateway, client: Wire, wire: Wire) -> None:
    wire.say(
        STREAM_HEAD + b"".join(map(chunk, [ROLE, event({"content": "hi"}, finish_reason="stop"), DONE])) + b"0\r\n\r\n"
    )


def stream_breaks(world: MemoryGateway, client: Wire, wire: Wire) -> None:
    wire.say(STREAM_HEAD + chunk(event({"content": "hi"})))
    wire.lost(ConnectionError())


def is_silent(world: MemoryGateway, client: Wire, wire: Wire) -> None:
    world.clock.advance(31)
    asked(world, "one")[1].say(ok())


def gateway_stops(world: MemoryGateway, client: Wire, wire: Wire) -> None:
    for each in list(world.gateway.running):
        each.interrupt()


def loses_a_race(world: MemoryGateway, client: Wire, wire: Wire) -> None:
    world.clock.advance(2.1)
    assert len(world.health.pending) == 1, "the provider with one key is not counted"
    asked(world, "one")[1].say(
        STREAM_HEAD + b"".join(map(chunk, [event({"content": "hi"}, finish_reason="stop"), DONE])) + b"0\r\n\r\n"
    )


def commit_fails(world: MemoryGateway, client: Wire, wire: Wire) -> None:
    world.gateway.router.without_keys.clear()
    world.gateway.keys = None
    wire.say(ok())


EXITS = [
    (ends, False), (fails, False), (client_leaves, False), (client_leaves, True), (client_leaves_a_stream, True),
    (stream_ends, True), (stream_breaks, True), (is_silent, False), (gateway_stops, False), (gateway_stops, True),
    (loses_a_race, True), (commit_fails, False),
]  # fmt: skip


@pytest.mark.parametrize(("exit_", "stream"), EXITS)
def test_j8_a_running_attempt_is_counted_until_it_ends_however_it_ends(exit_, stream, failures):
    more = {"hedge": {"after": "2s", "share": "100%"}} if exit_ is loses_a_race else {}
    world = gateway(providers=[{**SPLIT, "balance": "least_pending"}, ONE], timeout="30s", **more)
    client = ask(world, "a", stream=stream)
    _, wire = asked(world)
    assert len(world.health.pending) == 1
    exit_(world, client, wire)
    assert len(world.health.pending) == 0
    if exit_ is commit_fails:
        failures.clear()  # it is one


# J3: targets

THREE = [
    {"provider": "many", "model": "a"},
    {"provider": "one", "model": "b", "weight": 2},
    {"provider": "one", "model": "c"},
]


def model_of(world: MemoryGateway, session: str = "", answer: bytes | None = None) -> str:
    """The model that a request of the session is sent to."""
    ask(world, session)
    for host in ("many", "one"):
        for wire in world.doors[host].wires if host in world.doors else ():
            if got := wire.value():
                wire.clear()
                wire.say(answer or ok())
                return json.loads(got.partition(b"\r\n\r\n")[2])["model"]
    raise AssertionError("no provider was asked")


def test_j3_sticky_targets_get_sessions_by_their_weights_and_keep_them():
    world, sessions = gateway([{"targets": THREE}]), names(1000)
    first = {name: chosen(world, name).model for name in sessions}
    assert all(model_of(world, name) == first[name] for name in sessions[:20])
    share = Counter(first.values())
    assert all(abs(share[model] - right) < 50 for model, right in {"a": 250, "b": 500, "c": 250}.items()), share
    less = gateway([{"targets": THREE[:2]}])
    assert all(chosen(less, name).model == first[name] for name in sessions if first[name] != "c"), "few moves"


def test_j3_weighted_targets_get_requests_by_their_weights_whatever_the_session_is():
    import random

    world = gateway([{"targets": THREE, "balance": "weighted"}])
    world.gateway.balance._random = random.Random(1).random
    share = Counter(chosen(world, "a").model for _ in range(1000))
    assert all(abs(share[model] - right) < 50 for model, right in {"a": 250, "b": 500, "c": 250}.items()), share


def test_j3_least_pending_targets_count_all_keys_and_weigh():
    world = gateway([{"targets": THREE, "balance": "least_pending"}])
    for _ in range(8):
        ask(world, "a")
    sent = [wire.value() for host in ("many", "one") for wire in world.doors[host].wires]
    assert Counter(json.loads(got.partition(b"\r\n\r\n")[2])["model"] for got in sent) == {"a": 2, "b": 4, "c": 2}
    assert len(world.health.pending) == 8


def test_j3_the_next_target_is_tried_before_the_next_step_and_has_the_number_of_its_step():
    world = gateway([{"targets": THREE[:2]}, {"provider": "one", "model": "last"}])
    session = next(name for name in names(50) if model_of(world, name) == "a")
    client = ask(world, session)
    asked(world)[1].say(refused(400))
    _, wire = asked(world, "one")
    wire.say(ok())
    got = client.take().lower()
    assert b"x-aigw-step: 1\r\n" in got
    assert b"x-aigw-model: b\r\n" in got
    assert b"x-aigw-key" not in got, "that provider has one key"
    assert [(each.step, each.model) for each in world.records[-1].attempts] == [(1, "a"), (1, "b")]


def test_j3_an_order_of_some_steps_is_that_of_all_without_the_others():
    world = gateway([{"targets": THREE}, {"provider": "one", "model": "last"}])
    route = world.config.routes["route"]
    call = Call(ENDPOINTS["chat/completions"], "route", False, {}, caller=world.config.callers[0])
    record = RecordBuilder("id", "POST", "", 0.0, seconds=world.clock.seconds)

    def order(steps):
        return world.gateway.balance.order(route, steps, call, Session("a"), record)

    whole = order(route.steps)
    assert sorted(map(id, whole)) == sorted(map(id, route.steps))
    assert order(route.steps[1:]) == [step for step in whole if step is not route.steps[0]]
    assert order(()) == []


def test_j3_a_target_whose_provider_does_not_serve_the_endpoint_gets_nothing():
    """U1. The step is not passed over: its other target is tried."""
    world = gateway([{"targets": TARGETS}], [{**SPLIT, "endpoints": ["embeddings"]}, ONE])
    for name in names(8):
        client = ask(world, name)
        assert asked(world) is None
        asked(world, "one")[1].say(ok())
        assert b"x-aigw-skipped" not in client.take().lower()


def test_j3_a_target_has_the_limits_of_its_step():
    world = gateway([{"targets": THREE, "timeout": "7s", "retries": 2, "conflict_resolution": "tools"}])
    assert {(s.number, s.timeout, s.retries, s.conflict_resolution) for s in world.config.routes["route"].steps} == {
        (1, 7.0, 2, "tools")
    }
    assert [(s.target, s.model, s.key_number) for s in world.config.routes["route"].steps] == [
        *((1, "a", number) for number in (1, 2, 3, 4)),
        (2, "b", None),
        (3, "c", None),
    ]


# J5: the session


CASES = [
    ({"X-Claude-Code-Session-Id": "h1", "Session_id": "h2", "X-Session-Id": "h3"}, {"user": "b2"}, "h1"),
    ({"Session_id": "h2", "X-Session-Id": "h3"}, {"prompt_cache_key": "b1"}, "h2"),
    ({"X-Session-Id": " h3 "}, {"prompt_cache_key": "b1"}, "h3"),
    ({}, {"prompt_cache_key": "b1", "user": "b2"}, "b1"),
    ({}, {"user": " \u00fc\u65e5 "}, "\u00fc\u65e5"),
    ({"X-Session-Id": ""}, {"prompt_cache_key": "", "user": 42}, "42"),
    ({}, {"prompt_cache_key": None, "user": ["b"]}, None),
    ({}, {"user": {"id": 1}}, None),
    ({}, {"user": "\ud800"}, None),
    ({}, {}, None),
]


@pytest.mark.parametrize(("headers", "members", "session"), CASES)
def test_j5_the_session_is_the_first_that_is_named(headers, members, session):
    world = gateway()
    client = world.open()
    client.say(request({**HELLO, **members}, headers={**AUTH, **headers}))
    (exchange,) = world.gateway.running
    if session is None and "\ud800" in members.values():
        assert exchange._record.session in (None, "\ud800")
    else:
        assert exchange._record.session == session


def test_j5_without_one_it_is_the_caller():
    world = gateway()
    assert len({key_of(world) for _ in range(20)}) == 1


def test_j5_a_route_may_name_others_and_so_may_the_top():
    world = gateway(top={"session_from": ["X-Tenant", "metadata"]})
    client = world.open()
    client.say(request({**HELLO, "user": "u"}, headers={**AUTH, "X-Tenant": "t", "X-Session-Id": "s"}))
    (exchange,) = world.gateway.running
    assert exchange._record.session == "t"
    world = gateway(top={"session_from": ["X-Tenant"]}, session_from=["user"])
    ask(world, "s", user="u")
    (exchange,) = world.gateway.running
    assert exchange._record.session == "u"


def test_j5_a_long_one_is_bounded_and_still_tells_sessions_apart():
    world = gateway()
    beginning = "x" * 5000
    for member in ("user", "prompt_cache_key"):
        ask(world, **{member: beginning + "1"})
        ask(world, **{member: beginning + "2"})
    ask(world, "y" * 3000)
    found = [exchange._record.session for exchange in world.gateway.running]
    assert all(len(each) == 64 for each in found)
    assert len(set(found)) == 3


def test_j5_it_is_in_no_header_for_a_provider_and_in_no_record():
    world = gateway()
    client = world.open()
    client.say(request(HELLO, headers={**AUTH, "X-Session-Id": "canary-session", "Session_id": "canary-session"}))
    (wire,) = world.doors["many"].wires
    assert b"canary-session" not in wire.value()
    wire.say(ok())
    assert b"canary-session" not in client.take()
    assert "canary-session" not in repr(world.records) + json.dumps(for_log(world.records[0]), default=repr)


# I1: what a provider stores belongs to a key

RESPONSE = b'{"id": "resp_1", "object": "response", "status": "completed", "output": []}'


def responses(world: MemoryGateway, target: str = "/v1/responses", method: str = "POST", **more) -> Wire:
    client = world.open()
    body = {"model": "route", "input": "hi", **more} if method == "POST" else None
    client.say(
        request(body, target, method, {**AUTH, **({"X-Session-Id": more.pop("session")} if "session" in more else {})})
    )
    return client


def test_i1_a_stored_response_is_asked_for_with_the_key_that_made_it():
    world = gateway()
    key = None
    for name in names(4):
        client = responses(world, user=name)
        key, wire = asked(world)
        wire.say(ok(RESPONSE.replace(b"resp_1", f"resp_{name}".encode())))
        assert b" 200 " in client.take()[:20]
        for method, target in (("GET", ""), ("GET", "/input_items"), ("DELETE", "")):
            client = responses(world, f"/v1/responses/resp_{name}{target}", method)
            found, wire = asked(world)
            assert found == key
            wire.say(ok(b'{"id": "x", "data": []}'))
            assert b" 200 " in client.take()[:20]


def test_i1_so_is_a_request_that_continues_it_whatever_its_session_is():
    world = gateway()
    responses(world, user="a")
    key, wire = asked(world)
    wire.say(ok(RESPONSE))
    for name in names(8):
        responses(world, user=name, previous_response_id="resp_1")
        found, wire = asked(world)
        assert found == key
        wire.say(ok(RESPONSE.replace(b"resp_1", b"resp_2")))


def test_i3_a_key_that_cools_down_is_409_because_no_other_key_has_it():
    world = gateway()
    responses(world, user="a")
    asked(world)[1].say(ok(RESPONSE))
    responses(world, user="a")
    _, wire = asked(world)
    wire.say(refused(429, Retry_After="30"))
    asked(world)[1].say(ok(RESPONSE.replace(b"resp_1", b"resp_2")))
    client = responses(world, user="a", previous_response_id="resp_1")
    assert asked(world) is None
    assert error_of(client.take())["code"] == "state_elsewhere"


def reloaded(world: MemoryGateway, providers: list) -> None:
    """The same live state with another configuration."""
    tree = {
        "api_key": KEY,
        "providers": providers,
        "routes": [{"name": "route", "steps": [{"provider": "many", "model": "m"}, {"provider": "one", "model": "n"}]}],
    }
    config = loader.build(tree, {}, Path("/nonexistent"))
    upstream = world.gateway.upstream
    world.gateway = Gateway(config, upstream, world.health, world.clock, lambda *_: None, lambda: 1.0)
    world.site.resource = api.tree(config, world.gateway, world.records.append)


@pytest.mark.parametrize("left", [KEYS[::-1], KEYS[:2], KEYS[2:]])
def test_i1_the_place_of_an_id_is_its_key_and_not_the_position_of_that(left):
    world = gateway()
    responses(world, user="a")
    key, wire = asked(world)
    wire.say(ok(RESPONSE))
    reloaded(world, [{**SPLIT, "api_keys": left}, ONE])
    client = responses(world, user="a", previous_response_id="resp_1")
    if KEYS[key - 1] in left:
        assert asked(world)[0] == key
    else:
        assert asked(world) is None
        assert error_of(client.take())["code"] == "state_elsewhere"


@pytest.mark.parametrize("status", [401, 429])
def test_j2_a_refusal_behind_a_reload_is_one_of_the_key_that_was_sent(status):
    world = gateway()
    ask(world, "a")
    key, wire = asked(world)
    reloaded(world, [{**SPLIT, "api_keys": KEYS[::-1]}, ONE])
    wire.say(refused(status, Retry_After="30"))
    steps = world.gateway.router.routes["route"].steps
    cooling = [KEYS[3 - step.key] for step in steps if world.health.cooldown_left(step) is not None]
    assert cooling == [KEYS[key - 1]]


def test_j8_an_attempt_that_a_reload_finds_running_is_counted_for_its_key():
    world = gateway(providers=[{**SPLIT, "balance": "least_pending"}, ONE])
    for _ in KEYS[:3]:
        ask(world, "a")
        asked(world)
    reloaded(world, [{**SPLIT, "balance": "least_pending", "api_keys": KEYS[::-1]}, ONE])
    ask(world, "a")
    assert asked(world)[0] == 4


def test_i1_a_single_key_that_was_replaced_still_has_what_the_old_one_made():
    world = gateway(providers=[{**SPLIT, "api_keys": KEYS[:1]}, ONE])
    responses(world, user="a")
    asked(world)[1].say(ok(RESPONSE))
    reloaded(world, [{**SPLIT, "api_keys": KEYS[1:2]}, ONE])
    responses(world, user="a", previous_response_id="resp_1")
    assert asked(world)[0] == 2


def test_i4_an_unknown_id_is_looked_up_with_each_key():
    world = gateway([{"provider": "many", "model": "m"}])
    client = responses(world, "/v1/responses/resp_9", "GET")
    for number in (1, 2):
        key, wire = asked(world)
        assert key == number
        wire.say(refused(404))
    key, wire = asked(world)
    wire.say(ok(RESPONSE.replace(b"resp_1", b"resp_9")))
    found, wire = asked(world)
    assert found == key == 3
    wire.say(ok(RESPONSE.replace(b"resp_1", b"resp_9")))
    assert b" 200 " in client.take()[:20]


# J6: what is shown


def by_key(connection) -> None:
    """A provider that repeats the key that it was sent: it refuses the first, is busy with the second."""
    key = connection.provider.requests[-1].header("authorization").removeprefix("Bearer ")
    number = KEYS.index(key) + 1
    repeated = json.dumps({"error": {"message": f"{key} is wrong", "code": key}}).encode()
    if number == 3:
        providers.as_asked()(connection)
    else:
        status = {1: 401, 2: 429, 4: 500}[number]
        providers.answer(status, repeated, X_Ratelimit_Key=key)(connection)


@ensureDeferred
async def test_j6_no_key_is_shown_and_each_is_named_by_its_position(world, monkeypatch):
    collector = Collector()
    set_environment(monkeypatch, collector.url)
    provider = world.provider(by_key)
    split = {"name": "many", "base_url": world.base_url(provider), "api_keys": KEYS}
    steps = [{"provider": "many", "model": "m"}, {"targets": [{"provider": "many", "model": "n"}]}]
    routes = [{"name": "route", "steps": steps}]
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    gateway = world.gateway(environ=environ, top={"providers": [split], "routes": routes})
    seen = []
    try:
        for name in names(12):
            for more in ({}, {"stream": True}):
                got = await gateway.ask(headers={**AUTH, "X-Session-Id": name}, **more)
                seen.append(str(got.headers) + repr(got.body))
        status = (await gateway.get("/status.json", AUTH)).body.decode()
        metrics = (await gateway.get("/metrics", AUTH)).body.decode()
        await until(lambda: len(collector.spans()) > 24)
    finally:
        collector.close()
    spans = str(collector.spans())
    lines = [readable(line) for line in world.log]
    assert any("route -> many key 3 (m)" in line and "failed: many key" in line for line in lines)
    told = "".join([*seen, *world.log, *lines, status, metrics, spans])
    digests = [name.decode() for name in key_names(gateway.service.config).values()]
    assert [secret for secret in [*KEYS, *digests] if secret in told] == []
    attempts = [each for record in world.records for each in record["attempts"]]
    assert {each["key_number"] for each in attempts} == {1, 2, 3, 4}
    assert {record.get("key_number") for record in world.records if record["status"] == 200} == {3}
    assert 'aigw_attempts_total{route="route",step="1",provider="many",model="m",key="3",outcome="ok"}' in metrics
    assert 'aigw_step_cooling_down{route="route",step="1",provider="many",model="m",key="1"} 1.0' in metrics
    assert 'aigw_step_cooling_down{route="route",step="1",provider="many",model="m",key="3"} 0.0' in metrics
    (route,) = json.loads(status)["routes"]
    assert [(each["number"], each.get("target"), each["key_number"]) for each in route["steps"]] == [
        *((1, None, number) for number in (1, 2, 3, 4)),
        *((2, 1, number) for number in (1, 2, 3, 4)),
    ]
    assert [each["state"] for each in route["steps"][:3]] == ["resting", "resting", "answering"]
    assert route["first_step_percent"] == 100
    assert {each["key_number"] for each in json.loads(status)["failures"] if each["step"]} == {1, 2, 4}
    assert 'key: "aigw.key"' in spans
    assert all("x-aigw-key" in each for each in seen if "x-aigw-provider" in each)


def test_j6_check_config_counts_keys_and_shows_none(tmp_path):
    text = json.dumps(
        {
            "api_key": KEY,
            "providers": [{**SPLIT, "balance": "round_robin"}, ONE],
            "routes": [{"name": "r", "steps": [{"targets": THREE, "balance": "weighted"}, *TARGETS]}],
        }
    )
    done = run(tmp_path, "--check-config", config=text)
    assert done.returncode == 0
    assert "canary" not in done.stdout + done.stderr
    shown = [line.partition(" (timeout")[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert shown == [
        "  1. weighted over targets",
        "     target 1: many: a, 4 keys (round_robin), weight 1",
        "     target 2: one: b, weight 2",
        "     target 3: one: c, weight 1",
        "  2. many: m, 4 keys (round_robin)",
        "  3. one: n",
    ]


# J9: nothing set, nothing changed


def test_j9_without_several_keys_and_targets_nothing_of_it_is_there():
    world = MemoryGateway()
    assert not any(route.has_choice for route in world.config.routes.values())
    client = ask(world, "a")
    (wire,) = world.doors["p1"].wires
    wire.say(ok())
    got = client.take()
    assert b"x-aigw-key" not in got.lower()
    (record,) = world.records
    assert "key_number" not in str(for_log(record))
    assert world.gateway.balance._plans == {}
    one = gateway([{"targets": TARGETS[1:]}], providers=[SPLIT, ONE])
    assert not one.config.routes["route"].has_choice, "one target with one key is no choice"
