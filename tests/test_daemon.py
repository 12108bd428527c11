"""`twistd aigw` as a process: how it starts, what it says, how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import trustme

from aigw import tap
from aigw.commands import demo
from aigw.config import loader
from aigw.settings.schema import settings
from aigw.telemetry import logs
from tests import fork_server

ROOT = Path(__file__).parent.parent
CONFIG = """
api_key: ${GATEWAY_API_KEY}
listen: ["tcp:0:interface=127.0.0.1"]
providers:
  - {name: a, base_url: "http://127.0.0.1:1/v1", api_key: "${A_KEY}"}
routes:
  - {name: r, deadline: 2m, steps: [{provider: a, model: m, timeout: 90s}]}
"""
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
KEYS = {"GATEWAY_API_KEY": "gateway-key-0987-0987", "A_KEY": "canary-key-4711"}


def twistd(folder, *arguments, config=CONFIG, before=(), environ=KEYS):
    """The command and its environment, the configuration written to ``folder``."""
    if config is not None:
        (folder / "config.yaml").write_text(config)
        (folder / "config.yaml").chmod(0o600)
    command = [sys.executable, "-m", "twisted", *before, "aigw", *arguments]
    command[1:3] = ["-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile="]
    others = ("PORT", "TLS_CERT_FILE", *("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"))
    inherited = {name: value for name, value in os.environ.items() if name.upper() not in others}
    return {"args": command, "env": {**inherited, **environ, "PYTHONPATH": str(ROOT)}, "cwd": folder, "text": True}


def run(folder, *arguments, **more):
    command = twistd(folder, *arguments, **more)
    if not fork_server.may_fork(command["args"], command["env"]):
        return subprocess.run(**command, capture_output=True, timeout=60, check=False)
    return fork_server.run(["twistd", *command["args"][3:]], command["cwd"], command["env"])


class Daemon:
    """A running one; ``lines`` is its log so far."""

    fresh = False  # whether a fork would not do

    def __init__(self, folder, *arguments, **more):
        self.out, self.err = folder / "out", folder / "err"
        self.log = more.pop("log", self.err)
        prefix = more.pop("prefix", ())  # words before the command, such as those for a network namespace
        files = more.pop("files", None)  # its limits of open files, soft and hard
        self.started = time.monotonic()
        with self.out.open("w") as out, self.err.open("w") as err:
            command = twistd(folder, *arguments, **more)
            command["args"] = [*prefix, *command["args"]]
            self.process = self.start(**command, stdout=out, stderr=err, **({"files": files} if files else {}))

    def start(self, args, cwd, env, stdout, stderr, files=None, **more):
        if not self.fresh and args[1] == "-c" and fork_server.may_fork(args, env):
            streams = (stdout.fileno(), stderr.fileno())
            return fork_server.Forked(["twistd", *args[3:]], cwd, env, streams, open_files=files)
        if not self.fresh and args[1:3] == ["-m", "aigw"] and fork_server.may_fork(args, env):
            return fork_server.Forked(["aigw", *args[3:]], cwd, env, (stdout.fileno(), stderr.fileno()))
        assert files is None, "the fork server sets them"
        more = {"cwd": cwd, "env": env, "stdout": stdout, "stderr": stderr, **more}
        # Whoever runs the tests in the background of a shell has SIGINT ignored, and so would the daemon.
        return subprocess.Popen(args, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **more)

    def lines(self):
        """Of the log. The last may be written at this moment, so it counts only with its end."""
        written = self.log.read_text() if self.log.exists() else ""
        return [json.loads(line) for line in written[: written.rfind("\n") + 1].splitlines()]

    def wait_for(self, message, count=1, seconds=30.0):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = [line for line in self.lines() if line["message"].startswith(message)]
            if len(found) >= count:
                return found[-1]["fields"]
            assert self.process.poll() is None, self.err.read_text()
            time.sleep(0.01)  # a poll of another process's file, within a bound
        raise AssertionError(f"no {message!r} in {self.log.read_text()}")

    def address(self):
        host, port = self.wait_for("The gateway has opened a listener")["address"].rsplit(":", 1)
        return host, int(port)

    def cpu_seconds(self):
        """What it has used: what it takes of a core is its own, however busy the machine is."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self, sent=signal.SIGTERM):
        self.process.send_signal(sent)
        return self.process.wait(10)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.terminate()  # so that it can clean up
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class FreshDaemon(Daemon):
    """One whose start, memory or interpreter is looked at."""

    fresh = True


