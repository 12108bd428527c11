"""K: keys of providers that change while the gateway runs, in memory: a fake issuer of tokens under a clock."""

from __future__ import annotations

import json
import os
import re
import time
from base64 import b64encode
from bisect import insort
from typing import Any

import pytest
import yaml
from twisted.internet.base import DelayedCall
from twisted.internet.defer import CancelledError, Deferred, succeed

from aigw.config import loader
from aigw.credentials import key_command
from aigw.credentials.child import Printed
from aigw.credentials.source import NoKey
from aigw.errors import ConfigError
from aigw.secret import KeySearch, Secret, TwoSearches
from tests.harness import HELLO, KEY, request
from tests.memory import MemoryGateway, SteadyClock, Wire, body_of, error_of
from tests.properties import times
from tests.providers import completion, head

SENT = re.compile(rb"\r\nAuthorization: Bearer ([^\r]*)\r\n")
OK = head(Content_Length=str(len(completion()))) + completion()
REFUSED = head(401, Content_Length="2") + b"{}"


class Issuer:
    """Prints tokens that are valid for ``lasts`` seconds; ``down`` fails, ``takes`` is how long a run takes."""

    def __init__(self, lasts: float | None = 3600.0) -> None:
        self.lasts, self.down, self.takes = lasts, False, 0.0
        self.runs = self.cancelled = 0
        self.ends: dict[str, float] = {}
        self.world: Any = None

    def __call__(self, command, environ) -> Deferred[Printed]:
        self.runs += 1
        token = f"token-{self.runs}-of-the-issuer"
        began = self.world.clock.seconds()
        printed = Printed(b"", b"the issuer is down", "ended with exit status 1")
        if not self.down:
            self.ends[token] = began + (self.lasts or 1e9)
            shape = {"access_token": token, **({"expires_in": self.lasts} if self.lasts else {})}
            printed = Printed(json.dumps(shape).encode())
        ended: Deferred[Printed] = Deferred(self._cancel)
        if self.takes:
            self.world.clock.callLater(self.takes, lambda: ended.called or ended.callback(printed))
        else:
            ended.callback(printed)
        return ended

    def _cancel(self, ended: Deferred[Printed]) -> None:
        self.cancelled += 1


class QuickClock(SteadyClock):
    """Does not sort all timers again for each new one, of which a thousand requests at once have thousands."""

    def _sortCalls(self) -> None:
        if len(self.calls) > 1 and self.calls[-1].getTime() < self.calls[-2].getTime():
            insort(self.calls, self.calls.pop(), key=DelayedCall.getTime)


class World(MemoryGateway):
    """Step 1 has a ``key_command``; what each provider was sent is checked when it is answered."""

    make_clock = QuickClock

    def __init__(self, issuer: Issuer, steps: int = 2, start: bool = True, more: dict | None = None, **route) -> None:
        providers = [{"name": f"p{n}", "base_url": f"http://p{n}/v1", "api_key": f"key-of-p{n}"} for n in range(1, 3)]
        providers[0] = {"name": "p1", "base_url": "http://p1/v1", "key_command": ["/bin/true"], **(more or {})}
        self.issuer = issuer
        issuer.world = self
        self.tokens: list[str] = []
        super().__init__(steps, {"providers": providers[:steps]}, run=issuer, **route)
        if start:
            self.keys.start()

    def answer(self, answer: bytes = OK, name: str = "p1") -> int:
        """Answer all requests that wait at a provider; gives how many."""
        wires = self.doors[name].wires if name in self.doors else []
        asked = [(wire, got) for wire in wires if not wire.disconnected and (got := wire.take())]
        for wire, got in asked:
            if name == "p1":
                token = SENT.search(got)[1]
                self.tokens.append(token.decode())
                left = self.issuer.ends.get(self.tokens[-1], 1e9) - self.clock.seconds()
                assert left > 10, f"{self.tokens[-1]} was sent {left} s before its end"
                assert any(key.matches(token) for key in self.hidden), "it is hidden before its first use"
            wire.say(answer)
        return len(asked)

    def served(self, **more: Any) -> tuple[int, dict[str, str]]:
        """One request: which status, and which headers."""
        client = self.ask(**more)
        for _ in range(3):
            self.answer()
            self.answer(name="p2")
        return status(client)


