"""B9 at a terminal: lines for people, in colour unless NO_COLOR; JSON everywhere else, and wherever it is asked for."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import time
import urllib.error
import urllib.request

import pytest

from aigw.log_output.terminal import TerminalFile, allows_colour, is_terminal, printable, readable
from aigw.secret import Secret
from aigw.telemetry.logs import JsonLines
from aigw.telemetry.redaction import Redaction
from tests import fork_server
from tests.test_daemon import CONFIG, KEYS, ROOT

ATTEMPT = {"step": 1, "provider": "down", "model": "a", "outcome": "unreachable", "status": None, "duration_ms": 2, "message": "x", "rests_s": None}  # fmt: skip
REQUEST = {
    "caller": "default", "method": "POST", "path": "/v1/chat/completions", "route": "demo", "provider": "up", "model": "small", "stream": False,
    "attempts": [ATTEMPT, {**ATTEMPT, "step": 2, "provider": "up", "outcome": "ok", "status": 200}], "status": 200, "outcome": "ok", "error": None,
    "ttft_ms": 11, "duration_ms": 1234, "bytes_in": 66, "bytes_out": 368, "usage": {"total_tokens": 19},
}  # fmt: skip


def line(message="Request", level="INFO", request_id="id-1", **fields):
    fields = {**REQUEST, **fields} if message == "Request" else fields
    event = {"time": "2026-11-23T17:22:49.938Z", "level": level, "message": message, "request_id": request_id}
    return json.dumps({**event, "fields": fields}) + "\n"


@pytest.fixture(autouse=True)
def utc(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("message", "level", "shown"),
    [
        ("_QuietSite starting on 40903", "INFO", False),
        ("ConnectionGuard starting on 8443", "INFO", False),
        ("ConnectionGuard starting on '/run/aigw.sock'", "INFO", False),
        ("(TCP Port 8443 Closed)", "INFO", False),
        ("(UNIX Port '/run/aigw.sock' Closed)", "INFO", False),
        ("ConnectionGuard starting on 8443", "WARN", True),
        ("The gateway is starting on port 8443", "INFO", True),
        ("Started", "INFO", True),
    ],
)
def test_b9_a_terminal_shows_a_listener_once(message, level, shown):
    """Twisted names its class; the line "Listening" has the address."""
    assert bool(readable(line(message, level))) is shown


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (line(), "17:22:49  200  demo -> up (small)  1.2 s, 19 tokens, failed: down unreachable\n"),
        (line(stream=True, attempts=[], duration_ms=30, usage={}), "17:22:49  200  demo -> up (small)  stream, first output 11 ms, 30 ms\n"),
        (line(stream=True, attempts=[], outcome="stream_reset", ttft_ms=None, usage={}), "17:22:49  200  demo -> up (small)  stream, 1.2 s  stream_reset  id id-1\n"),
        (line(status=499, outcome="client_gone", provider=None, attempts=[], usage={}), "17:22:49  499  demo  1.2 s  client_gone  id id-1\n"),
        (line(status=404, outcome="error", error="model_not_found (model)", route=None, provider=None, attempts=[], usage={}), "17:22:49  404  POST /v1/chat/completions  1.2 s  model_not_found (model)  id id-1\n"),
        (line("Started", request_id=None, version="0.1", routes=2, providers=["a", "b"]), "17:22:49  Started  version=0.1 routes=2 providers=a,b\n"),
        (line("Step failed: refused", "WARN", step=1, provider="two words", rests_s=None), '17:22:49  warning  Step failed: refused  step=1 provider="two words" id=id-1\n'),
        (line("Not reloaded", "ERROR", None, mistakes=["a: b", "c"]), "17:22:49  error  Not reloaded\n    a: b\n    c\n"),
        (line("Oh", "CRITICAL", None, traceback="Traceback:\n  one\n  two"), "17:22:49  error  Oh\n    Traceback:\n      one\n      two\n"),
    ],
)  # fmt: skip
def test_lines_in_words(written, shown):
    assert readable(written) == shown


@pytest.mark.parametrize(
    ("changes", "paint"),
    [
        ({}, "32"),
        ({"status": 404, "outcome": "error"}, "33"),
        ({"status": 499, "outcome": "client_gone"}, "33"),
        ({"status": 502, "outcome": "error"}, "31"),
        ({"status": 200, "outcome": "stream_truncated"}, "31"),
    ],
)
def test_the_status_is_coloured_by_what_it_means(changes, paint):
    shown = readable(line(**changes), colour=True)
    assert f"\x1b[{paint}m{changes.get('status', 200)}\x1b[0m" in shown
    assert shown.endswith("\x1b[0m\n")
    assert "\x1b" not in readable(line(**changes))


NASTY = ["\x1b[2J", "\x07", "\r\n", "\x9b31m", "\x7f", "\u202e", "\u2028", "\ud800", "\x00", "\u200b"]


@pytest.mark.parametrize("nasty", NASTY, ids=ascii)
@pytest.mark.parametrize(
    "place", ["message", "path", "method", "provider", "error", "value", "id", "mistakes", "traceback"]
)
def test_s7_nothing_from_the_network_steers_the_terminal(nasty, place):
    if place in ("message", "value", "mistakes", "traceback"):
        fields = {"value": nasty, "mistakes": [nasty], "traceback": f"a\n{nasty}"}
        written = line(nasty if place == "message" else "m", **({place: fields[place]} if place in fields else {}))
    elif place == "id":
        written = line(outcome="error", request_id=nasty)
    else:
        written = line(
            **{place: nasty}, route=None, outcome="error", status=404, **({"error": "e"} if place != "error" else {})
        )
    shown = readable(written)
    assert all(each.isprintable() for row in shown.splitlines() for each in row)
    assert shown.count("\n") == len(shown.splitlines()) <= 4
    assert len(shown.split("\u2028")) == 1


def test_what_is_escaped_can_be_read():
    assert printable("a\x1bb\u202e \u00e9\u4f60\U0001f600") == "a\\x1bb\\u202e \u00e9\u4f60\U0001f600"


@pytest.mark.parametrize(
    "broken",
    ["no JSON \x1b[2J\n", '{"message": "Request"}\n', line(attempts="too long, so it is text"), line(usage="text")],
)
def test_a_line_that_cannot_be_put_in_words_is_shown_as_it_is(broken):
    out = io.StringIO()
    TerminalFile(out, colour=False).write(broken)
    assert out.getvalue() == f"{printable(broken.rstrip())}\n"


def test_b9_keys_are_hidden_before_it_is_put_in_words():
    out = io.StringIO()
    observer = JsonLines(TerminalFile(out, colour=False))
    observer.redaction = Redaction([Secret("canary-key")])
    observer({"log_time": 0.0, "aigw_message": "Oh canary-key", "aigw_fields": {"path": "canary-key", "content": "c"}})
    assert out.getvalue() == "00:00:00  Oh ***  path=***\n"


@pytest.mark.parametrize(
    ("environ", "coloured"),
    [
        ({}, True),
        ({"NO_COLOR": "1"}, False),
        ({"NO_COLOR": ""}, True),
        ({"TERM": "dumb"}, False),
        ({"TERM": "xterm"}, True),
    ],
)
def test_no_color_is_respected(environ, coloured):
    assert allows_colour(environ) is coloured


def test_a_closed_or_missing_file_is_no_terminal(tmp_path):
    closed = (tmp_path / "f").open("w")
    closed.close()
    assert not is_terminal(closed)
    assert not is_terminal(None)


# On a pty


class AtTerminal:
    """``aigw WORDS``, whose standard error is a terminal."""

    def __init__(self, folder, *words, config=CONFIG, **environ):
        (folder / "config.yaml").write_text(config)
        (folder / "config.yaml").chmod(0o600)
        self.screen = b""
        self._ours, theirs = pty.openpty()
        inherited = {name: value for name, value in os.environ.items() if name not in ("PORT", "NO_COLOR", "TERM")}
        environ = {**inherited, **KEYS, "TERM": "xterm", "PYTHONPATH": str(ROOT), **environ}
        with (folder / "out").open("w") as out:
            self.process = fork_server.Forked(["aigw", *words], folder, environ, (theirs, out.fileno(), theirs))
        os.close(theirs)

    def wait_for(self, pattern: bytes, seconds=30.0):
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.screen)):
            left = end - time.monotonic()
            assert left > 0, self.screen
            if select.select([self._ours], [], [], left)[0]:
                try:
                    self.screen += os.read(self._ours, 65536)
                except OSError:  # its end is closed
                    assert re.search(pattern, self.screen), self.screen
        return found

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)


def ask(port: int, path: str = "/v1/chat/completions", key=KEYS["GATEWAY_API_KEY"]) -> int:
    body = json.dumps({"model": "r", "messages": [{"role": "user", "content": "hi"}]}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, {"X-Api-Key": key})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=10)
    caught.value.close()
    return caught.value.code


@pytest.mark.parametrize(
    ("words", "environ", "form"),
    [
        ([], {}, rb"\x1b\[31m502\x1b\[0m  r  .*failed: a unreachable.*all_steps_failed.*\r\n"),
        ([], {"NO_COLOR": "1"}, rb"\n\d\d:\d\d:\d\d  502  r  .*failed: a unreachable  all_steps_failed  id \w+\r\n"),
        (["--json-log"], {}, rb'\n\{"time":.*"status":502.*\}\r\n'),
    ],
    ids=["in colour", "NO_COLOR", "--json-log"],
)
def test_b9_a_terminal_gets_one_readable_line_a_request(tmp_path, words, environ, form):
    with AtTerminal(tmp_path, "-c", "config.yaml", *words, **environ) as gateway:
        port = int(gateway.wait_for(rb"127.0.0.1:(\d+)")[1])
        assert ask(port) == 502
        gateway.wait_for(form)
        gateway.process.send_signal(signal.SIGINT)
        gateway.wait_for(b"The gateway has stopped")
        assert gateway.process.wait(15) == -signal.SIGINT
        if environ or words:
            assert b"\x1b" not in gateway.screen


def test_b9_a_wrong_configuration_is_told_in_words_at_a_terminal(tmp_path):
    with AtTerminal(tmp_path, config=CONFIG.replace("90s", "never")) as gateway:
        gateway.wait_for(
            rb"config.yaml: the configuration has mistakes\r\n  config.yaml, line 7: routes\[0\].steps\[0\].timeout: "
        )
        assert gateway.process.wait(15) == 78
