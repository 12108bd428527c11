"""W: keys by name: who a client is, which routes it may use, and how keys come and go."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.task import Clock

from aigw.access.keys import PREFIX, Keys, line_of, new_key
from aigw.config import loader
from aigw.daemon.keys_watch import KeysWatch
from aigw.errors import ConfigError, Unauthorized, WrongKey
from aigw.routing import nearest
from aigw.secret import KeyDigest
from aigw.settings.callers import Caller, Proof
from aigw.tap import Options, makeService
from aigw.telemetry.redaction import Redaction
from tests.harness import HELLO, KEY, request, until
from tests.memory import MemoryGateway, body_of, error_of
from tests.test_cost import WHOLE

ALICE, BOB, ADMIN = "aigw_" + "a" * 40, "aigw_" + "b" * 40, "the-admin-key-of-the-tests"


def sha(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def named(name: str, key: str, **more) -> dict:
    return {"name": name, "key_sha256": sha(key), **more}


def build(*keys: dict, environ: dict | None = None, folder: Path = Path("/nonexistent"), **top):
    tree = {
        "providers": [{"name": "p", "base_url": "http://p/v1"}],
        "routes": [{"name": "route", "steps": [{"provider": "p", "model": "m"}]}],
        **({"keys": list(keys)} if keys else {}),
        **top,
    }
    return loader.build(tree, environ or {}, folder)


@pytest.mark.parametrize(
    ("instance", "key", "top", "warned"),
    [
        ("2", {"requests": "60/m"}, {}, True),
        ("2", {"group": "g"}, {"groups": [{"name": "g", "concurrency": 3}]}, True),
        ("2", {"requests": "60/m"}, {"store": "valkey://localhost"}, False),
        ("2", {}, {}, False),
        ("", {"requests": "60/m"}, {}, False),
    ],
)
def test_y5_limits_of_one_of_several_instances_without_a_store_are_a_warning(instance, key, top, warned):
    one = {"name": "a", "key": "some-key-of-a-caller-1", **key}
    warnings = build(one, environ={"AIGW_INSTANCE": instance}, **top).warnings
    assert [each for each in warnings if each.startswith("store: is missing, so each instance counts")] == (
        [*warnings] if warned else []
    )


def mistakes(*keys: dict, **top) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        build(*keys, **top)
    return caught.value.mistakes


def world(*keys: dict, routes: tuple[str, ...] = ("route", "fast", "gpt-large", "gpt-small"), **top) -> MemoryGateway:
    step = {"provider": "p1", "model": "model-of-p1"}
    return MemoryGateway(
        steps=1, top={"keys": list(keys), "routes": [{"name": name, "steps": [step]} for name in routes], **top}
    )


def ask(gateway: MemoryGateway, key: str, body: dict | None = None, path: str = "/v1/chat/completions", method="POST"):
    """The answer to one request; the provider answers each."""
    client = gateway.open()
    client.say(request(body, path, method, {"Authorization": f"Bearer {key}"}))
    for wire in gateway.doors["p1"].wires:
        if wire.take():
            wire.say(WHOLE)
    return client.take()


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def chat(model: str = "route") -> dict:
    return {**HELLO, "model": model}


# Who a client is


def test_c1_a_caller_is_known_by_the_hash_of_its_key():
    gateway = world(named("alice", ALICE))
    assert status(ask(gateway, ALICE, chat())) == 200
    assert status(ask(gateway, KEY, chat())) == 200
    assert status(ask(gateway, BOB, chat())) == 401
    assert status(ask(gateway, sha(ALICE), chat())) == 401, "the hash is no key"
    assert [each.caller for each in gateway.records] == ["alice", "default", "", ""]


def test_c1_a_literal_key_and_one_from_a_variable_are_hashed_at_load():
    config = build({"name": "alice", "key": "${ALICE}"}, {"name": "bob", "key": BOB}, environ={"ALICE": ALICE})
    assert [each.key for each in config.callers] == [None, None]
    assert [Keys(config.callers).authenticate(key.encode(), None).name for key in (ALICE, BOB)] == ["alice", "bob"]


def test_c1_api_key_may_be_missing_where_there_are_keys():
    assert [each.name for each in build(named("alice", ALICE)).callers] == ["alice"]
    assert mistakes() == ["api_key: is required and missing; write it, or keys, or keys_file"]


def test_c2_two_entries_of_a_name_are_one_caller_with_two_keys():
    config = build(named("alice", ALICE, requests="5/m"), named("alice", BOB))
    (caller,) = config.callers
    keys = Keys(config.callers)
    assert keys.authenticate(ALICE.encode(), None) is keys.authenticate(BOB.encode(), None) is caller
    assert keys.authenticate(ALICE.encode(), b"Bearer " + BOB.encode()) is caller, "they are the keys of one caller"


@pytest.mark.parametrize(("disabled", "now", "why"), [(True, 0, "is disabled"), (False, 100, "has expired")])
def test_c3_a_key_that_is_over_is_401_and_no_guess(disabled, now, why):
    caller = Caller("alice", proofs=(Proof(KeyDigest(hashlib.sha256(b"a").digest()), 100.0, disabled),))
    assert disabled or Keys([caller], now=lambda: 99.9).authenticate(b"a", None) is caller
    with pytest.raises(Unauthorized, match=why) as caught:
        Keys([caller], now=lambda: now).authenticate(b"a", None)
    assert not isinstance(caught.value, WrongKey)


def test_c3_one_key_of_a_rotation_ends_and_the_other_stays():
    config = build(named("alice", ALICE, not_after="2026-01-31"), named("alice", BOB))
    keys = Keys(config.callers, now=lambda: 1769904000.0)  # 2026-02-01T00:00:00Z
    assert keys.authenticate(BOB.encode(), None).name == "alice"
    with pytest.raises(Unauthorized):
        keys.authenticate(ALICE.encode(), None)
    assert Keys(config.callers, now=lambda: 1769903999.0).authenticate(ALICE.encode(), None)


@pytest.mark.parametrize(
    ("keys", "mistake"),
    [
        ([{"name": "a"}], "keys[0]: needs one of key and key_sha256"),
        ([{"name": "a", "key": ALICE, "key_sha256": sha(ALICE)}], "keys[0]: needs one of key and key_sha256"),
        ([named("a", ALICE), named("b", ALICE)], "keys[1]: has the same key as keys[0]"),
        ([named("a", KEY)], "keys[0]: has the same key as that of default"),
        ([named("default", ALICE)], "keys[0].name: is the name of who has api_key"),
        ([named("a", ALICE, requests="5/m"), named("a", BOB, requests="6/m")], "keys[1].requests: differs from that"),
        ([{"name": "a", "key_sha256": ALICE}], "keys[0].key_sha256: the value is not a SHA-256"),
        ([named("a", ALICE, expires="soon")], "keys[0].expires: 'soon' is not a date"),
        ([named("a", ALICE, requests="60")], "keys[0].requests: '60' is not a rate"),
        ([named("a", ALICE, tokens="0/m")], "keys[0].tokens: '0/m' is not a rate"),
        ([named("a", ALICE, concurrency=0)], "keys[0].concurrency: 0 is not a number of requests"),
        ([named("a", ALICE, budget=[{"per": "day"}])], "keys[0].budget[0]: needs one of tokens and usd"),
        ([named("a", ALICE, budget=[{"tokens": 1, "usd": 1, "per": "day"}])], "keys[0].budget[0]: needs one of"),
        ([named("a", ALICE, budget=[{"usd": 1, "per": "day"}, {"usd": 2, "per": "day"}])], "keys[0].budget[1]: has"),
        ([named("a", ALICE, budget=[{"usd": 1, "per": "fortnight"}])], "keys[0].budget[0].per: 'fortnight' is unknown"),
        ([named("a", ALICE, budget=[{"usd": 1, "per": "day", "zone": "Mars"}])], "keys[0].budget[0].zone: 'Mars' is"),
        ([named("a", ALICE, group="team")], "keys[0].group: no group is named 'team'"),
        ([named("a", ALICE, routes=["a*b"])], "keys[0].routes[0]: 'a*b' has a * before its end"),
        ([named("a", ALICE, assume="none")], "keys[0].assume: 'none' is not a number of tokens"),
    ],
)
def test_c4_a_mistake_names_the_place_and_no_key(keys, mistake):
    (found,) = mistakes(*keys, api_key=KEY)
    assert found.startswith(mistake)
    assert not [each for each in (ALICE, BOB, sha(ALICE), sha(BOB)) if each in found]


def test_c4_the_admin_key_is_another_than_api_key():
    assert mistakes(api_key=KEY, admin_key=KEY)[0].startswith("admin_key: is the same as api_key")


# Which routes it may use


def test_c5_a_route_that_a_key_may_not_use_is_like_one_that_does_not_exist():
    gateway = world(named("alice", ALICE, routes=["fast", "gpt-*"]))
    assert status(ask(gateway, ALICE, chat("gpt-small"))) == 200
    hidden, unknown = (error_of(ask(gateway, ALICE, chat(name))) for name in ("route", "roote"))
    assert hidden["code"] == unknown["code"] == "model_not_found"
    assert hidden["message"].replace("route", "roote", 1) == unknown["message"]
    assert "'route'" not in unknown["message"], "no name of another caller is suggested"
    assert "did you mean 'gpt-large' or 'gpt-small'?" in error_of(ask(gateway, ALICE, chat("gpt-larg")))["message"]
    assert status(ask(gateway, KEY, chat("route"))) == 200


def test_c5_an_unknown_name_takes_no_longer_than_one_of_others(monkeypatch):
    """The search for similar names is the long part: it is one, among the names of the caller."""
    searched = []
    monkeypatch.setattr(nearest.Names, "advice", lambda names, asked: searched.append(names) or "")
    gateway = world(named("alice", ALICE, routes=["fast", "gpt-*"]))
    for name in ("route", "roote"):
        assert status(ask(gateway, ALICE, chat(name))) == 404
    hidden, unknown = searched
    assert hidden is unknown


def test_c5_the_default_route_of_an_endpoint_may_be_used_by_another_name_of_it():
    route = {
        "steps": [{"provider": "p1", "model": "m"}],
        "name": "mod",
        "also": ["m-1"],
        "default_for": ["moderations"],
    }
    gateway = MemoryGateway(steps=1, top={"keys": [named("alice", ALICE, routes=["m-*"])], "routes": [route]})
    ask(gateway, ALICE, {"input": "x"}, "/v1/moderations")
    assert gateway.doors["p1"].wires


def test_c5_the_list_of_models_has_only_what_a_key_may_use():
    gateway = world(named("alice", ALICE, routes=["fast", "gpt-*"]))
    listed = json.loads(body_of(ask(gateway, ALICE, None, "/v1/models", "GET")))["data"]
    assert [each["id"] for each in listed] == ["fast", "gpt-large", "gpt-small"]
    assert status(ask(gateway, ALICE, None, "/v1/models/fast", "GET")) == 200
    one, other = (ask(gateway, ALICE, None, f"/v1/models/{name}", "GET") for name in ("route", "nothing"))
    assert (status(one), error_of(one)["code"]) == (status(other), error_of(other)["code"]) == (404, "model_not_found")


def test_c5_the_default_route_of_an_endpoint_is_no_way_around():
    route = {"steps": [{"provider": "p1", "model": "m"}], "name": "mod", "default_for": ["moderations"]}
    gateway = MemoryGateway(steps=1, top={"keys": [named("alice", ALICE, routes=["fast"])], "routes": [route]})
    assert status(ask(gateway, ALICE, {"input": "x"}, "/v1/moderations")) == 400
    assert not gateway.doors["p1"].wires


def test_c5_a_pattern_that_stands_for_no_route_is_a_warning():
    (warning,) = [each for each in build(named("a", ALICE, routes=["rout"])).warnings if "routes" in each]
    assert warning == "keys[0].routes[0]: 'rout' is the name of no route"


# The key for the pages


def test_c6_the_admin_key_may_not_spend():
    gateway = world(named("alice", ALICE), admin_key=ADMIN)
    answer = ask(gateway, ADMIN, chat())
    assert (status(answer), error_of(answer)["code"]) == (403, "key_not_allowed")
    assert "the admin key" in error_of(answer)["message"].lower()
    assert not gateway.doors["p1"].wires
    assert gateway.site.refused_keys.total == 0


@pytest.mark.parametrize("path", ["/status.json", "/metrics", "/status"])
@ensureDeferred
async def test_c6_who_may_see_the_pages(world, path):
    def get(gateway, key):
        return gateway.get(path, {"X-Api-Key": key})

    gateway = world.gateway(world.provider(), top={"keys": [named("alice", ALICE)]})
    assert [(await get(gateway, key)).status for key in (KEY, ALICE, "wrong")] == [200, 403, 401]
    gateway.tree["admin_key"] = ADMIN
    assert await gateway.reload()
    assert [(await get(gateway, key)).status for key in (ADMIN, KEY, ALICE)] == [200, 403, 403]
    assert (await get(gateway, KEY)).error["code"] == "key_not_allowed"


# keys_file


def write(path: Path, *keys: dict, **more) -> None:
    path.write_text(json.dumps({"keys": list(keys), **more}))
    path.chmod(0o600)


def test_c7_the_keys_of_a_file_of_its_own(tmp_path):
    write(tmp_path / "keys.yaml", named("bob", BOB, group="team"), defaults={"requests": "5/m"})
    config = build(
        named("alice", ALICE),
        keys_file="keys.yaml",
        folder=tmp_path,
        groups=[{"name": "team", "tokens": "200k/m"}],
        defaults={"requests": "7/m"},
    )
    shown = [(each.name, [(account.name, account.requests) for account in each.accounts]) for each in config.callers]
    assert shown == [("alice", [("key alice", (7, 60))]), ("bob", [("key bob", (5, 60)), ("group team", None)])]


def test_c7_a_mistake_in_the_file_of_keys_names_that_file_and_its_line(tmp_path):
    path = tmp_path / "keys.yaml"
    path.write_text(f"keys:\n  - name: bob\n    key_sha256: {sha(BOB)}\n    requests: many\n")
    (found,) = mistakes(api_key=KEY, keys_file="keys.yaml", folder=tmp_path)
    assert found.startswith(f"{path}, line 4: keys[0].requests: 'many' is not a rate")
    path.unlink()
    assert mistakes(api_key=KEY, keys_file="keys.yaml", folder=tmp_path) == [
        f"{path}: cannot be read: No such file or directory"
    ]


def test_c7_a_file_with_a_literal_key_that_all_may_read_is_refused(tmp_path):
    path = tmp_path / "keys.yaml"
    write(path, {"name": "bob", "key": BOB})
    path.chmod(0o644)
    (found,) = mistakes(api_key=KEY, keys_file="keys.yaml", folder=tmp_path)
    assert "chmod 600" in found


def test_c7_an_empty_list_in_the_file_of_keys_has_none(tmp_path):
    (tmp_path / "keys.yaml").write_text("keys: []")
    assert build(keys_file="keys.yaml", folder=tmp_path).callers == ()


@ensureDeferred
async def test_c8_a_change_of_the_file_of_keys_applies_within_a_second_and_alone(world):
    path = world.folder / "keys.yaml"
    write(path, named("alice", ALICE))
    gateway = world.gateway(world.provider(), top={"keys_file": str(path)})

    async def knows(key):
        return (await gateway.ask(headers={"Authorization": f"Bearer {key}"})).status == 200

    assert await knows(ALICE)
    gateway.tree["routes"] = "a mistake"  # in the other file, which is not read
    write(path, named("bob", BOB))
    began = os.times().elapsed
    await until(lambda: [each.name for each in gateway.service.config.callers] == ["default", "bob"], 3)
    assert os.times().elapsed - began < 1.5
    assert (await knows(BOB), await knows(ALICE)) == (True, False)
    path.write_text("keys: [")
    await until(lambda: any("The gateway did not reload" in line for line in world.log), 3)
    assert await knows(BOB)


def test_c8_a_file_that_is_being_written_is_read_when_it_is_whole(tmp_path):
    """An empty file is a right one without keys: all requests would be refused until the next check."""
    path, clock, read = tmp_path / "keys.yaml", Clock(), []
    write(path, named("alice", ALICE))
    watch = KeysWatch(clock, lambda: str(path), lambda: read.append(path.read_text()))
    watch.start()
    path.write_text("")
    clock.advance(0.25)
    write(path, named("alice", ALICE), named("alice", BOB))
    clock.pump([0.25] * 8)
    assert read == [path.read_text()]
    path.unlink()
    clock.advance(0.25)
    write(path, named("alice", BOB))
    clock.pump([0.25] * 3)
    assert read[1:] == [path.read_text()]
    watch.stop()


# New keys


def test_c9_a_new_key_has_a_form_that_scanners_know(capsys):
    options = Options()
    options.parseOptions(["--new-key", "ann \u00e9"])
    with pytest.raises(SystemExit) as caught:
        makeService(options)
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    (key,) = re.findall(r"aigw_[A-Za-z0-9]{40}\b", printed)
    line = printed.splitlines()[-1].strip()
    (entry,) = loader.parse(line).tree
    assert entry == {"name": "ann \u00e9", "key_sha256": sha(key)}
    assert key not in line
    assert new_key() != new_key()
    assert line_of("a", PREFIX).startswith('- {name: "a", key_sha256: "')


@pytest.mark.parametrize("words", [["--new-key", ""], ["--new-key", "a", "--demo"], ["--new-key", "a", "-c", "x"]])
def test_c9_a_wrong_command_line_is_64(words, capsys):
    with pytest.raises(SystemExit) as caught:
        Options().parseOptions(words)
    assert caught.value.code == 64


# Hidden


def test_c10_a_key_of_which_only_the_hash_is_known_is_hidden_by_its_form():
    redaction = Redaction()
    text = f'{{"requested_model":"{ALICE}","metric":"aigw_requests_total"}}'
    assert redaction.hide(text) is text
    redaction.use((), has_hashed=True)
    assert redaction.hide(text) == '{"requested_model":"***","metric":"aigw_requests_total"}'
    config = build({"name": "a", "key": ALICE}, {"name": "b", "key": "another-key-of-bob-12345"})
    assert [each.digest() for each in config.secrets] == [
        KeyDigest(hashlib.sha256(b"another-key-of-bob-12345").digest())
    ]


@ensureDeferred
async def test_c10_no_key_and_no_hash_is_in_the_log_or_on_a_page(world):
    gateway = world.gateway(world.provider(), top={"keys": [named("alice", ALICE, requests="3/m")], "admin_key": ADMIN})
    for body in ({}, {"model": ALICE}, {"stream": True}, {}, {}):
        await gateway.ask(body, headers={"Authorization": f"Bearer {ALICE}", "X-Request-Id": ALICE})
    await gateway.ask(headers={"Authorization": f"Bearer {BOB}"})
    pages = [(await gateway.get(path, {"X-Api-Key": ADMIN})).body.decode() for path in ("/status.json", "/metrics")]
    shown = "\n".join([*world.log, *pages])
    assert not [each for each in (ALICE, BOB, ADMIN, sha(ALICE), sha(ALICE).upper(), sha(BOB)) if each in shown]


# What it costs


def test_c1_the_time_of_a_look_up_does_not_depend_on_the_number_of_keys():
    many = [Caller(f"k{n}", proofs=(Proof(KeyDigest(hashlib.sha256(b"%d" % n).digest())),)) for n in range(10_000)]
    keys = Keys(many)
    assert keys.authenticate(b"9999", None) is many[-1]
    with pytest.raises(WrongKey):
        keys.authenticate(b"10000", None)