def wait_until(what):
    end = time.monotonic() + 10
    while not what():
        assert time.monotonic() < end
        time.sleep(0.005)  # a poll of another process's state, within a bound


LIBRARIES = (
    "import twisted.application.service, twisted.internet.ssl, twisted.web.server, treq, prometheus_client, yaml"
)


def test_it_accepts_connections_within_a_second_in_under_64_mb(tmp_path):
    """On a slow machine, in twice the time that loading the libraries takes there."""
    took, libraries = [], []
    while len(took) < 10 and (not took or min(took) >= max(1.0, 2 * min(libraries))):  # the core may be another's
        with FreshDaemon(tmp_path) as daemon:
            with socket.create_connection(daemon.address()):
                took.append(time.monotonic() - daemon.started)
            daemon.wait_for("The gateway has started")
            status = Path(f"/proc/{daemon.process.pid}/status").read_text()
            assert int(re.search(r"VmRSS:\s+(\d+)", status)[1]) < 64 * 1024
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", LIBRARIES], check=True)
        libraries.append(time.monotonic() - began)
    assert min(took) < max(1.0, 2 * min(libraries))


def test_b9_logs_are_json_by_default_and_it_stops_on_sigterm(tmp_path):
    with Daemon(tmp_path) as daemon:
        host, port = daemon.address()
        request = urllib.request.Request(
            f"http://{host}:{port}/v1/chat/completions",
            json.dumps({"model": "r", "messages": [{"role": "user", "content": "canary-content"}]}).encode(),
            {"X-Api-Key": KEYS["GATEWAY_API_KEY"], "X-Request-Id": "id-1"},
        )
        with pytest.raises(urllib.error.HTTPError, match="502"):
            urllib.request.urlopen(request, timeout=5)
        record = daemon.wait_for("Request")
        assert (record["route"], record["status"], record["attempts"][0]["outcome"]) == ("r", 502, "unreachable")
        assert daemon.stop() == -signal.SIGTERM
        lines = daemon.lines()
        for line in lines:
            assert (
                {"time", "level", "message", "fields"}
                <= set(line)
                <= {"time", "level", "message", "fields", "request_id"}
            )
        assert [line["level"] for line in lines if line.get("request_id") == "id-1"] == ["WARN", "WARN"]
        assert {"The gateway has started", "The gateway is stopping", "The gateway has stopped"} <= {
            line["message"] for line in lines
        }
        text = daemon.err.read_text() + daemon.out.read_text()
        assert "canary" not in text
        assert KEYS["GATEWAY_API_KEY"] not in text


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_it_stops_at_once_and_ends_by_the_signal_as_twistd_does(tmp_path, sent):
    with Daemon(tmp_path) as daemon:
        daemon.wait_for("The gateway has started")
        assert daemon.stop(sent) == -sent


def test_b9_logfile_still_works(tmp_path):
    with Daemon(tmp_path, before=["--logfile", "gateway.log"], log=tmp_path / "gateway.log") as daemon:
        daemon.wait_for("The gateway has started")
        daemon.stop()
        assert daemon.err.read_text() == ""


def test_b9_logger_still_overrides(tmp_path):
    with Daemon(tmp_path, before=["--logger", "aigw.telemetry.logs.json_lines"]) as daemon:
        daemon.wait_for("The gateway has started")
        daemon.stop()
    with Daemon(tmp_path, before=["--logger", "twisted.logger.LimitedHistoryLogObserver"]) as daemon:
        daemon.stop()
        assert daemon.err.read_text() == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else, and look at what is root's")