def status(client: Wire) -> tuple[int, dict[str, str]]:
    top, *lines = client.value().partition(b"\r\n\r\n")[0].decode().split("\r\n")
    return int(top.split()[1]) if top else 0, dict(line.lower().split(": ", 1) for line in lines)


# The fake issuer under a clock


@pytest.mark.parametrize("lasts", [3600, 600, 150, 60, 30], ids=lambda lasts: f"{lasts} s")
@pytest.mark.parametrize("takes", [0.0, 3.0, 9.0], ids=["at once", "3 s", "9 s"])
def test_k6_no_request_carries_a_token_in_its_last_10_seconds(lasts, takes):
    """Three lives of a token, with a request at every moment; ``World.answer`` looks at each."""
    issuer = Issuer(lasts)
    world = World(issuer, steps=1)
    issuer.takes = takes
    pause = max(1.0, lasts / 47)
    waits = 0
    for _ in range(int(3 * lasts / pause)):
        client = world.ask()
        if not world.answer():
            waits += 1
            world.clock.advance(takes)
            world.answer()
        assert status(client)[0] in (200, 502)
        world.clock.advance(pause)
    assert len(set(world.tokens)) >= 3
    if lasts >= 60 and (lasts >= 150 or takes <= 3):
        assert waits == 0, "a new one was there in time"


def test_k6_it_is_renewed_5_minutes_or_a_tenth_before_its_end_whichever_is_nearer():
    for lasts, at in ((7200, 6900), (3600, 3300), (1000, 900), (300, 270)):
        issuer = Issuer(lasts)
        world = World(issuer)
        world.clock.advance(at - 1)
        assert issuer.runs == 1
        world.clock.advance(2)
        assert issuer.runs == 2, lasts


@times(100, 1000)
@pytest.mark.parametrize("start", [True, False], ids=["at its expiry", "the first one"])
def test_k6_many_requests_at_once_start_one_child(start, times):
    issuer = Issuer(600.0)
    world = World(issuer, steps=1, start=start)
    world.limiter.connections = 2000
    if start:
        world.keys.sources["p1"].stop()  # as if the timer had not fired yet
        world.clock.jump(591)
    before, issuer.takes = issuer.runs, 2.0
    clients = [world.ask() for _ in range(times)]
    assert issuer.runs == before + 1
    assert world.answer() == 0, "all of them wait"
    world.clock.advance(2)
    assert world.answer() == times
    assert issuer.runs == before + 1
    assert {status(client)[0] for client in clients} == {200}
    assert len(set(world.tokens)) == 1


def test_k6_with_the_issuer_down_the_old_token_is_used_to_its_end_and_then_the_step_cools_down():
    issuer = Issuer(600.0)
    world = World(issuer)
    world.clock.advance(300)
    issuer.down = True
    last, steps, cooling = 0.0, [], 0
    for _ in range(360):  # half an hour
        world.clock.advance(5)
        code, headers = world.served()
        assert code == 200, "the second step has its own key"
        steps.append(headers["x-aigw-step"])
        last = world.clock.seconds() if steps[-1] == "1" else last
        cooling += headers.get("x-aigw-skipped") == "1=cooling_down"
    assert 575 < last < 590, "to its end, but for the last ten seconds"
    assert cooling > 250, "a step that cools down is not tried, and costs no attempt"
    assert issuer.runs < 80, "the pauses between the runs grow to 30 s"
    assert {each.outcome for each in world.failed} == {"unreachable"}
    assert {each.message for each in world.failed} == {
        "there is no key for the provider: its key_command ended with exit status 1"
    }
    issuer.down = False
    world.clock.advance(70)
    assert world.served()[1]["x-aigw-step"] == "1"
    assert "x-aigw-skipped" not in world.served()[1]


