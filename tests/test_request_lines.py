"""The short way of a request's log line (G1): the bytes of the long way, and no key in it."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import LogLevel, globalLogPublisher

from aigw.secret import Secret
from aigw.telemetry import logs, request_lines
from aigw.telemetry.record import AttemptRecord, KeyAttemptRecord, Record, Skipped, for_log, names_for, texts_for
from aigw.telemetry.redaction import Redaction
from aigw.telemetry.telemetry import Telemetry
from tests.properties import given
from tests.test_cost import calls
from tests.test_tally import attempt, record

KEY = "sk-0123456789abcdefghij"
AWKWARD = [KEY, "short1", 'q"uote-1234', "back\\slash-12345", "café-0123456789", "with space 1234", "\U0001f511a1" * 9]
# Each may hold a text of a client, of a provider or of the configuration.
PLACES = ["request_id", *texts_for(Record)]
PLACES_OF_ATTEMPT = list(texts_for(AttemptRecord))


class File:
    """A log file for bytes, which keeps all lines."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def write(self, line: str) -> None:
        self.lines.append(line.encode())

    def write_bytes(self, line: bytes) -> None:
        self.lines.append(line)

    def flush(self) -> None:
        pass


class Log:
    """Both ways for the same keys. The clock stands still."""

    def __init__(self, *keys: Secret, has_hashed: bool = False) -> None:
        self.redaction = Redaction()
        self.redaction.use(keys, has_hashed)
        self.short, self.long = File(), File()
        self.ways = logs.JsonLines(self.short), logs.JsonLines(self.long)
        for way in self.ways:
            way.redaction = self.redaction

    def both(self, record: Record, level: object = LogLevel.info) -> tuple[bytes | None, bytes]:
        """The line of the short way, if there is one, and of the long way."""
        fields = for_log(record)
        event = {"log_level": level, "log_time": 1000.25, "aigw_message": "Request", "aigw_fields": fields}
        self.ways[1]({**event, "aigw_request_id": record.request_id, "aigw_are_known": True})
        short = self.short.lines.pop() if self.ways[0].write_request(record, level) else None
        return short, self.long.lines.pop()


@pytest.fixture(autouse=True)
def _still(monkeypatch):
    monkeypatch.setattr(request_lines.time, "time", lambda: 1000.25)


RECORDS = {
    "plain": record(),
    "unicode": record(requested_model="módèl \U0001f511 \u2028", path='/v1/"chat"'),
    "control characters": record(requested_model="a\x00\x1f\x7f\t"),
    "stream": record(stream=True, ttft=0.5, ttft_ms=500, held=0.1, held_ms=100, keepalives=2, hedge="won"),
    "usage": record(usage={"prompt_tokens": 12, "completion_tokens": 2**53 - 1}),
    "cost": record(cost=Decimal("0.000123"), estimated=True),
    "cost of nothing": record(cost=Decimal(0)),
    "a key of several": record(
        KeyAttemptRecord(1, "a", "m1", "ok", 200, 4, "", None, "h", "/p", None, key_number=2), key_number=2
    ),
    "no attempt": record(status=401, outcome="error", error="invalid_api_key", route=None, provider=None),
    "address": record(client_address="2001:db8::1"),
}
LONG = {
    "two attempts": record(attempt(1, "refused", 5, status=429, message="answered 429"), attempt(2)),
    "skipped": record(skipped=(Skipped(1, "cooling_down", 123),)),
    "dropped": record(dropped=("tools",)),
    "surrogate": record(requested_model="\ud83d"),
    "long": record(path="/" + "a" * 70_000),
}


@pytest.mark.parametrize("level", [LogLevel.info, LogLevel.warn])
@pytest.mark.parametrize("kind", [*RECORDS, *LONG])
def test_g1_a_line_has_the_same_bytes_each_way(kind, level):
    log = Log(Secret(KEY))
    for _ in range(2):  # the second one is made of texts that are known
        short, long = log.both({**RECORDS, **LONG}[kind], level)
        assert short == (None if kind in LONG else long)


_texts = st.text(st.characters(exclude_categories=[]), max_size=20) | st.sampled_from(["a", KEY, "\\", f"\\{KEY}", '"'])


@given(
    st.lists(st.fixed_dictionaries({}, optional={name: _texts for name in PLACES}), max_size=4),
    st.lists(_texts, min_size=7, max_size=7),
    examples=(60, 1000),
)
def test_g1_whatever_the_texts_are_the_bytes_are_the_same(changes, of_attempt):
    log = Log(*map(Secret, AWKWARD))
    provider, model, outcome, message, host, path, code = of_attempt
    tried = AttemptRecord(1, provider, model, outcome, 200, 1, message, None, host, path, code)
    for change in [*changes, {}]:
        short, long = log.both(record(tried, **change))
        assert short in (None, long)


