"""D6: ``aigw``, the short words for twistd, and ``aigw init``."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import trustme
import yaml
from twisted.internet.testing import MemoryReactorClock

from aigw import __version__
from aigw.command import COMMANDS, EX_USAGE, HELP, translate
from aigw.commands import own_requests
from aigw.tap import EX_USAGE as TAP_USAGE
from aigw.tap import Options
from tests import fork_server
from tests.providers import completion
from tests.test_daemon import CONFIG, KEYS, ROOT, Daemon


def command(folder, *words, config=CONFIG, environ=KEYS):
    if config is not None:
        (folder / "config.yaml").write_text(config)
        (folder / "config.yaml").chmod(0o600)
    inherited = {name: value for name, value in os.environ.items() if name not in ("PORT", "TLS_CERT_FILE")}
    environ = {**inherited, **environ, "PYTHONPATH": str(ROOT)}
    return {"args": [sys.executable, "-m", "aigw", *words], "cwd": folder, "text": True, "env": environ}


def run(folder, *words, **more):
    given = more.pop("input", "")
    ready = command(folder, *words, **more)
    assert fork_server.may_fork(ready["args"], ready["env"])
    return fork_server.run(["aigw", *words], ready["cwd"], ready["env"], given)


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ([], []),
        (["-c", "f"], ["-c", "f"]),
        (["--json-log"], ["--json-log"]),
        (["demo"], ["--demo"]),
        (["check", "-c", "f"], ["--check-config", "-c", "f"]),
        (["check-providers", "--json"], ["--check-providers", "--json"]),
        (["check-providers", "--try"], ["--check-providers", "--try"]),
        (["explain", "r.json", "-c", "f"], ["--explain", "r.json", "-c", "f"]),
        (["explain", "-", "--json"], ["--explain", "-", "--json"]),
        (["--version"], ["--version"]),
    ],
)
def test_d6_a_command_is_nothing_but_twistd_s(words, options):
    assert translate(words) == ["-n", "--pidfile=", "--reactor=aigw", "aigw", *options]


def test_each_command_is_an_option_of_twistd_aigw_and_stands_in_the_help():
    names = {f"--{name}" for name, *_ in [*Options.optFlags, *Options.optParameters]}
    for name, options in COMMANDS.items():
        assert set(options) <= names
        assert f"aigw {name} " in HELP
    assert EX_USAGE == TAP_USAGE


@pytest.mark.parametrize("words", [["help"], ["--help"], ["-h"], ["check", "--help"], ["init", "-h"]])
def test_help(tmp_path, words):
    done = run(tmp_path, *words, config=None)
    assert (done.returncode, done.stdout, done.stderr) == (0, HELP, "")


def test_version(tmp_path):
    done = subprocess.run(**command(tmp_path, "--version", config=None), capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"aigw {__version__}\n", "")


@pytest.mark.parametrize(
    "words",
    [
        ["frobnicate"],
        ["check", "frobnicate"],
        ["demo", "-c", "x"],
        ["--frobnicate"],
        ["init", "a", "b"],
        ["init", "-c"],
        ["explain"],
        ["explain", ""],
        ["explain", "-c", "config.yaml", "r.json"],
    ],
)
def test_d6_d4_words_that_make_no_sense_are_exit_64(tmp_path, words):
    done = run(tmp_path, *words)
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr.startswith("aigw: ")


def test_d6_d4_check(tmp_path):
    done = run(tmp_path, "check")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("The configuration is good.\n")
    done = run(tmp_path, "check", config=CONFIG.replace("90s", "never"))
    assert done.returncode == 78


def test_b1_without_a_file_it_says_where_it_looked_and_how_to_get_one(tmp_path):
    done = run(tmp_path, "check", config=None)
    assert (done.returncode, done.stdout) == (78, "")
    places = "config.yaml or /etc/ai-gateway/config.yaml"
    assert (
        done.stderr
        == f"aigw: there is no configuration file {places}; name one with -c FILE, or write one with: aigw init\n"
    )


class Command(Daemon):
    def start(self, args, **more):
        args = [sys.executable, "-m", "aigw", *args[args.index("aigw") + 1 :]]
        return super().start(args, **more)


def test_b9_it_runs_in_the_foreground_and_logs_json_where_there_is_no_terminal(tmp_path):
    with Command(tmp_path, "-c", "config.yaml") as daemon:
        with socket.create_connection(daemon.address()):
            daemon.wait_for("The gateway has started")
        assert daemon.stop(signal.SIGINT) == -signal.SIGINT
        assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", "out", "err"}, "no pid file, no log file"


# init

ANSWERS = [
    "openai",
    "https://api.openai.com/v1",
    "gpt-5-mini",
    "",
    "local",
    "http://127.0.0.1:11434/v1",
    "llama",
    "-",
    "",
    "chat",
    "",
]


def test_d6_init_writes_a_file_that_the_gateway_takes(tmp_path):
    done = run(tmp_path, "init", config=None, input="\n".join(ANSWERS))
    assert (done.returncode, done.stderr) == (0, "")
    path = tmp_path / "config.yaml"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert yaml.safe_load(path.read_text()) == {
        "api_key": "${GATEWAY_API_KEY}",
        "port": 8080,
        "when_refused": "pass_on",
        "providers": [
            {"name": "openai", "base_url": "https://api.openai.com/v1", "api_key": "${OPENAI_API_KEY}"},
            {"name": "local", "base_url": "http://127.0.0.1:11434/v1"},
        ],
        "routes": [
            {
                "name": "chat",
                "steps": [
                    {"provider": "openai", "model": "gpt-5-mini", "timeout": "60s"},
                    {"provider": "local", "model": "llama", "timeout": "60s"},
                ],
            }
        ],
    }
    assert re.findall(r"export (\w+)=", done.stdout) == ["GATEWAY_API_KEY", "OPENAI_API_KEY"]
    environ = {"GATEWAY_API_KEY": "gateway-key-0987", "OPENAI_API_KEY": "canary-key-4711"}
    assert run(tmp_path, "check", config=None, environ=environ).returncode == 0


@pytest.mark.parametrize("there", ["file", "link to nothing"])
def test_d6_init_overwrites_nothing(tmp_path, there):
    path = tmp_path / "config.yaml"
    path.write_text("mine") if there == "file" else path.symlink_to("nowhere")
    done = run(tmp_path, "init", config=None, input="\n".join(ANSWERS))
    assert done.returncode == 73
    assert "config.yaml exists already and is kept" in done.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["config.yaml"]
    assert there != "file" or path.read_text() == "mine"
    assert run(tmp_path, "init", "other.yaml", config=None, input="\n".join(ANSWERS)).returncode == 0


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([], "the input has no answer to the question 'Base URL"),
        ([""], "at least one provider is required"),
        (["a", "ftp://x/v1", "m", "", ""], "write a URL that begins with https:// or http://"),
        (["a", "https://x/v1", "", "", ""], "write a name of printable characters"),
        (["a", "https://x/v1", "m", "sk-Canary4711key", ""], "write the name of the variable (A to Z"),
        (["a", "https://x/v1", "m", "gsk_Canary4711key", ""], "write the name of the variable (A to Z"),
        (["a", "https://x/v1", "m", "", "", "r", "CANARY-4711"], "write the name of the variable (A to Z"),
        (["a", "https://x/v1", "m", "", "a", "https://y/v1"], "another provider has this name"),
        (["a", "https://x/v1?q=1", "m", "", "", "", ""], "the URL contains a query"),
        (["a", "https://x/v1/chat/completions", "m", "", "", "", ""], "the URL ends in /chat/completions"),
        (["a\x1b[2J", "https://x/v1", "m", "", ""], "write a name of printable characters"),
        (["${A}", "https://x/v1", "m", "", ""], "write a name of printable characters"),
    ],
)  # fmt: skip
def test_init_takes_no_answer_that_cannot_work_and_repeats_no_key(tmp_path, answers, said):
    done = run(tmp_path, "init", config=None, input="\n".join(answers or ["a"]))
    assert done.returncode == 64
    assert said in done.stderr
    assert done.stderr.endswith("; config.yaml was not written\n")
    assert "anary" not in (done.stdout + done.stderr).replace("CANARY", "Canary")
    assert not list(tmp_path.iterdir())


def test_init_asks_again_at_a_terminal(tmp_path):
    ours, theirs = pty.openpty()
    given = command(tmp_path, "init", config=None)
    process = subprocess.Popen(**given, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    os.close(theirs)
    wrong = [*ANSWERS[:3], "the-key-itself", *ANSWERS[3:]]
    os.write(ours, "".join(f"{each}\n" for each in wrong).encode())
    out, _ = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0
    assert "  write the name of the variable (A to Z" in out
    assert "Environment variable with its key, or - if it needs no key [OPENAI_API_KEY]: " in out
    assert "the-key-itself" not in out
    assert (tmp_path / "config.yaml").exists()


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_init_s_curl_line_calls_the_gateway(tmp_path):
    class Provider(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(completion())))
            self.end_headers()
            self.wfile.write(completion())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Provider)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        answers = [
            'it\'s "my" provider',
            f"http://127.0.0.1:{server.server_port}/v1",
            "m",
            "PROVIDER_KEY",
            "",
            "it's $HOME",
            "",
        ]
        done = run(tmp_path, "init", "my file.yaml", config=None, input="\n".join(answers))
        assert done.returncode == 0, done.stderr
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        path = tmp_path / "my file.yaml"
        path.write_text(path.read_text().replace("port: 8080", f"port: {port}"))  # another may have that one
        line = re.search(r"^  (curl .*)$", done.stdout, re.MULTILINE)[1].replace(":8080/", f":{port}/")
        environ = {"GATEWAY_API_KEY": "gateway-key-0987", "PROVIDER_KEY": "canary-key-4711"}
        with Command(tmp_path, "-c", "my file.yaml", config=None, environ=environ) as daemon:
            daemon.wait_for("The gateway has started")
            shell = {
                "shell": True,
                "capture_output": True,
                "timeout": 20,
                "check": True,
                "env": {**os.environ, **environ},
            }
            assert json.loads(subprocess.run(line, **shell).stdout) == json.loads(completion())
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


# The demo


def test_the_demo_asks_itself_one_request_at_a_time_and_not_for_ever(monkeypatch):
    monkeypatch.setattr(own_requests, "MOST", 3)
    reactor = MemoryReactorClock()
    requests = own_requests.OwnRequests(reactor, 8443, trustme.CA().cert_pem.bytes(), b"a request")
    requests.start()
    counts = []
    for _ in range(60):
        reactor.advance(1)
        counts.append(len(reactor.tcpClients))
    assert (counts[0], counts[8], counts[-1]) == (1, 1, 3), "each may take 10 s"
    assert not reactor.getDelayedCalls()


def test_the_demo_s_request_under_way_ends_with_it():
    reactor = MemoryReactorClock()
    requests = own_requests.OwnRequests(reactor, 8443, trustme.CA().cert_pem.bytes(), b"a request")
    requests.start()
    reactor.advance(1)
    assert len(reactor.tcpClients) == 1
    requests.stop()
    assert not reactor.getDelayedCalls()