@pytest.mark.parametrize("before", [(), ("--uid=65534", "--gid=65534")], ids=["from the start", "by twistd"])
def test_b9_nobody_else_reads_its_memory_and_it_still_reads_its_own_state(before):
    """PR_SET_DUMPABLE is 0: /proc/PID is root's, no core file is written; its own /proc/self is not closed to it.

    Where twistd changes the user the kernel has set it already. From the start it is nobody's process, which keeps only
    the right to read Python where that is in root's folder.
    """

    class AsNobody(Daemon):
        def start(self, args, **more):
            right = "+dac_read_search"
            nobody = [*NOBODY, f"--inh-caps={right}", f"--ambient-caps={right}"]
            return super().start(args if before else [*nobody, *args], **more)

    with tempfile.TemporaryDirectory() as folder:  # pytest's are closed to others
        Path(folder).chmod(0o777)
        config = CONFIG + 'admin: "tcp:0:interface=127.0.0.1"\n'
        with AsNobody(Path(folder), before=before, config=config) as daemon:
            admin = daemon.wait_for("The gateway has opened the admin listener")["address"]
            daemon.wait_for("The gateway has started")
            proc = Path(f"/proc/{daemon.process.pid}")
            status = (proc / "status").read_text()
            assert re.search(r"^Uid:\t65534\t65534", status, re.M)
            wait_until(lambda: (proc / "environ").stat().st_uid == 0)  # what the kernel makes of 0
            reads = [*NOBODY, "cat", proc / "environ"]
            assert "denied" in subprocess.run(reads, capture_output=True, text=True, check=False).stderr
            metrics = urllib.request.urlopen(f"http://{admin}/metrics", timeout=5).read().decode()
            assert {"process_open_fds", "process_resident_memory_bytes"} <= set(re.findall(r"^\w+", metrics, re.M))
            daemon.process.send_signal(signal.SIGUSR2)
            assert daemon.wait_for("The gateway reports its state")["open_files"] > 3


def test_b2_a_wrong_configuration_is_one_line_and_exit_78(tmp_path):
    done = run(tmp_path, config=CONFIG.replace("provider: a", "provider: b").replace("90s", "never"), environ={})
    assert done.returncode == 78
    assert done.stdout == ""
    line = json.loads(done.stderr)
    assert line["level"] == "ERROR"
    assert len(line["fields"]["mistakes"]) == 4
    assert "Traceback" not in done.stderr


def test_b1_without_any_configuration_it_says_where_it_looked(tmp_path):
    done = run(tmp_path, config=None)
    assert done.returncode == 78
    assert "config.yaml" in json.loads(done.stderr)["fields"]["mistakes"][0]


def test_b11_a_certificate_that_is_not_there_is_exit_78(tmp_path):
    done = run(tmp_path, config=CONFIG + "tls: {cert_file: a.pem, key_file: b.pem}")
    assert done.returncode == 78
    assert "a.pem: No such file or directory" in done.stderr


