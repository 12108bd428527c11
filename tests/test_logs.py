"""Log lines (B9): one JSON object each, only the fields that are listed, and no key in any of them."""

import gc
import io
import itertools
import json
import sys
import time
from pathlib import Path

import pytest
from twisted.internet.defer import fail
from twisted.logger import Logger, LogLevel, globalLogPublisher
from twisted.python import log as legacy
from twisted.python.failure import Failure

from aigw.config import loader
from aigw.secret import KeySearch, Secret
from aigw.telemetry import logs
from aigw.telemetry.redaction import Redaction
from tests.properties import grid

KEY = "sk-0123456789abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(autouse=True)
def _as_before(failures):
    """What is logged as a failure here is logged on purpose (see conftest)."""
    yield
    failures.clear()


@pytest.fixture
def lines():
    """Everything that Twisted logs while the test runs, as our lines: ``lines()`` parses them, ``lines.text()`` not."""
    file = io.StringIO()
    observer = logs.JsonLines(file)

    def parsed():
        *whole, rest = file.getvalue().split("\n")
        assert rest == "", "the last line is not ended"
        return [json.loads(line) for line in whole]

    parsed.text = file.getvalue
    globalLogPublisher.addObserver(observer)
    yield parsed
    globalLogPublisher.removeObserver(observer)


def one(lines):
    (line,) = lines()
    return line


# The shape of a line.


def test_b9_a_line_has_time_level_message_request_id_and_fields():
    line = written(
        log_level=LogLevel.warn,
        log_time=1700000000.5,
        aigw_message="Step failed: refused",
        aigw_request_id="req-1",
        aigw_fields={"provider": "one", "status": 429, "duration_ms": 1.5, "stream": False, "model": None},
    )
    assert line == (
        '{"time":"2023-11-14T22:13:20.500Z","level":"WARN","message":"Step failed: refused","request_id":"req-1",'
        '"fields":{"provider":"one","status":429,"duration_ms":1.5,"stream":false,"model":null}}\n'
    )


@pytest.mark.parametrize(("say", "level"), [(logs.info, "INFO"), (logs.warn, "WARN"), (logs.error, "ERROR")])
def test_b9_each_function_writes_its_level(lines, say, level):
    say("Trying provider", provider="provider1")
    line = one(lines)
    del line["time"]
    assert line == {"level": level, "message": "Trying provider", "fields": {"provider": "provider1"}}


def test_b9_the_request_id_is_beside_the_message_and_not_in_the_fields(lines):
    logs.info("Request", "req-1", route="a")
    line = one(lines)
    assert list(line) == ["time", "level", "message", "request_id", "fields"]
    assert (line["request_id"], line["fields"]) == ("req-1", {"route": "a"})


@pytest.mark.parametrize(
    "text", ["two\nlines", "\r\n", "tab\t", 'quo"te', "back\\slash", "\u2028\u2029\x85", "\x00\x1b[31m", "ключ 🗝", ""]
)
def test_b9_whatever_a_text_holds_it_is_one_line(lines, text):
    logs.info(f"<{text}>", f"<{text}>", route=f"<{text}>")
    line = one(lines)
    assert (line["message"], line["request_id"], line["fields"]["route"]) == (f"<{text}>",) * 3


def test_b9_each_line_stands_alone(lines):
    for number in range(3):
        logs.info("Request", bytes_in=number)
    assert [line["fields"]["bytes_in"] for line in lines()] == [0, 1, 2]


# Which fields.


def test_b9_fields_that_are_not_listed_are_dropped(lines):
    logs.info("Request", route="r", messages=[{"content": "private"}], api_key="k", headers={"a": "b"}, body="private")
    assert one(lines)["fields"] == {"route": "r"}


def test_b9_fields_that_are_not_listed_are_dropped_beside_a_value_that_cannot_be_encoded(lines):
    logs.info("Request", route=object(), messages=[{"content": "private"}])
    assert list(one(lines)["fields"]) == ["route"]
    assert "private" not in lines.text()