@pytest.mark.parametrize("key", AWKWARD)
@pytest.mark.parametrize("place", [*PLACES, *(f"attempt.{name}" for name in PLACES_OF_ATTEMPT), "usage"])
def test_g1_b9_a_key_in_any_text_is_hidden_after_lines_without_it_too(key, place):
    log = Log(*map(Secret, AWKWARD))
    text = f"before {key} behind"
    if place.startswith("attempt."):
        values = {"step": 1, "provider": "a", "model": "m1", "outcome": "ok", "status": 200, "duration_ms": 1}
        with_key = record(AttemptRecord(**{**values, "message": "", place.partition(".")[2]: text}))
    else:
        with_key = record(**{place: {text: 1} if place == "usage" else text})
    assert log.both(record())[0] is not None
    assert log.both(record())[0] is not None
    for _ in range(2):
        short, long = log.both(with_key)
        assert short is None
        assert b"***" in long
    assert log.both(record())[0] is not None


def test_g1_each_text_of_the_line_is_searched():
    """A field that holds texts in another form must be looked at in RequestLines too."""
    numbers = {"step", "stream", "bytes_in", "bytes_out", "keepalives", "status", "duration_ms", "ttft_ms", "held_ms"}
    looked_at = {"usage", "attempts", "skipped", "dropped"}
    if_set = {"cost", "estimated"}
    assert {*names_for(Record, "log")} == {*texts_for(Record)} | numbers | looked_at | if_set
    of_attempts = {"step", "status", "duration_ms", "rests_s"}
    assert {*names_for(AttemptRecord, "log")} == {*texts_for(AttemptRecord)} | of_attempts
    assert {*names_for(KeyAttemptRecord, "log")} == {*names_for(AttemptRecord, "log"), "key_number"}


@pytest.mark.parametrize("place", ["request_id", "caller", "model"])
def test_g1_b9_the_keys_of_a_reload_are_hidden_from_the_first_line_on(place):
    log, changed = Log(Secret(KEY)), record(**{place: "new-key-12345678"})
    for _ in range(2):
        assert log.both(changed)[0] is not None
    log.redaction.use_changing([Secret("new-key-12345678")])
    short, long = log.both(changed)
    assert short is None
    assert b"new-key" not in long
    log.redaction.use_changing([])
    assert log.both(changed)[0] is not None
    log.redaction.use([Secret("new-key-12345678")])
    assert log.both(changed)[0] is None


def test_g1_a_key_of_which_the_hash_is_known_is_hidden():
    log, made = Log(has_hashed=True), "aigw_" + "a1" * 20
    assert log.both(record())[0] is not None
    assert log.both(record(request_id=made))[0] is None
    assert log.both(record(requested_model=made))[0] is None


def test_g1_what_is_remembered_is_bounded():
    log, lines = Log(Secret(KEY)), request_lines.RequestLines()
    for number in range(3 * request_lines.MOST_TEXTS):
        assert lines.line(record(caller=f"caller {number}", path="/" + "a" * 5000), "INFO", log.redaction.hide)
    assert len(lines._clean) <= request_lines.MOST_TEXTS + 20
    assert max(len(text or "") for text in lines._clean) <= request_lines.MOST_LETTERS


@pytest.fixture
def only():
    """Our log is the only observer; gives its file."""
    others = list(globalLogPublisher._observers)
    made: list[logs.JsonLines] = []

    def begin(file) -> logs.JsonLines:
        made.append(logs.JsonLines(file))
        for other in others:
            globalLogPublisher.removeObserver(other)
        globalLogPublisher.addObserver(made[-1])
        return made[-1]

    yield begin
    for each in made:
        globalLogPublisher.removeObserver(each)
    for other in others:
        globalLogPublisher.addObserver(other)


def test_g1_other_observers_see_each_request_in_the_same_order(only):
    file, seen = File(), []
    only(file)
    logs.request(record(request_id="one"), LogLevel.info)
    globalLogPublisher.addObserver(seen.append)
    try:
        logs.request(record(request_id="two"), LogLevel.info)
        logs.info("between")
        logs.request(record(request_id="three"), LogLevel.warn)
    finally:
        globalLogPublisher.removeObserver(seen.append)
    assert [event.get("aigw_request_id") for event in seen] == ["two", None, "three"]
    words = [b'"one"', b'"two"', b'"between"', b'"three"']
    assert all(word in line for word, line in zip(words, file.lines, strict=True))


def test_g1_a_file_that_takes_only_text_has_the_line(only):
    class Text(File):
        write_bytes = None

    file = Text()
    only(file)
    logs.request(record(), LogLevel.info)
    assert len(file.lines) == 1


def test_g1_d7_the_cost_of_a_line_does_not_grow_with_the_number_of_keys(only):
    """100 keys of providers, and 10,000 of callers of which only the hash is known: calls and time are those of 2 keys."""

    def cost(keys: int, has_hashed: bool) -> int:
        lines = only(File())
        telemetry = Telemetry(lambda: None, Clock(), lines.redaction)
        lines.redaction.use([Secret(f"sk-proj-{n:04d}{n * 7919:032x}") for n in range(keys)], has_hashed)
        for _ in range(3):
            telemetry.record(record())
        counted = calls(lambda: [telemetry.record(record()) for _ in range(10)])
        globalLogPublisher.removeObserver(lines)
        return sum(counted)

    few, many = cost(2, False), cost(100, True)
    assert many < few + 10 * 16  # of the id each kind of search is made once