def test_an_address_that_is_taken_is_one_line_and_exit_1(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run(tmp_path, config=CONFIG.replace("tcp:0", f"tcp:{port}"))
    assert done.returncode == 1
    errors = [json.loads(line) for line in done.stderr.splitlines() if '"ERROR"' in line or "Traceback" in line]
    assert [line["message"].partition(":")[0] for line in errors] == ["The gateway cannot open a listener"]


def test_an_address_that_is_taken_ends_a_background_daemon_too(tmp_path):
    """The parent waits for word from the child, and must get it; no pid file is left."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command = twistd(tmp_path, config=CONFIG.replace("tcp:0", f"tcp:{taken.getsockname()[1]}"))
        command["args"] = [*command["args"][:3], "--pidfile=a.pid", "--logfile=a.log", "aigw"]
        done = subprocess.run(**command, capture_output=True, timeout=20, check=False)
    assert done.returncode == 1
    assert "CannotListen" in done.stdout + done.stderr

    def levels():
        logged = [json.loads(line) for line in (tmp_path / "a.log").read_text().splitlines()]
        return [line["level"] for line in logged if line["level"] != "INFO"]

    wait_until(lambda: not (tmp_path / "a.pid").exists())  # the parent has word before the child is quite gone
    wait_until(lambda: len(levels()) > 1)  # which writes its log last
    assert levels() == ["WARN", "ERROR"]


def test_d4_check_config_prints_the_routes_and_opens_no_socket(tmp_path):
    done = run(tmp_path, "--check-config")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "listen tcp:0:interface=127.0.0.1 (plain http)",
        "provider a: http://127.0.0.1:1/v1 (key from ${A_KEY}, sent as Authorization: Bearer, proxy none)",
        "key default: api_key from ${GATEWAY_API_KEY}, all routes",
        "route r (deadline 120s)",
        "  1. a: m (timeout 90s, connect 10s, idle 120s)",
        "The configuration is good.",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--demo", "--check-config"], "--check-config and --demo cannot be used together"),
        (["--demo", "--check-providers"], "--check-providers and --demo cannot be used together"),
        (["--check-config", "--check-providers"], "--check-config and --check-providers cannot be used together"),
        (["--explain", "r.json", "--check-config"], "--check-config and --explain cannot be used together"),
        (["--explain", ""], "--explain needs the file of a request, or - for stdin"),
        (["--config", ""], "--config needs the name of a file"),
        (["--explain", "r.json", "--try"], "--try can be used only with --check-providers"),
        (["--demo", "-c", "config.yaml"], "leave out --config"),
        (["--json"], "--json can be used only with --check-providers"),
        (["--try", "--check-config"], "--try can be used only with --check-providers"),
        (["--no-such"], "no-such"),
        (["-c"], "-c"),
        (["config.yaml"], "unexpected argument: config.yaml"),
    ],
)
def test_d3_d4_words_that_make_no_sense_are_exit_64_and_start_nothing(tmp_path, words, said):
    """systemd starts the daemon again and again after a 1."""
    done = run(tmp_path, *words)
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr.startswith("aigw: ")
    assert said in done.stderr.splitlines()[0]
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml"}


def test_d4_the_demo_does_not_go_to_the_background_without_a_word(tmp_path):
    command = twistd(tmp_path, "--demo", config=None)
    command["args"].remove("-n")
    done = subprocess.run(**command, capture_output=True, timeout=20, check=False)
    assert (done.returncode, done.stdout) == (64, "")
    assert "run: twistd -n aigw --demo" in done.stderr
    assert not list(tmp_path.iterdir()), "no log and no pid file"


@pytest.mark.parametrize("words", [["--check-config"], []], ids=["check", "start"])
def test_d4_the_administrators_port_may_not_be_that_of_the_clients(tmp_path, words):
    done = run(
        tmp_path, *words, config=CONFIG.replace('listen: ["tcp:0:interface=127.0.0.1"]', "port: 8080\nadmin: 8080")
    )
    assert done.returncode == 78
    assert "admin: tcp:8080:interface=127.0.0.1 has the same address" in done.stderr


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_d4_check_config_opens_no_socket_by_the_kernel_s_word(tmp_path):
    command = twistd(tmp_path, "--check-config")
    command["args"] = [
        "strace",
        "-f",
        "-o",
        str(tmp_path / "trace"),
        "-e",
        "trace=bind,listen,connect",
        *command["args"],
    ]
    subprocess.run(**command, check=True, timeout=30, stdout=subprocess.DEVNULL)
    assert "sin" not in (tmp_path / "trace").read_text()


@pytest.mark.parametrize(("days", "said"), [(90, ""), (5, "expires in 5.0 days"), (-1, "has expired")])
def test_d4_check_config_warns_of_a_certificate_that_expires(tmp_path, days, said):
    issued = trustme.CA().issue_cert("localhost", not_after=datetime.now(timezone.utc) + timedelta(days=days))
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    done = run(tmp_path, "--check-config", config=CONFIG + "tls: {cert_file: cert.pem, key_file: key.pem}")
    assert done.returncode == 0
    assert (f"warning: a certificate {said}" in done.stdout) == bool(said)


def test_b9_keys_that_are_too_short_are_warned_of(tmp_path):
    """S20: of 20 characters for the gateway's, which clients could guess; of 8 for all, which are blacked out in the log."""
    done = run(tmp_path, "--check-config", environ={"GATEWAY_API_KEY": "x" * 19, "A_KEY": "ok"})
    warned = [line.partition(" characters")[0] for line in done.stdout.splitlines() if "warning" in line]
    assert warned == [
        "warning: config.yaml, line 2: api_key: has fewer than 20",
        "warning: config.yaml, line 5: providers[0].api_key: has fewer than 8",
    ]
    done = run(tmp_path, "--check-config", environ={"GATEWAY_API_KEY": "x" * 20, "A_KEY": "8 or more"})
    assert "warning" not in done.stdout


def test_b24_p4_a_start_names_the_proxies_of_the_environment_and_never_a_password(tmp_path):
    proxy = "http://user:canary%2Dpassword@proxy.example:3128"
    environ = {
        **KEYS,
        "HTTPS_PROXY": proxy,
        "http_proxy": "http://user:canary@other:1",
        "ALL_PROXY": "",
        "NO_PROXY": "x",
    }
    config = CONFIG.replace("http://127.0.0.1:1/v1", "https://api.example/v1")
    assert config != CONFIG
    with Daemon(tmp_path, config=config, environ=environ) as daemon:
        daemon.wait_for("The gateway has started")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("The gateway has reloaded")
        daemon.wait_for("The gateway calls providers through a proxy", 2)
        lines = daemon.lines()
        shown = subprocess.run(
            ["ps", "-ww", "-o", "args", "-p", str(daemon.process.pid)], capture_output=True, text=True
        )
    named = [line["fields"] for line in lines if line["message"] == "The gateway calls providers through a proxy"]
    assert named == [{"proxies": {"http://proxy.example:3128 (HTTPS_PROXY)": ["a"]}}] * 2
    assert "canary" not in json.dumps(lines) + shown.stdout
    done = run(tmp_path, "--check-config", config=config, environ=environ)
    assert "proxy http://proxy.example:3128 (HTTPS_PROXY))\n" in done.stdout
    assert "canary" not in done.stdout + done.stderr
    wrong = run(tmp_path, "--check-config", config=config, environ={**KEYS, "https_proxy": "socks5://u:canary@x:1"})
    assert wrong.returncode == 78
    assert "the value of https_proxy in the environment is a SOCKS proxy" in wrong.stderr
    assert "canary" not in wrong.stdout + wrong.stderr


def test_the_demo_stops_at_once_when_told_twice(tmp_path):
    with Daemon(tmp_path, "--demo", config=None) as daemon:
        host, port = daemon.address()
        with socket.create_connection((host, port), 5) as idle:  # which would be waited for
            idle.sendall(b"x")
            daemon.process.send_signal(signal.SIGINT)
            daemon.wait_for("The gateway is stopping")
            daemon.process.send_signal(signal.SIGINT)
            daemon.wait_for("The gateway stops at once and ends running requests")
            assert daemon.process.wait(5) == -signal.SIGINT
        assert "Traceback" not in daemon.err.read_text()


def test_d2_a_sigint_that_the_shell_ignores_stays_ignored(tmp_path):
    class InTheBackground(Daemon):
        def start(self, args, **more):
            return subprocess.Popen(args, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN), **more)

    with InTheBackground(tmp_path) as daemon:
        daemon.wait_for("The gateway has started")
        daemon.process.send_signal(signal.SIGINT)
        assert daemon.stop() == -signal.SIGTERM
        assert "Traceback" not in daemon.err.read_text()


