"""L10 to L13: limits that several gateways share. The store is a link that answers as the test tells it to."""

from __future__ import annotations

import json

import pytest
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock

from aigw.access.admission import Admission
from aigw.access.claim import Claim
from aigw.access.errors import RateLimited, StoreUnavailable
from aigw.access.limit_lines import of_requests
from aigw.errors import ConfigError
from aigw.settings.callers import Account, Budgeted
from aigw.settings.limit_values import Rate
from aigw.store import script_parts, scripts, store_debts
from aigw.store.shared_store import SharedStore
from aigw.store.store_link import StoreError
from aigw.store.store_state import ShortLimit
from aigw.store.stored_accounts import Described
from tests.memory import body_of
from tests.test_keys import ALICE, build, named, sha
from tests.test_limits import LimitedGateway

URL = "valkey://:the-password-of-the-store@db:6379/0"
ADMITTED = "0 0 0 0 0 10 9 6000 -1 0 0"
AT_REQUESTS = "1 1 3000 10 0 10 0 60000 -1 0 0"
AT_SLOTS = "3 1 1000 1 0 10 9 6000 -1 0 0"
ALICES = Account(name="key alice", requests=Rate(10, 60.0), tokens=Rate(1000, 60.0))


class FakeLink:
    """``waits`` has the calls that are not answered yet, where ``answer`` is None."""

    def __init__(self, store) -> None:
        self.store = store
        self.calls: list[tuple[str, list, list]] = []
        self.waits: list[Deferred] = []
        self.answer: str | Exception | None = ADMITTED
        self.epoch = "0"
        self.fails: set = set()  # scripts
        self.is_open = False

    def start(self):
        self.is_open = True

    def close(self):
        self.is_open = False

    def run(self, script, keys, args):
        self.calls.append((script, list(keys), list(args)))
        if script == scripts.PROBE and isinstance(self.answer, str):
            return succeed(self.epoch)
        if script in self.fails:
            return fail(StoreError("gone"))
        if self.answer is None:
            self.waits.append(Deferred())
            return self.waits[-1]
        return fail(self.answer) if isinstance(self.answer, Exception) else succeed(self.answer)

    def of(self, script):
        return [args for each, _, args in self.calls if each == script]


class Shared:
    def __init__(self, **top) -> None:
        self.clock, self.links = Clock(), []
        self.clock.advance(1000.0)
        self.store = SharedStore(self.clock, self.clock.seconds, lambda: 1_790_000_000.0, self.connect)
        self.config = build(named("alice", ALICE), store=URL, **top)
        self.store.use(self.config)
        self.store.start()
        self.clock.advance(0.01)

    def connect(self, store):
        self.links.append(FakeLink(store))
        return self.links[-1]

    @property
    def link(self):
        return self.links[-1]

    def claim(self, account=ALICES, tokens=100):
        return Claim((account,), tokens)


def result_of(deferred):
    found: list = []
    deferred.addBoth(found.append)
    return found


def test_l10_an_admission_is_one_script_and_a_settlement_one():
    shared = Shared()
    group = Account(name="group team", budgets=(Budgeted("tokens per day", 50, False, "day", "UTC"),))
    claim = Claim((ALICES, group), 7, 11)
    assert result_of(shared.store.admit(claim)) == [None]
    assert claim.lines == of_requests(10, 9, 6.0)
    shared.store.settle(claim, 5, 3)
    admitted, settled = shared.link.calls[-2:]
    assert (admitted[0], settled[0]) == (scripts.ADMIT, scripts.SETTLE)
    assert admitted[1] == settled[1]
    assert all("{limits}" in key for key in admitted[1]), "one hash tag, so a cluster can run the script"
    assert settled[2][:4] == [f"{admitted[2][0]}|7|11", "5", "3", "0"]