def test_k8_without_another_step_the_client_gets_the_reason_and_when_to_come_back():
    issuer = Issuer()
    issuer.down = True
    world = World(issuer, steps=1)
    client = world.ask()
    code, headers = status(client)
    assert (code, headers["retry-after"]) == (502, "1")
    assert "its key_command ended with exit status 1" in error_of(client.value())["message"]
    assert "the issuer is down" not in client.value().decode()


def test_k8_a_request_waits_for_the_first_key_for_no_longer_than_connecting_may_take():
    issuer = Issuer()
    issuer.takes = 9.0
    world = World(issuer, connect_timeout=4)
    client = world.ask()
    world.clock.advance(4.1)
    assert world.answer(name="p2") == 1
    assert status(client)[1]["x-aigw-step"] == "2"
    assert "its key_command has given none for 4 s" in world.failed[0].message
    assert issuer.cancelled == 0, "the run goes on"
    world.clock.advance(6)
    assert world.served()[1]["x-aigw-step"] == "1"


def test_k8_a_client_that_leaves_while_it_waits_ends_no_run_and_no_other_request():
    issuer = Issuer()
    issuer.takes = 2.0
    world = World(issuer, steps=1)
    gone, stays = world.ask(), world.ask()
    gone.loseConnection()
    world.clock.advance(2)
    assert world.answer() == 1
    assert status(stays)[0] == 200
    assert [record.status for record in world.records] == [499, 200]


def test_k8_connecting_ends_before_the_token_may_not_be_sent_any_more():
    issuer = Issuer(600.0)
    world = World(issuer, steps=1)
    issuer.down = True
    world.clock.advance(588)
    world._door("p1", 80).opens = opens = Deferred()
    world.ask()
    world.clock.advance(2.5)
    opens.callback(None)
    assert world.answer() == 0
    assert [each.message for each in world.failed] == ["connect limit of 2 s passed"]


def test_k4_a_run_that_takes_longer_than_10_seconds_is_ended():
    issuer = Issuer()
    issuer.takes = 1000.0
    world = World(issuer)
    world.clock.advance(9.9)
    assert issuer.cancelled == 0
    world.clock.advance(0.2)
    assert (issuer.runs, issuer.cancelled) == (1, 1)
    world.served()
    assert "took longer than 10 s and was ended" in world.failed[0].message


@pytest.mark.parametrize("printed", [Printed(b"token-1-of-the-issuer"), Printed(b"", problem="is down")])
def test_k8_one_that_is_cancelled_because_another_has_its_key_leaves_the_others_theirs(printed, logged):
    run: Deferred[Printed] = Deferred()
    key = key_command.KeyCommand("p1", lambda: run, QuickClock(), lambda key: None)
    first, second, third = (key.wait() for _ in range(3))
    first.addBoth(lambda _: second.cancel())
    second.addErrback(lambda failure: failure.trap(CancelledError))
    ends: list[Any] = []
    third.addBoth(ends.append)
    run.callback(printed)
    if printed.problem:
        assert ends[0].check(NoKey)
    else:
        assert ends[0].matches(printed.out)
    assert [level for level, _ in logged] == ["error" if printed.problem else "info"]


# 401


def test_k7_a_401_renews_the_key_once_and_repeats_the_request_once_and_is_no_strike():
    issuer = Issuer(None)
    world = World(issuer)
    client = world.ask()
    assert world.answer(REFUSED) == 1
    assert world.answer() == 1
    assert status(client)[1]["x-aigw-step"] == "1"
    assert world.tokens == ["token-1-of-the-issuer", "token-2-of-the-issuer"]
    assert (world.failed, len(world.records[0].attempts)) == ([], 1)
    assert "x-aigw-skipped" not in world.served()[1], "nothing cools down"