def test_d4_check_config_tells_every_mistake_with_78(tmp_path):
    done = run(tmp_path, "--check-config", config=CONFIG.replace("90s", "never"), environ={})
    assert (done.returncode, done.stdout) == (78, "")
    told = done.stderr.splitlines()
    assert told[0] == "config.yaml: the configuration has mistakes"
    assert [line.split(": ")[1] for line in told[1:]] == [
        "api_key",
        "providers[0].api_key",
        "routes[0].steps[0].timeout",
    ]
    assert all(re.match(r"  .*config.yaml, line \d+: ", line) for line in told[1:])


def test_the_annotated_reference_is_good_as_it_stands(tmp_path):
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    (tmp_path / "conf" / "config.yaml").chmod(0o600)
    environ = {name: "some-key" for name in ("GATEWAY_API_KEY", "CEREBRAS_API_KEY", "OPENROUTER_API_KEY")}
    done = run(tmp_path, "-c", "conf/config.yaml", "--check-config", config=None, environ=environ)
    assert "internal-ca.pem: No such file or directory" in done.stderr
    (tmp_path / "conf" / "config.yaml").write_text(
        (ROOT / "conf" / "config.yaml").read_text().replace("ca_file:", "# ")
    )
    done = run(tmp_path, "-c", "conf/config.yaml", "--check-config", config=None, environ=environ)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_annotated_reference_names_every_setting():
    text = (ROOT / "conf" / "config.yaml").read_text()
    for path, _ in settings(loader.whole_file()):
        assert re.search(rf"\b{path.rpartition('.')[2]}:", text), path


@pytest.mark.parametrize(
    ("options", "goes_to"),
    [
        ({"nodaemon": True}, "stderr"),
        ({"nodaemon": True, "logfile": "-"}, "stdout"),
        ({"nodaemon": False, "logfile": "-"}, None),
        ({"nodaemon": False, "logger": len}, None),
        ({"nodaemon": True, "logger": len}, None),
    ],
)
def test_b9_where_the_log_goes_is_twistd_s_to_say(tmp_path, monkeypatch, capfd, options, goes_to):
    monkeypatch.chdir(tmp_path)
    observer = tap._observer(options, json_log=True)
    assert (observer is None) == (goes_to is None)
    if observer is not None:
        observer({"aigw_message": "here", "aigw_fields": {}})
        observer.writer.finish()
        out, err = capfd.readouterr()
        assert "here" in {"stdout": out, "stderr": err}[goes_to]
        assert "here" not in {"stdout": err, "stderr": out}[goes_to]
    assert not list(tmp_path.iterdir()), "no file that nobody asked for"