def test_b9_no_listed_field_is_named_after_content_or_credentials():
    content = {"messages", "prompt", "input", "body", "content", "api_key", "key", "authorization", "headers", "detail"}
    assert not logs.FIELDS & content


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (object(), "object object"),
        (Secret(KEY), "***"),
        (ValueError("boom"), "boom"),
        ({"a": {1, object()}}, "object object"),
        (1 + 2j, "(1+2j)"),
        ({(1, 2): "tuple"}, "(1, 2)"),
        ("lone \udc80 surrogate", "surrogate"),
        (["nested \ud800"], "nested"),
        (10**400, "1000"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_b9_a_value_that_json_has_no_form_for_is_said_in_words(lines, value, shown):
    logs.warn("Step failed", "req-1", route=value, provider="one")
    line = one(lines)
    assert (line["level"], line["message"], line["request_id"]) == ("WARN", "Step failed", "req-1")
    assert shown in str(line["fields"]["route"])
    assert "one" in line["fields"]["provider"]
    assert KEY not in lines.text()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_b9_a_number_that_json_has_no_form_for_leaves_the_line_readable(value):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    line = json.loads(written(aigw_message="m", aigw_fields={"ttft_ms": value, "route": "r"}), parse_constant=refuse)
    assert line["fields"]["route"] == "r"


@pytest.mark.parametrize(
    "event",
    [
        {"aigw_message": "file \udc80.yaml is readable", "aigw_fields": {}},
        {"aigw_message": "Request", "aigw_request_id": "\ud800", "aigw_fields": {}},
        {"log_format": "cannot open {name}", "name": "\udcff.pem"},
    ],
    ids=["message", "request id", "foreign"],
)
def test_b9_a_lone_surrogate_costs_no_line(event):
    assert set(json.loads(written(**event))) >= {"time", "level", "message", "fields"}


# Other people's events.


class Counted:
    """Counts how often it is formatted."""

    def __init__(self):
        self.shown = 0

    def __str__(self):
        self.shown += 1
        return "shown"

    __repr__ = __str__


def test_debug_events_are_neither_written_nor_formatted(lines):
    value = Counted()
    Logger("other").debug("value {value}", value=value)
    Logger("other").debug("value {value()}", value=value)
    assert (lines(), value.shown) == ([], 0)


def test_a_foreign_event_is_its_text_and_nothing_that_it_holds(lines):
    value = Counted()
    Logger("other").warn("value {value}", value=value, prompt="private", status=7)
    line = one(lines)
    assert (line["level"], line["message"], line["fields"]) == ("WARN", "value shown", {})
    assert value.shown == 1


def test_a_foreign_event_without_text_is_named_by_its_source(lines):
    Logger("some.module").info()
    assert one(lines)["message"] == "some.module"


def test_an_old_style_event_is_a_line(lines):
    legacy.msg("hello", "from", "long ago")
    assert one(lines)["message"] == "hello from long ago"


def test_an_event_that_cannot_be_formatted_is_a_line(lines):
    Logger("other").info("{missing} {0}")
    assert "format" in one(lines)["message"].lower()


@pytest.mark.parametrize("text", ["x" * 10_000_000, "y\n" * 1_000_000], ids=["long", "many lines"])
def test_b9_a_foreign_line_is_bounded(lines, text):
    Logger("other").info("{text}", text=text)
    assert one(lines)["message"] == text[: logs.MAX_MESSAGE]


@pytest.mark.parametrize("part", ["message", "request_id", "route", "mistakes"])
def test_b9_a_line_of_ours_is_bounded(lines, part):
    long = {"request_id": None, "message": "m", "route": "r", part: "x" * 10_000_000}
    if part == "mistakes":
        long["mistakes"] = ["x" * 1000] * 10_000
    logs.info(long.pop("message"), long.pop("request_id"), **long)
    assert len(lines()) == 1
    assert len(lines.text()) < 100_000


def boom(depth=0, message="boom"):
    if depth:
        boom(depth - 1, message)
    raise ValueError(message)


def test_a_failure_is_one_line_with_its_traceback(lines):
    try:
        boom(2)
    except ValueError:
        Logger("other").failure("while serving {what}", what="tea")
    line = one(lines)
    assert (line["level"], line["message"]) == ("CRITICAL", "while serving tea")
    assert list(line["fields"]) == ["traceback"]
    assert "in boom" in line["fields"]["traceback"]
    assert "ValueError: boom" in line["fields"]["traceback"]


@pytest.mark.parametrize("depth", [0, 100])
def test_an_old_style_failure_is_one_line_that_says_the_error(lines, depth):
    try:
        boom(depth)
    except ValueError:
        legacy.err(None, "while serving")
    line = one(lines)
    assert line["level"] == "CRITICAL"
    assert "while serving" in line["message"]
    assert "ValueError: boom" in line["fields"].get("traceback", line["message"])


def test_an_error_that_nobody_handled_is_a_line_with_its_traceback(lines):
    fail(ValueError("boom"))
    gc.collect()
    assert "ValueError: boom" in lines()[-1]["fields"]["traceback"]


@pytest.mark.parametrize(
    ("depth", "message"),
    [(500, "boom"), (0, "x" * 1_000_000 + " boom"), (0, "\n" * 1_000_000 + " boom")],
    ids=["deep", "long", "many lines"],
)
def test_b9_a_traceback_is_bounded_and_keeps_its_end(lines, depth, message):
    try:
        boom(depth, message)
    except ValueError:
        Logger("other").failure("broken")
    (traceback,) = one(lines)["fields"].values()
    assert len(traceback) <= logs.MAX_TRACEBACK
    assert traceback.rstrip().endswith("boom")


def test_b9_a_failure_whose_text_has_a_lone_surrogate_costs_no_line(lines):
    try:
        boom(message="cannot open \udcff.pem")
    except ValueError:
        Logger("other").failure("broken")
    assert "ValueError: cannot open" in one(lines)["fields"]["traceback"]


# Keys.

KEYS = {
    "plain": KEY,
    "with a quote": 'sk-"quoted"-key',
    "with a backslash": r"sk-back\slash-\n-key",
    "with both": '"\\"sk\\\\""',
    "with JSON in it": '","level":"ERROR","x":"',
    "a quote": '"',
    "a backslash": "\\",
    "a member's name": "level",
    "another member's name": "fields",
    "a field's name": "mistakes",
    "a level's name": "INFO",
    "a letter": "e",
    "digits": "2023",
}

PLACES = {
    "message": lambda key: logs.info(f"told {key} by it", route="r"),
    "request id": lambda key: logs.info("m", f"<{key}>"),
    "field": lambda key: logs.info("m", route=key, provider=f"{key}{key}"),
    "list in a field": lambda key: logs.info("m", mistakes=["fine", f"wrong: {key}"]),
    "mapping in a field": lambda key: logs.info("m", attempts=[{"message": f"wrong: {key}"}]),
    "words for a value": lambda key: logs.info("m", route={Text(f"<{key}>")}),
    "foreign event": lambda key: Logger("other").info("told {key}", key=key),
    "foreign namespace": lambda key: Logger(f"other.{key}").info(),
    "traceback": lambda key: Logger("other").failure("broken", Failure(ValueError(f"bad key {key}!"))),
    "traceback and message": lambda key: legacy.err(Failure(ValueError(key)), f"because {key}"),
}


class Text(str):
    """Shows as it is, like an exception's text does."""

    def __repr__(self):
        return str(self)


@grid("key", "place")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("key", KEYS)
def test_b9_a_key_is_hidden_wherever_it_stands(lines, key, place):
    logs.use_redaction(Redaction([Secret(KEYS[key])]))
    PLACES[place](KEYS[key])
    line = one(lines)
    assert set(line) - {"request_id"} == {"time", "level", "message", "fields"}
    assert not [text for text in texts(line) if KEYS[key] in text]
    assert "***" in lines.text()


@pytest.mark.parametrize("key", ["level", "fields", "message", "time", "route", "attempts", "status"])
def test_b9_a_key_that_is_also_a_member_name_does_not_break_the_line(key):
    attempts = [{"status": 1, "message": f"no {key}"}]
    line = written(
        [Secret(key)],
        log_time=1700000000,
        aigw_message=f"a {key}",
        aigw_request_id="i",
        aigw_fields={"route": "r", "attempts": attempts},
    )
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.000Z",
        "level": "INFO",
        "message": "a ***",
        "request_id": "i",
        "fields": {"route": "r", "attempts": [{"status": 1, "message": "no ***"}]},
    }