def test_k7_a_provider_that_refuses_the_new_key_too_has_refused_it():
    issuer = Issuer(None)
    world = World(issuer)
    client = world.ask()
    assert world.answer(REFUSED) == 1
    assert world.answer(REFUSED) == 1
    assert world.answer(REFUSED) == 0
    world.answer(name="p2")
    assert status(client)[1]["x-aigw-step"] == "2"
    assert [(each.status, each.rests_s) for each in world.failed] == [(401, 60)]
    assert issuer.runs == 2


def test_k7_a_command_that_prints_the_refused_key_again_is_no_reason_to_repeat():
    """As tools do that keep a token in a file until it ends."""
    issuer = Issuer(None)
    world = World(issuer)
    client = world.ask()
    issuer.runs = 0
    assert world.answer(REFUSED) == 1
    assert world.answer(REFUSED) == 0
    world.answer(name="p2")
    assert status(client)[1]["x-aigw-step"] == "2"
    assert (issuer.runs, world.tokens) == (1, ["token-1-of-the-issuer"])
    assert [(each.status, each.rests_s) for each in world.failed] == [(401, 60)]


def test_k7_a_provider_that_refuses_every_key_does_not_start_a_child_for_each_request():
    issuer = Issuer(None)
    world = World(issuer, steps=1, cooldown=0)
    for _ in range(50):
        client = world.ask()
        for _ in range(3):
            world.answer(REFUSED)
        assert status(client)[0] == 502
        world.clock.advance(1)
    assert issuer.runs <= 7


@times(100, 1000)
def test_k7_many_refusals_at_once_start_one_child(times):
    issuer = Issuer(None)
    world = World(issuer, steps=1)
    world.limiter.connections = 2000
    clients = [world.ask() for _ in range(times)]
    issuer.takes = 1.0
    assert world.answer(REFUSED) == times
    assert world.answer() == 0
    world.clock.advance(1)
    assert world.answer() == times
    assert issuer.runs == 2
    assert {status(client)[0] for client in clients} == {200}


def test_k7_if_there_is_a_new_key_by_then_no_child_is_needed():
    issuer = Issuer(600.0)
    world = World(issuer, steps=1, timeout=900)
    client = world.ask()
    world.clock.advance(541)  # it was renewed in the background
    assert issuer.runs == 2
    issuer.ends.clear()  # when the request was sent its token was fresh
    assert world.answer(REFUSED) == 1
    assert world.answer() == 1
    assert (issuer.runs, status(client)[0]) == (2, 200)


def test_k7_with_the_issuer_down_a_401_is_the_provider_s():
    issuer = Issuer(None)
    world = World(issuer)
    issuer.down = True
    world.ask()
    world.answer(REFUSED)
    assert [(each.status, each.message) for each in world.failed] == [(401, "answered 401")]


def test_k7_a_stored_response_is_asked_for_with_the_key_too():
    """The look-up of an id, and the request with it, each with a 401 in between."""
    issuer = Issuer(None)
    world = World(issuer, more={"auth": "api-key"})
    client = world.open()
    client.say(request(None, "/v1/responses/resp_1", "GET"))
    wire = world.doors["p1"].wire
    assert b"Api-Key: token-1-of-the-issuer\r\n" in wire.take()
    wire.say(REFUSED)
    found = b'{"id": "resp_1", "object": "response"}'
    answer = head(Content_Length=str(len(found))) + found
    for _ in range(2):  # the look-up, and the request
        wire = world.doors["p1"].wire
        assert b"Api-Key: token-2-of-the-issuer\r\n" in wire.take()
        wire.say(answer)
    assert body_of(client.value()) == found
    assert issuer.runs == 2