def test_b9_a_log_that_cannot_be_written_is_one_line(tmp_path):
    done = run(tmp_path, before=["--logfile", "/nonexistent/x.log"])
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "aigw: the log file /nonexistent/x.log cannot be written: No such file or directory"
    ]


def test_b9_records_reach_the_observers_of_others():
    import io

    from twisted.logger import globalLogPublisher, textFileLogObserver

    out = io.StringIO()
    observer = textFileLogObserver(out)
    globalLogPublisher.addObserver(observer)
    logs.info("Request", "id-1", status=200)
    globalLogPublisher.removeObserver(observer)
    assert "Request {'status': 200}" in out.getvalue()


def test_the_demo_s_lines_are_good_for_a_path_with_spaces():
    printed = demo.instructions("https://x/v1", "/a b/cert.pem", "http://x/status")
    assert printed.count("--cacert '/a b/cert.pem' ") == 2
    assert "cafile='/a b/cert.pem'" in printed


class Demo(Daemon):
    def printed(self):
        self.wait_for("The gateway has started")
        end = time.monotonic() + 5
        while "Ctrl-C" not in self.out.read_text() and time.monotonic() < end:
            time.sleep(0.01)
        return self.out.read_text()


def test_the_demo_shows_fallback_by_the_lines_that_it_prints(tmp_path):
    with Demo(tmp_path, "--demo", config=None) as daemon:
        printed = daemon.printed()
        plain, streamed = [line for line in printed.splitlines() if line.startswith("curl ")]
        python = printed[printed.index("import openai") : printed.index("The log below")]
        words = subprocess.run(
            [sys.executable, "-c", python], capture_output=True, text=True, timeout=20, check=True
        ).stdout
        assert words.startswith("Hello! ")
        if shutil.which("curl"):
            got = subprocess.run(plain, shell=True, capture_output=True, text=True, timeout=20, check=True).stdout
            assert json.loads(got)["choices"][0]["message"]["content"] == words
            got = subprocess.run(streamed, shell=True, capture_output=True, text=True, timeout=20, check=True).stdout
            assert got.endswith("data: [DONE]\n\n")
            assert got.count("data: ") == len(words.split()) + 3
        attempts = daemon.wait_for("Request")["attempts"]
        assert [(each["provider"], each["outcome"]) for each in attempts] == [("down", "unreachable"), ("up", "ok")]
        folder = Path(re.search(r"--cacert (\S+)/cert.pem", plain)[1])
        assert folder.exists()
        daemon.stop(signal.SIGINT)
        assert not folder.exists()


def test_the_demo_takes_another_port_where_its_own_is_taken(tmp_path):
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 8443))
            taken.listen()
        except OSError:
            pass  # somebody else has it, which serves as well
        with Demo(tmp_path, "--demo", config=None) as daemon:
            assert "https://127.0.0.1:8443/" not in daemon.printed()


def test_the_demo_leaves_the_ports_to_one_that_is_just_starting(tmp_path):
    with socket.socket(socket.AF_UNIX) as other:
        with contextlib.suppress(OSError):  # a real one, which serves as well
            other.bind("\0aigw-demo")
        with Demo(tmp_path, "--demo", config=None) as daemon:
            assert not re.search(r":844[34]/", daemon.printed())


def test_the_demo_s_page_lives(tmp_path):
    """It asks itself, once a second and no oftener, and stops at once when it is told to."""
    with Demo(tmp_path, "--demo", config=None) as daemon:
        daemon.wait_for("Request", count=3, seconds=60)
        printed = daemon.out.read_text()
        page = re.search(r"^http://127\.0\.0\.1:\d+/status$", printed, re.MULTILINE)[0]
        assert printed.index(page) < printed.index("curl ")
        with urllib.request.urlopen(f"{page}.json", timeout=10) as got:
            (route,) = json.load(got)["routes"]
        assert route["requests"] >= 3
        assert [step["state"] for step in route["steps"]] == ["failed", "answering"]
        began = time.monotonic()
        assert daemon.stop(signal.SIGINT) == -signal.SIGINT
        assert time.monotonic() - began < 5
        assert not [line for line in daemon.lines() if "actory" in line["message"]], "the log is of the gateway"
        records = [line for line in daemon.lines() if line["message"] == "Request"]
        assert {line["fields"]["status"] for line in records} == {200}
        assert len(records) <= time.monotonic() - daemon.started