@pytest.mark.parametrize("keys", list(itertools.permutations(["sk-1234", "sk-1234-abcdef", "abcdef"])))
def test_b9_a_key_that_is_part_of_another_leaves_nothing_of_it(lines, keys):
    gateway, one_, two = keys
    provider = {"base_url": "https://a.example"}
    tree = {
        "api_key": gateway,
        "providers": [{**provider, "name": "one", "api_key": one_}, {**provider, "name": "two", "api_key": two}],
        "routes": [{"name": "r", "steps": [{"provider": "one", "model": "m"}]}],
    }
    logs.use_redaction(Redaction(loader.build(tree, {}, Path("/")).secrets))  # as the service does
    logs.warn("told sk-1234, sk-1234-abcdef and abcdef", mistakes=["sk-1234-abcdef"])
    line = one(lines)
    assert (line["message"], line["fields"]["mistakes"]) == ("told ***, *** and ***", ["***"])


@pytest.mark.parametrize("shown", [1, 8, len(KEY) - 1, len(KEY)])
def test_b9_no_part_of_a_key_is_left_where_a_message_is_cut(lines, shown):
    logs.use_redaction(Redaction([Secret(KEY)]))
    Logger("other").info("{text}", text="." * (logs.MAX_MESSAGE - shown) + KEY)
    assert set(one(lines)["message"]) <= {".", "*"}