def test_l10_the_limit_that_is_reached_is_told_as_alone():
    shared = Shared()
    shared.link.answer = AT_REQUESTS
    (reached,) = result_of(shared.store.admit(shared.claim()))
    assert (reached.kind, reached.account, reached.seconds) == ("requests", ALICES, 3.0)
    wanted = Admission(shared.store, shared.clock).ask(shared.claim(), 0.0)
    (failure,) = result_of(wanted)
    assert failure.check(RateLimited)


def test_l10_no_two_accounts_have_a_key_of_the_store_together():
    long = "a" * 250
    names = [
        "a",
        "a:",
        "a::",
        "a:leases",
        "a::leases",
        "a:over",
        "a:tokens per day:1",
        long,
        f"{long}b",
        f"{long}b:over",
    ]
    budget = Budgeted("tokens per day", 50, False, "day", "UTC")
    described = Described(lambda: 0.5)
    keys = [
        described.of((Account(name=f"{kind} {name}", budgets=(budget,)),))[0]
        for kind in ("key", "group")
        for name in names
    ]
    assert {len(each) for each in keys} == {4}
    assert len({key for each in keys for key in each}) == 4 * len(keys)
    assert keys[0][:3] == ["aigw:{limits}:key a", "aigw:{limits}:key a:leases", "aigw:{limits}:key a:over"]


def test_l10_no_key_and_no_hash_is_sent_to_the_store():
    shared = Shared()
    shared.store.admit(shared.claim())
    sent = json.dumps([call[1:] for call in shared.link.calls])
    assert "key alice" in sent
    assert ALICE not in sent
    assert sha(ALICE) not in sent


def test_l10_without_a_store_nothing_is_between_a_request_and_the_memory():
    clock = Clock()
    store = SharedStore(clock, clock.seconds, clock.seconds, lambda _: pytest.fail("a connection"))
    store.use(build(named("alice", ALICE)))
    store.start()
    assert store.admit.__self__ is store._alone
    assert store.settle.__self__ is store._alone
    assert not clock.getDelayedCalls()


@pytest.mark.parametrize("how", ["slow", "fails", "away"])
def test_l11_a_request_is_admitted_locally_at_once(how):
    shared = Shared(instances=5)
    shared.link.answer = None if how == "slow" else StoreError("READONLY You can't write")
    if how == "away":
        result_of(shared.store.admit(shared.claim()))
    claims = [shared.claim(tokens=0) for _ in range(4)]
    found = []
    for claim in claims:
        admitted = shared.store.admit(claim)
        admitted = admitted if isinstance(admitted, Deferred) else succeed(admitted)
        admitted.addBoth(found.append)
    if how == "slow":
        assert found == []
        shared.clock.pump([0.0101] * 5)
    passed = [each for each in found if each is None]
    assert len(found) == 4
    assert len(passed) == (1 if how == "away" else 2), "10 requests divided by 5 gateways"
    assert shared.store.failures >= 1
    assert shared.store.admit(shared.claim(tokens=0)).kind == "requests", "the store is not asked any more"


def test_l11_a_request_that_fits_a_limit_fits_its_part():
    shared = Shared(instances=10)
    shared.link.answer = StoreError("gone")
    assert result_of(shared.store.admit(shared.claim(tokens=900))) == [None]
    (large,) = [shared.store.admit(shared.claim(Account(name="key b", tokens=Rate(1000, 60.0)), tokens=1001))]
    assert large.seconds is None


def test_l11_a_late_admission_changes_nothing_that_the_client_is_shown():
    """The limits that admitted the request are those of this process, and a stream may show them much later."""
    shared = Shared(instances=2)
    shared.link.answer = None
    claim = shared.claim()
    admitted = result_of(shared.store.admit(claim))
    shared.clock.pump([0.0101] * 5)
    assert admitted == [None]
    shown = claim.lines
    assert shown.startswith(of_requests(5, 4, 12.0))
    shared.link.waits[0].callback(AT_REQUESTS)
    assert claim.lines == shown