def test_k7_a_client_that_leaves_during_the_renewal_leaves_no_connection():
    issuer = Issuer(None)
    world = World(issuer)
    client = world.open()
    client.say(request(None, "/v1/responses/resp_1", "GET"))
    issuer.takes = 5.0
    world.doors["p1"].wire.take()
    world.doors["p1"].wire.say(head(401, Content_Length="2") + b"{")
    client.loseConnection()
    world.turns()
    assert world.doors["p1"].wire.disconnected


# What a provider repeats


def test_k9_an_answer_that_repeats_a_token_has_none_in_it():
    """In a body, in a header, in the reason of a refusal; the token of before too."""
    issuer = Issuer(None)
    world = World(issuer, steps=1)
    token = "token-1-of-the-issuer"
    client = world.ask()
    body = completion(text=f"your key is {token}")
    world.answer(head(Content_Length=str(len(body)), X_RateLimit_Key=token) + body)
    assert status(client)[0] == 200
    assert token not in client.value().decode()
    world.ask()
    world.answer(REFUSED)
    world.answer()
    client = world.ask()
    body = json.dumps({"error": {"message": f"wrong: {token} and token-2-of-the-issuer"}}).encode()
    world.answer(head(400, Content_Length=str(len(body))) + body)
    assert "wrong: *** and ***" in error_of(client.value())["message"]


# What there is for the settings


@pytest.mark.parametrize(
    ("auth", "line"),
    [
        ("bearer", "Authorization: Bearer {}"),
        ("x-api-key", "X-Api-Key: {}"),
        ("api-key", "Api-Key: {}"),
        ("header:Authorization", "Authorization: {}"),
        ("header:X-Goog-Api-Key", "X-Goog-Api-Key: {}"),
        ("header:openai-beta", "Openai-Beta: {}"),
    ],
)
@pytest.mark.parametrize("kind", ["api_key", "key_file", "key_command"])
def test_k1_the_key_is_sent_as_auth_says_and_in_no_other_header(tmp_path, auth, line, kind):
    """A header of the client's does not replace it."""
    (tmp_path / "key").write_text("the-key-of-p1\n")
    key = {"api_key": "the-key-of-p1", "key_file": str(tmp_path / "key"), "key_command": ["cat"]}[kind]
    provider = {"name": "p1", "base_url": "http://p1/v1", kind: key, "auth": auth, "headers": {"X-Other": "other"}}
    world = MemoryGateway(1, {"providers": [provider]}, run=lambda *_: succeed(Printed(b"the-key-of-p1\n")))
    world.open().say(request(HELLO, headers={"Authorization": f"Bearer {KEY}", "OpenAI-Beta": "the-client-s"}))
    got = world.doors["p1"].wire.take().decode()
    assert got.count("the-key-of-p1") == 1
    assert f"\r\n{line.format('the-key-of-p1')}\r\n" in got
    assert "\r\nX-Other: other\r\n" in got
    assert KEY not in got


def test_k1_none_sends_no_key():
    world = MemoryGateway(1, {"providers": [{"name": "p1", "base_url": "http://p1/v1", "auth": "none"}]})
    world.ask()
    assert b"authorization" not in world.doors["p1"].wire.take().lower()