def test_b9_no_part_of_a_key_is_left_where_a_traceback_is_cut(lines):
    logs.use_redaction(Redaction([Secret(KEY)]))
    for shown in range(len(KEY)):
        Logger("other").failure("broken", Failure(ValueError(KEY + "." * (logs.MAX_TRACEBACK - shown))))
    assert len(lines()) == len(KEY)
    assert not [n for n in range(8, len(KEY)) if KEY[-n:] in lines.text()]


def test_b9_no_part_of_a_key_is_left_where_words_for_a_value_are_cut(lines):
    logs.use_redaction(Redaction([Secret(KEY)]))
    for before in range(100, 300):
        logs.info("m", route={Text("." * before + KEY)})
    assert len(lines()) == 200
    assert not [n for n in range(8, len(KEY)) if KEY[:n] in lines.text()]


def test_b9_keys_of_before_a_reload_stay_hidden_and_those_of_another_service_are_its_own(lines):
    redaction = Redaction([Secret("first")])
    logs.info("first second third")
    logs.use_redaction(redaction)
    logs.info("first second third")
    redaction.use([Secret("second"), Secret("third")])
    logs.info("first second third")
    logs.use_redaction(Redaction())
    logs.info("first second third")
    shown = ["first second third", "*** second third", "*** *** ***", "first second third"]
    assert [line["message"] for line in lines()] == shown


@pytest.mark.parametrize(
    ("key", "text", "hidden"),
    [
        ("k1", "a k1 b k1", "a *** b ***"),
        ('k"1', r'plain k"1, in JSON k\"1', "plain ***, in JSON ***"),
        ("k\\1", r"plain k\1, in JSON k\\1", "plain ***, in JSON ***"),
        ('"\\', r'"\ and \"\\', "*** and ***"),
        ("k1", "K1 k 1", "K1 k 1"),
        ("k/1", r"only in JSON k\/1", "only in JSON ***"),
        ("k1", r"\\k1 \\\\\k\\1 \u006B1k\\u0031 \u006bu0031", r"*** *** ****** \u006bu0031"),
        ("a\\a\\", r"a\a\a\a\ \a\\\a\u005Ca\u005ca\\", "****** ******"),
    ],
)
def test_b9_a_secret_hides_itself_plain_and_as_json_writes_it(key, text, hidden):
    assert Secret(key).hide_in(text) == hidden
    assert KeySearch([Secret(key)]).are_in_any_form(text.encode()) == ("***" in hidden)


@pytest.mark.parametrize("key", [KEY, "\\" * 9, "\\a" * 20, "aaaaaaaaaaaa"])
@pytest.mark.parametrize("text", ["\\" * 60_000, "\\a" * 30_000, ("a" + "\\" * 99) * 600, "\\u005c" * 10_000])
def test_b9_b3_a_text_full_of_backslashes_is_gone_through_once(key, text):
    begun = time.process_time()
    Secret(key + "b").hide_in(text)
    assert time.process_time() - begun < 0.5  # it was ten seconds and more


def test_b9_a_text_without_the_key_stays_the_very_same_object():
    text = "nothing here"
    assert Secret(KEY).hide_in(text) is text


# 500 keys: one search for all.

MANY = [Secret(f"sk-proj-{number:04d}{number * 7919:032x}") for number in range(500)]
AWKWARD = [
    "short",
    "k1",
    "with space 1234",
    "back\\slash-12345",
    "percent%41-12345",
    "caf\u00e9-0123456789",
    "\U0001f511" * 9,
    'q"uote-1234',
]


@grid("key", "form")
@pytest.mark.parametrize("form", ["plain", "as JSON writes it", "in ASCII", "quoted twice"])
@pytest.mark.parametrize("key", [f"sk-proj-{number:04d}{number * 7919:032x}" for number in (0, 250, 499)] + AWKWARD)
def test_b9_of_many_keys_each_is_found_in_each_form(key, form):
    encode = {
        "plain": str,
        "as JSON writes it": lambda text: json.dumps(text, ensure_ascii=False),
        "in ASCII": json.dumps,
        "quoted twice": lambda text: json.dumps(json.dumps(text)),
    }[form]
    search = KeySearch([*MANY, *map(Secret, AWKWARD)])
    text = f"before {encode(key)} behind"
    assert search.hide(text) == Secret(key).hide_in(text)
    assert "***" in search.hide(text)
    assert search.are_in_any_form(text.encode())
    assert key not in search.hide_any_form(text)
    assert search.may_be_in([(b"x-header", b"a"), (b"x-other", key.encode())])