def test_l11_a_late_admission_and_one_whose_client_has_left_are_freed():
    shared = Shared()
    shared.link.answer = None
    late, left = shared.store.admit(shared.claim(tokens=10)), shared.store.admit(shared.claim(tokens=20))
    left.cancel()
    (failure,) = result_of(left)
    assert failure.check(CancelledError)
    shared.clock.pump([0.0101] * 5)
    assert result_of(late) == [None]
    shared.store.state.is_up = True
    for wait in shared.link.waits[:2]:
        wait.callback(ADMITTED)
    freed = shared.link.of(scripts.SETTLE)
    assert [args[0].split("|")[1:] for args in freed] == [["10", "0"], ["20", "0"]]
    assert all(args[1:4] == ["0", "0", "0"] for args in freed)


def test_l11_a_turn_of_the_event_loop_that_takes_long_is_not_the_fault_of_the_store():
    class Turn(Clock):
        """As a reactor: what a timer asks for is done in the next turn."""

        def advance(self, amount):
            self.rightNow += amount
            for call in [call for call in self.calls if call.getTime() <= self.rightNow]:
                self.calls.remove(call)
                call.called = 1
                call.func(*call.args, **call.kw)

    clock, passed = Turn(), []
    limit = ShortLimit(clock, lambda: passed.append(1))
    clock.advance(0.2)
    clock.advance(0.2)
    assert passed == []
    limit.stop()
    ShortLimit(clock, lambda: passed.append(1))
    for _ in range(5):
        assert passed == []
        clock.advance(0.0101)
    assert passed == [1]


def test_l11_what_was_used_meanwhile_is_charged_when_the_store_is_back():
    shared = Shared()
    shared.link.answer = StoreError("gone")
    claim = shared.claim()
    result_of(shared.store.admit(claim))
    shared.store.settle(claim, 77, 5)
    assert not shared.link.of(scripts.SETTLE)
    shared.link.answer = ADMITTED
    shared.clock.advance(1.0)
    (freed, charged) = shared.link.of(scripts.SETTLE)
    assert freed[1:5] == ["0", "0", "0", "again"], "it may have been admitted"
    assert charged[1:5] == ["77", "5", "1", "once"]
    assert result_of(shared.store.admit(shared.claim())) == [None]


def test_l11_a_settlement_that_fails_is_charged_later():
    shared = Shared()
    claim = shared.claim()
    shared.store.admit(claim)
    shared.link.answer = StoreError("NOREPLICAS")
    shared.store.settle(claim, 77)
    shared.link.answer = ADMITTED
    shared.clock.advance(1.0)
    first, second = [args[:5] for args in shared.link.of(scripts.SETTLE)]
    assert first == [second[0], "77", "0", "0", "first"]
    assert second[1:] == ["77", "0", "0", "again"], "the store finds out whether the first one was made"


def test_l11_a_store_that_is_slow_to_answer_the_probe_stays_away():
    shared = Shared()
    shared.link.answer = StoreError("gone")
    result_of(shared.store.admit(shared.claim()))
    shared.link.answer = None
    shared.clock.advance(1.0)
    shared.clock.advance(0.06)
    shared.link.waits[-1].callback("0")
    assert not shared.store.state.is_up
    shared.clock.advance(1.0)
    shared.link.waits[-1].callback("0")
    assert shared.store.state.is_up


def test_l11_refuse_gives_503():
    shared = Shared(on_store_failure="refuse")
    shared.link.answer = StoreError("gone")
    (failure,) = result_of(shared.store.admit(shared.claim()))
    assert failure.check(StoreUnavailable)
    with pytest.raises(StoreUnavailable):
        shared.store.admit(shared.claim())
    assert (StoreUnavailable.status, StoreUnavailable.code) == (503, "limits_unavailable")