#   what is written                                              the beginning of the mistake
MISTAKES = {
    "auth: token":                                               "auth: 'token' is not a way to send a key; write bearer, x-api-key, api-key, none or header:NAME",
    "auth: Bearer":                                              "auth: 'Bearer' is not a way to send a key; write bearer, x-api-key, api-key, none or header:NAME; did you mean bearer?",
    "auth: [bearer]":                                            "auth: a list is not a way to send a key",
    "auth: 'header:'":                                           "auth: 'header:' names no header for a key: '' is not a header name",
    "auth: 'header:a b'":                                        "auth: 'header:a b' names no header for a key: 'a b' is not a header name",
    "auth: 'header:Host'":                                       "auth: 'header:Host' names no header for a key: 'Host' is a header that the gateway sets itself",
    "auth: none, api_key: abcdefgh1":                            "auth: is none, so no key is sent; remove api_key, or write how the key is sent",
    "auth: none, key_command: [a]":                              "auth: is none, so no key is sent; remove key_command",
    "api_key: abcdefgh1, key_file: f":                           "key_file: cannot be used together with api_key; keep one of the two",
    "api_key: abcdefgh1, key_command: [a]":                      "key_command: cannot be used together with api_key",
    "key_file: f, key_command: [a]":                             "key_command: cannot be used together with key_file",
    "key_file: ''":                                              "key_file: the value is not a file name",
    "key_command: gcloud auth":                                  "key_command: the value is not a command; write [program, argument, ...], each in quotes (no shell reads it)",
    "key_command: []":                                           "key_command: the value is not a command",
    "key_command: [a, 5]":                                       "key_command: the value has an entry that is not a string",
    "key_command: [' ']":                                        "key_command: the value has no program",
    "client_cert: a.pem":                                        "client_cert: needs client_key, the file with its key; write both or neither",
    "client_key: a.pem":                                         "client_key: needs client_cert, the file with its certificate; write both or neither",
}  # fmt: skip


@pytest.mark.parametrize("written", MISTAKES)
def test_k2_a_provider_has_at_most_one_key_and_mistakes_are_clear(tmp_path, written):
    provider = {"name": "p1", "base_url": "https://p1.example/v1", **yaml.safe_load(f"{{{written}}}")}
    tree = {
        "api_key": KEY,
        "providers": [provider],
        "routes": [{"name": "r", "steps": [{"provider": "p1", "model": "m"}]}],
    }
    with pytest.raises(ConfigError) as wrong:
        loader.build(tree, {}, tmp_path)
    (mistake,) = wrong.value.mistakes
    assert mistake.startswith(f"providers[0].{MISTAKES[written]}")


def test_k2_a_program_with_a_slash_is_relative_to_the_file_s_folder_and_others_are_in_path(tmp_path):
    for written, program in (("bin/token", f"{tmp_path}/bin/token"), ("/a/b", "/a/b"), ("token", "token")):
        provider = {"name": "p1", "base_url": "https://p1.example/v1", "key_command": [written, "a/b"]}
        steps = [{"provider": "p1", "model": "m"}]
        tree = {"api_key": KEY, "providers": [provider], "routes": [{"name": "r", "steps": steps}]}
        assert loader.build(tree, {}, tmp_path).providers["p1"].key_command == (program, "a/b")


def test_k2_an_argument_that_may_be_a_key_and_comes_from_a_variable_is_warned_of(tmp_path):
    provider = {"name": "p1", "base_url": "https://p1.example/v1", "key_command": ["vault", "${TOKEN}", "${NAME}"]}
    tree = {
        "api_key": KEY,
        "providers": [provider],
        "routes": [{"name": "r", "steps": [{"provider": "p1", "model": "m"}]}],
    }
    secret = "hvs.CAESIJ4711canary4711"
    built = loader.build(tree, {"TOKEN": secret, "NAME": "name"}, tmp_path)
    (warning,) = built.warnings
    assert "every user of this machine can see the arguments of a process" in warning
    assert secret not in warning
    assert not loader.build(tree, {"TOKEN": "short", "NAME": "name"}, tmp_path).warnings


# Files


class FileWorld(MemoryGateway):
    """Step 1 has a ``key_file``."""

    def __init__(self, path, steps: int = 2) -> None:
        providers = [
            {"name": "p1", "base_url": "http://p1/v1", "key_file": str(path)},
            {"name": "p2", "base_url": "http://p2/v1", "api_key": "key-of-p2"},
        ]
        super().__init__(steps, {"providers": providers[:steps]})

    def sent(self) -> str | None:
        """The key of a new request to step 1, which it answers; None if it goes to step 2."""
        client = self.ask()
        for name in ("p1", "p2"):
            for wire in self.doors[name].wires if name in self.doors else ():
                if not wire.disconnected and (got := wire.take()):
                    wire.say(OK)
                    assert status(client)[0] == 200
                    return SENT.search(got)[1].decode() if name == "p1" else None
        raise AssertionError(client.value())