def test_b9_many_keys_that_are_not_there_leave_the_very_same_object():
    search = KeySearch([*MANY, *map(Secret, AWKWARD)])
    text = json.dumps({"id": "chatcmpl-0123456789abcdef0123456789abcdef", "model": "sk-proj-0000", "a": '\n"'})
    assert search.hide(text) is text
    assert search.hide_any_form(text) is text
    assert not search.may_be_in([(b"x-header", text.replace("\\", "").encode())])


def test_b9_500_keys_cost_a_line_no_more_than_a_few():
    """It was 40 times as much."""
    line = json.dumps({"message": "Request", "fields": {f"field_{number}": f"value {number}" for number in range(20)}})

    def seconds(search):
        begun = time.process_time()
        for _ in range(200):
            search.hide(line)
            search.may_be_in([(b"x-header", line.encode())])
        return time.process_time() - begun

    few, many = KeySearch(MANY[:10]), KeySearch(MANY)
    assert min(seconds(many) for _ in range(5)) < 8 * min(seconds(few) for _ in range(5))


# Where lines go.


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_b9_a_name_beyond_ascii_is_json_on_a_stream_of_any_encoding(encoding):
    """Python writes ``\\xe9`` to standard error in ASCII, which is no JSON."""
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, errors="backslashreplace")
    logs.JsonLines(file)({"aigw_message": "caf\u00e9 \u4f60 \U0001f511", "aigw_fields": {"route": "\u00e9"}})
    line = json.loads(raw.getvalue().decode(encoding))
    assert (line["message"], line["fields"]) == ("caf\u00e9 \u4f60 \U0001f511", {"route": "\u00e9"})


def test_a_full_disk_does_not_stop_the_gateway():
    full = open("/dev/full", "w")  # noqa: SIM115
    try:
        for _ in range(3):
            logs.JsonLines(full)({"aigw_message": "m", "aigw_fields": {}})
    finally:
        with pytest.raises(OSError, match="No space left"):
            full.close()


def test_a_closed_file_does_not_stop_the_gateway():
    file = io.StringIO()
    file.close()
    logs.JsonLines(file)({"aigw_message": "m", "aigw_fields": {}})


def test_lines_go_on_after_a_write_error():
    file = Choked()
    observer = logs.JsonLines(file)
    for choked in (False, True, False):
        file.choked = choked
        observer({"aigw_message": f"choked {choked}", "aigw_fields": {}})
    assert [json.loads(line)["message"] for line in file.getvalue().splitlines()] == ["choked False"] * 2


class Choked(io.StringIO):
    """A pipe that now and then nobody reads."""

    choked = False

    def write(self, text):
        if self.choked:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return super().write(text)


def test_each_line_is_flushed_when_it_is_written(tmp_path):
    with (tmp_path / "log").open("w") as file:
        logs.JsonLines(file)({"aigw_message": "m", "aigw_fields": {}})
        assert json.loads((tmp_path / "log").read_text())["message"] == "m"


def test_the_factory_for_twistd_writes_to_standard_error(capfd):
    lines = logs.json_lines()
    lines({"aigw_message": "m", "aigw_fields": {}})
    lines.writer.finish()
    assert json.loads(capfd.readouterr().err)["message"] == "m"


def test_b9_a_standard_error_that_was_closed_at_the_start_costs_lines_and_nothing_else(monkeypatch):
    monkeypatch.setattr(sys, "__stderr__", None)
    lines = logs.json_lines()
    lines({"aigw_message": "m", "aigw_fields": {}})
    lines.writer.finish()
    assert lines.writer.dropped == 1


def written(secrets=(), **event):
    """The line for this very event."""
    file = io.StringIO()
    observer = logs.JsonLines(file)
    observer.redaction = Redaction(secrets)
    observer(event)
    return file.getvalue()


def texts(value):
    """Every string value in a parsed line, member names not included."""
    if isinstance(value, dict):
        return [text for member in value.values() for text in texts(member)]
    if isinstance(value, list):
        return [text for member in value for text in texts(member)]
    return [value] if isinstance(value, str) else []