def test_l11_a_request_that_waits_for_a_slot_is_refused_too():
    shared = Shared(on_store_failure="refuse")
    shared.link.answer = AT_SLOTS
    admission = Admission(shared.store, shared.clock)
    waits = result_of(admission.ask(shared.claim(), 10.0))
    assert waits == []
    shared.link.answer = StoreError("gone")
    shared.clock.advance(0.5)
    assert waits[0].check(StoreUnavailable)
    assert not admission.queues


def test_l11_a_slot_that_another_gateway_frees_is_noticed():
    shared = Shared()
    shared.link.answer = AT_SLOTS
    admission = Admission(shared.store, shared.clock)
    waits = result_of(admission.ask(shared.claim(), 10.0))
    shared.clock.advance(0.5)
    assert waits == []
    shared.link.answer = ADMITTED
    shared.clock.advance(0.5)
    assert waits == [None]


def test_l12_leases_are_renewed_and_given_to_an_empty_store_again():
    shared = Shared()
    claim = shared.claim()
    shared.store.admit(claim)
    lease = f"{shared.link.of(scripts.ADMIT)[0][0]}|100|0"
    shared.clock.pump([1.0] * 12)
    (renewal,) = shared.link.of(scripts.RENEW)
    assert (renewal[0], renewal[-1]) == ("14000", lease)
    shared.store.settle(claim, 1)
    shared.clock.pump([1.0] * 12)
    assert len(shared.link.of(scripts.RENEW)) == 1


def test_l12_a_renewal_that_fails_is_made_again_before_the_lease_lapses():
    """14 s: a renewal after 11 s at most; one that fails, the next probe a second later, and a second for another."""
    assert (script_parts.LEASE_SECONDS, script_parts.RENEW_SECONDS) == (14.0, 10.0)
    for offset in (0.0, 0.5, 0.99):
        shared = Shared()
        shared.clock.advance(offset)
        result_of(shared.store.admit(shared.claim()))
        began = shared.clock.seconds()
        shared.clock.pump([0.01] * 900)
        shared.link.answer = StoreError("lost")
        while not shared.link.of(scripts.RENEW):
            shared.clock.advance(0.01)
        shared.link.answer = ADMITTED
        while len(shared.link.of(scripts.RENEW)) < 2:
            shared.clock.advance(0.01)
        assert shared.clock.seconds() - began < 13.0


def test_l15_what_was_settled_twice_keeps_its_id_until_the_store_has_answered():
    shared = Shared()
    claim = shared.claim()
    shared.store.admit(claim)
    shared.link.answer = StoreError("gone")
    shared.store.settle(claim, 77)
    local = shared.claim(tokens=5)
    assert shared.store.admit(local) is None
    shared.store.settle(local, 6)
    for _ in range(4):  # it is there for a moment, and gone before it answers
        shared.link.answer = ADMITTED
        shared.link.fails = {scripts.SETTLE}
        shared.clock.advance(1.0)
        shared.link.answer = StoreError("gone")
        shared.clock.advance(1.0)
    shared.link.answer, shared.link.fails = ADMITTED, set()
    shared.clock.advance(2.0)
    sent = {tuple(args[:5]) for args in shared.link.of(scripts.SETTLE)}
    assert len({lease for lease, *_ in sent}) == 2
    assert {each[1:] for each in sent} == {
        ("77", "0", "0", "first"),
        ("77", "0", "0", "again"),
        ("6", "0", "1", "once"),
    }
    count = len(shared.link.of(scripts.SETTLE))
    shared.clock.advance(60.0)
    assert len(shared.link.of(scripts.SETTLE)) == count, "each of them was answered"


def test_l15_a_store_that_was_emptied_is_charged_what_it_cannot_know():
    shared = Shared()
    claim = shared.claim()
    shared.store.admit(claim)
    shared.link.answer = StoreError("gone")
    shared.store.settle(claim, 77)
    shared.link.answer, shared.link.epoch = ADMITTED, "another"
    shared.clock.advance(1.0)
    assert shared.link.of(scripts.SETTLE)[-1][1:5] == ["77", "0", "0", "once"]