def in_place(folder):
    (folder / "key").write_text("key-2-in-the-file\n")


def by_rename(folder):
    (folder / "new").write_text("key-2-in-the-file\n")
    os.rename(folder / "new", folder / "key")


def by_link(folder):
    """As the agent of Kubernetes does: the file is a link through ..data, which is swapped."""
    (folder / "..v2").mkdir()
    (folder / "..v2" / "key").write_text("key-2-in-the-file\n")
    os.symlink("..v2", folder / "..tmp")
    os.rename(folder / "..tmp", folder / "..data")


def same_size_same_time(folder):
    """Nothing but the inode differs."""
    before = os.stat(folder / "key")
    (folder / "new").write_text("key-2-in-the-file\n")
    os.utime(folder / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
    os.rename(folder / "new", folder / "key")


@pytest.mark.parametrize("change", [in_place, by_rename, by_link, same_size_same_time])
def test_k3_a_new_key_in_the_file_is_sent_from_the_next_request_on(tmp_path, change):
    if change is by_link:
        (tmp_path / "..v1").mkdir()
        os.symlink("..v1", tmp_path / "..data")
        os.symlink("..data/key", tmp_path / "key")
    (tmp_path / "key").write_text("  key-1-in-the-file\r\n\n")
    world = FileWorld(tmp_path / "key")
    assert [world.sent(), world.sent()] == ["key-1-in-the-file"] * 2
    change(tmp_path)
    assert [world.sent(), world.sent()] == ["key-2-in-the-file"] * 2
    assert any(key.matches(b"key-2-in-the-file") for key in world.hidden)


def gone(path):
    path.unlink()


def folder(path):
    path.unlink()
    path.mkdir()


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def holds(data):
    return lambda path: path.write_bytes(data)


UNUSABLE = {
    "gone": (gone, "cannot be read: No such file or directory"),
    "a folder": (folder, "is not a regular file"),
    "a pipe": (pipe, "is not a regular file"),
    "empty": (holds(b""), "is empty"),
    "white space": (holds(b" \n\t\n"), "is empty"),
    "too large": (holds(b"k1" * 9000), "has more than 16384 bytes"),
    "no text": (holds(b"\xff\xfe\x00k"), "is not text"),
    "two lines": (holds(b"one-key-1\ntwo-key-2\n"), "cannot be sent in a header"),
    "dots": (holds(b"..."), "has no letter and no digit"),
}


@pytest.fixture
def logged(monkeypatch):
    """What the keys log, as level and text."""
    from aigw.telemetry import logs

    seen: list[tuple[str, str]] = []
    for level in ("info", "warn", "error"):
        monkeypatch.setattr(logs, level, lambda text, *_, level=level, **__: seen.append((level, text)))
    return seen


@pytest.mark.parametrize("case", UNUSABLE)
def test_k3_a_file_that_cannot_be_used_keeps_the_old_key_and_is_warned_of_once(tmp_path, logged, case):
    spoil, why = UNUSABLE[case]
    path = tmp_path / "key"
    path.write_text("key-1-in-the-file")
    world = FileWorld(path)
    assert world.sent() == "key-1-in-the-file"
    spoil(path)
    assert [world.sent() for _ in range(3)] == ["key-1-in-the-file"] * 3
    opened = os.listdir("/proc/self/fd")
    assert world.sent() == "key-1-in-the-file"
    assert os.listdir("/proc/self/fd") == opened, "no descriptor is left open"
    ((level, text),) = logged
    assert level == "warn"
    assert text.startswith(f"The key_file of a provider cannot be used, so the old key stays in use: it {why}")
    if path.is_dir():
        path.rmdir()
    elif path.exists():
        path.unlink()
    path.write_text("\ufeffkey-2-in-the-file")
    assert world.sent() == "key-2-in-the-file"


@pytest.mark.parametrize("case", UNUSABLE)
def test_k8_without_a_first_key_the_gateway_starts_and_the_step_cools_down_until_there_is_one(tmp_path, case):
    spoil, why = UNUSABLE[case]
    path = tmp_path / "key"
    path.touch()
    spoil(path)
    world = FileWorld(path)
    (warning,) = world.keys.warnings
    assert warning.startswith("providers[0].key_file: ")
    assert why in warning
    assert [world.sent() for _ in range(3)] == [None] * 3
    assert [each.rests_s for each in world.failed] == [5], "it cools down, so the others did not try it"
    if path.is_dir():
        path.rmdir()
    elif path.exists():
        path.unlink()
    path.write_text("key-1-in-the-file")
    world.clock.advance(6)
    assert world.sent() == "key-1-in-the-file"


def test_k7_a_401_reads_the_file_again_and_repeats_the_request_if_the_key_differs(tmp_path, monkeypatch):
    """A change that no look at the file shows is found then."""
    from aigw.credentials import key_file

    path = tmp_path / "key"
    path.write_text("key-1-in-the-file")
    monkeypatch.setattr(key_file, "_signature", lambda path: (1,))
    world = FileWorld(path)
    assert world.sent() == "key-1-in-the-file"
    path.write_text("key-2-in-the-file")
    client = world.ask()
    wire = world.doors["p1"].wire
    assert SENT.search(wire.take())[1] == b"key-1-in-the-file"
    wire.say(REFUSED)
    wire = world.doors["p1"].wire
    assert SENT.search(wire.take())[1] == b"key-2-in-the-file"
    wire.say(OK)
    assert status(client)[1]["x-aigw-step"] == "1"
    assert world.failed == []
    client = world.ask()
    wire = world.doors["p1"].wire
    wire.take()
    wire.say(REFUSED)  # and the file has the same key
    assert [each.status for each in world.failed] == [401]


def test_k6_the_pauses_after_failures_are_bounded():
    assert key_command.RETRY_MOST <= 30


def test_k9_many_long_tokens_are_found_and_take_little_to_search_for():
    """A token of a cloud has 2,000 characters. A search for 100 of them took minutes to prepare, and gigabytes."""
    tokens = [f"{number:04}".join("eyJhbGciOiJSUzI1NiIs.-_" for _ in range(80)) for number in range(100)]
    started = time.process_time()
    search = TwoSearches(KeySearch([Secret("key-of-the-gateway")]), KeySearch(map(Secret, tokens)))
    assert time.process_time() - started < 3
    for token in tokens[::33]:
        assert search.hide(f"the key {token} and key-of-the-gateway") == "the key *** and ***"
        assert search.are_in_any_form(b64encode(token.encode()))
        assert search.without([(b"x", token.encode()), (b"y", b"key-of-the-gateway"), (b"z", b"z")]) == [(b"z", b"z")]


def test_k4_a_run_that_cannot_even_begin_is_a_failure_like_others(failures):
    """There may be no thread for it, where the number of tasks is limited."""

    def run(*_):
        raise RuntimeError("can't start new thread")

    providers = [
        {"name": "p1", "base_url": "http://p1/v1", "key_command": ["/bin/true"]},
        {"name": "p2", "base_url": "http://p2/v1", "api_key": "key-of-p2"},
    ]
    world = MemoryGateway(2, {"providers": providers}, run=run)
    world.ask()
    assert [each.message for each in world.failed] == [
        "there is no key for the provider: its key_command failed with an unexpected error"
    ]
    assert b"key-of-p2" in world.doors["p2"].wire.take()
    assert len(failures) == 1
    failures.clear()