def test_l15_a_reload_that_writes_the_store_in_another_way_keeps_what_it_does_not_know_yet():
    shared = Shared()
    claim = shared.claim()
    shared.store.admit(claim)
    shared.link.answer = StoreError("gone")
    shared.store.settle(claim, 77)
    shared.store.use(build(named("alice", ALICE), store="redis://other"))
    shared.clock.advance(0.01)
    assert shared.link.of(scripts.SETTLE)[-1][1:5] == ["77", "0", "0", "again"]


def test_l15_what_is_kept_for_the_store_is_bounded(monkeypatch):
    monkeypatch.setattr(store_debts, "MOST_KEPT", 3)
    debts = store_debts.Debts("p")
    for number in range(10):
        debts.add(f"{number}|9|0", store_debts.Settlement((ALICES,), 5))
    assert len(debts) == 4
    taken = debts.take()
    assert sum(each.tokens for _, each in taken) == 50
    assert (len(taken), len(debts)) == (4, 0)


def test_l5_what_is_known_of_an_account_is_what_the_store_answered_last():
    shared = Shared(instances=2)
    first = shared.store.known_usage_of(ALICES)
    assert first["limits"]["requests"]["limit"] == 5, "until it has answered: what this gateway has by itself"
    shared.link.answer = "4 70 0 1 2 4 70 0 1000 0"
    shared.clock.advance(1.0)
    known = shared.store.known_usage_of(ALICES)
    assert (known["requests"], known["tokens"], known["limits"]["requests"]["remaining"]) == (3, 70, 6)
    shared.link.answer = "4 80 0 1 1 5 80 0 1000 0"
    assert shared.store.known_usage_of(ALICES)["requests"] == 3
    shared.clock.advance(1.0)
    assert shared.store.known_usage_of(ALICES)["requests"] == 4
    count = len(shared.link.of(scripts.USAGE))
    shared.clock.advance(1.0)
    shared.clock.pump([1.0] * 5)
    assert len(shared.link.of(scripts.USAGE)) == count + 1, "nobody has asked since"
    shared.link.answer = StoreError("gone")
    shared.store.known_usage_of(ALICES)
    shared.clock.advance(1.0)
    assert shared.store.known_usage_of(ALICES)["limits"]["requests"]["limit"] == 5
    alone = SharedStore(shared.clock, shared.clock.seconds, shared.clock.seconds)
    alone.use(build(named("alice", ALICE)))
    assert alone.known_usage_of(ALICES) == alone.usage_of(ALICES)


def test_l5_a_look_at_many_accounts_is_spread_over_seconds():
    shared = Shared()
    shared.link.answer = "4 70 0 1 2 4 70 0 1000 0"
    accounts = [Account(name=f"key {number}", requests=Rate(10, 60.0)) for number in range(500)]
    for account in accounts:
        shared.store.known_usage_of(account)
    counts = []
    for _ in range(4):
        before = len(shared.link.of(scripts.USAGE))
        shared.clock.advance(1.0)
        counts.append(len(shared.link.of(scripts.USAGE)) - before)
    assert counts == [200, 200, 100, 0]
    assert all(shared.store.known_usage_of(account)["requests"] == 3 for account in accounts)


@pytest.mark.parametrize(
    "answer", ["", "0", "nan 0 0 0 0 0 0 0 0 0 0", "0 0 0 0 0 1e300 0 0 0 0 0", "1 9 0 0 0 0 0 0 0 0 0", "x " * 11, "0 " * 12]
)  # fmt: skip
def test_l11_an_answer_that_no_script_gives_is_a_store_that_is_away(answer):
    shared = Shared()
    shared.link.answer = answer
    assert result_of(shared.store.admit(shared.claim())) == [None]
    assert not shared.store.state.is_up
    shared = Shared()
    shared.link.answer = answer
    (usage,) = result_of(shared.store.usage_of(ALICES))
    assert usage.get("requests", 0) == (1 if answer.startswith("1 9") else 0)


def test_l13_a_reload_sets_changes_and_removes_the_store():
    shared = Shared()
    claim = shared.claim()
    shared.store.admit(claim)
    first = shared.link
    shared.store.use(build(named("alice", ALICE), store="redis://other"))
    assert (first.is_open, shared.link.is_open, len(shared.links)) == (False, True, 2)
    shared.store.use(build(named("alice", ALICE)))
    assert not shared.link.is_open
    shared.store.settle(claim, 5)
    alone = shared.claim()
    assert shared.store.admit(alone) is None
    shared.store.use(shared.config)
    shared.store.settle(alone, 5)
    assert shared.store.counts_of(ALICES).running == 0
    shared.store.finish()
    assert not any(link.is_open for link in shared.links)
    assert not shared.clock.getDelayedCalls()


def test_l10_a_request_through_the_gateway_and_its_usage():
    gateway = LimitedGateway(requests="10/m")
    shared = Shared()
    gateway.admission = Admission(shared.store, gateway.clock)
    gateway.use(gateway.config)
    client = gateway.send({})
    gateway.answer()
    assert b"HTTP/1.1 200" in (sent := client.take())
    assert b"x-ratelimit-remaining-requests: 9" in sent.lower()
    shared.link.answer = "4 70 0 1 2 4 70 0 1000 0"
    shown = json.loads(body_of(_get(gateway)))
    used = shown["data"][0]
    assert (used["requests"], used["refused"], used["running"]) == (3, 1, 2), "2 of 4 have ended, and 1 was refused"
    assert used["cost_usd"] is None, "there are no prices"
    assert shown["data"][0]["limits"]["requests"]["remaining"] == 6
    shared.link.answer = StoreError("gone")
    assert json.loads(body_of(_get(gateway)))["data"][0]["limits"]["requests"]["limit"] == 5


def _get(gateway) -> bytes:
    return gateway.send(path="/v1/usage").take()


# The setting


@pytest.mark.parametrize(
    ("written", "hosts", "database", "secure"),
    [
        ("valkey://db", (("db", 6379),), 0, False),
        ("redis://db:7000/3", (("db", 7000),), 3, False),
        ("rediss://u:p@[::1]/1", (("::1", 6379),), 1, True),
        ("valkeys://:p%40ss@db:1/", (("db", 1),), 0, True),
        ("valkey://a,b:1/2?sentinel=main", (("a", 26379), ("b", 1)), 2, False),
    ],
)
def test_l10_how_a_store_is_written(written, hosts, database, secure):
    store = build(named("alice", ALICE), store=written).store
    assert (store.hosts, store.database, store.secure) == (hosts, database, secure)


@pytest.mark.parametrize(
    "written",
    ["db:6379", "http://db", "valkey://", "valkey://a,b", "valkey://db:99999", "valkey://db/x", "valkey://u:@db",
     "valkeys://a,b/0?sentinel=m", "valkey://db/0?other=1", 6379],
)  # fmt: skip
def test_l10_a_store_that_is_none_is_a_mistake_without_its_password(written):
    with pytest.raises(ConfigError) as caught:
        build(named("alice", ALICE), store=written)
    assert any(each.startswith("store") for each in caught.value.mistakes)


def test_l7_the_password_is_hidden():
    config = build(named("alice", ALICE), store=URL)
    assert "the-password-of-the-store" in [secret.reveal() for secret in config.secrets]
    assert "the-password" not in repr(config.store)
    with pytest.raises(ConfigError) as caught:
        build(named("alice", ALICE), store=URL + "/nonsense")
    assert "the-password" not in str(caught.value)
