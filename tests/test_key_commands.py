"""K: real commands, files and certificates: what a child inherits, how it ends, and where no key may appear."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from aigw.credentials import child
from aigw.credentials.printed import read_printed, shown
from aigw.secret import Secret
from aigw.telemetry import logs
from tests.harness import AUTH, KEY, bounded, until
from tests.providers import answer, as_asked
from tests.sdks import httpx, openai
from tests.test_daemon import CONFIG, KEYS, Daemon, run, wait_until
from tests.test_trace import Collector, set_environment

# What a command may print

NOW = 1_700_000_000.0
JWT = "eyJhbGciOi.eyJzdWIi.c2ln"

#    what it prints                                                                   the key, and for how long
PRINTED = {
    "a token":                   (f"  {JWT}\n",                                       (JWT, None)),
    "with a mark of Windows":    (f"\ufeff{JWT}\r\n",                                 (JWT, None)),
    "a metadata server":         (f'{{"access_token":"{JWT}","expires_in":3599,"token_type":"Bearer"}}', (JWT, 3599.0)),
    "seconds as a string":       (f'{{"access_token":"{JWT}","expires_in":"86399"}}', (JWT, 86399.0)),
    "no end":                    (f'{{"token":"{JWT}","expires_in":null}}',           (JWT, None)),
    "Unix seconds":              (f'{{"token":"{JWT}","expires_at":1700003600}}',     (JWT, 3600.0)),
    "Unix milliseconds":         (f'{{"token":"{JWT}","expires_at":1700003600000}}',  (JWT, 3600.0)),
    "RFC 3339":                  (f'{{"token":"{JWT}","expires_at":"2023-11-14T23:13:20Z"}}', (JWT, 3600.0)),
    "with nanoseconds":          (f'{{"token":"{JWT}","expiry":"2023-11-14T23:13:20.123456789Z"}}', (JWT, 3600.0)),
    "of another zone":           (f'{{"accessToken":"{JWT}","expireTime":"2023-11-15T00:13:20+01:00"}}', (JWT, 3600.0)),
    "az":                        (f'{{"accessToken":"{JWT}","expiresOn":"2023-11-14 23:13:20.000000","expires_on":1700003600,"tokenType":"Bearer"}}', (JWT, 3600.0)),
    "az, a quoted string":       (f'"{JWT}"\n',                                       (JWT, None)),
    "gcloud's config-helper":    (f'{{"configuration":{{}},"credential":{{"access_token":"{JWT}","id_token":"x","token_expiry":"2023-11-14T23:13:20Z"}}}}', (JWT, 3600.0)),
    "a plugin of kubectl":       (f'{{"kind":"ExecCredential","status":{{"token":"{JWT}","expirationTimestamp":"2023-11-14T23:13:20Z"}}}}', (JWT, 3600.0)),
    "two ends, the nearer one":  (f'{{"token":"{JWT}","expires_in":60,"expires_at":1700003600}}', (JWT, 60.0)),
    "cut JSON":                  ('{"access_token":"x"',                              "printed JSON that is malformed"),
    "JSON without a token":      ('{"error":"no login"}',                             "printed JSON without a token; it needs access_token or token"),
    "a token that is a number":  ('{"token":5}',                                      "printed JSON without a token"),
    "an end that is a word":     ('{"token":"x","expires_in":"soon"}',                "printed JSON in which expires_in is not a number of seconds"),
    "an end that is true":       ('{"token":"x","expires_in":true}',                  "printed JSON in which expires_in is not a number of seconds"),
    "no time":                   ('{"token":"x","expires_at":"tomorrow"}',            "printed JSON in which expires_at is not a time"),
    "nesting":                   ('{"a":' * 100_000,                                  "printed JSON that is malformed"),
}  # fmt: skip


@pytest.mark.parametrize("case", PRINTED)
def test_k5_what_real_tools_print_is_read(case):
    printed, expected = PRINTED[case]
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=re.escape(expected)):
            read_printed(printed.encode(), NOW)
    else:
        assert read_printed(printed.encode(), NOW) == expected


def test_k9_what_a_command_writes_to_its_standard_error_has_no_key_in_the_log():
    token = "ya29.a0AfB_byC4711-canary_4711"
    error = (
        f"\x1b[31mWARNING: got\n{token} and sec+ret/4711/canary4711== in /usr/lib/python3/site-packages/x.py".encode()
    )
    assert shown(error, b"") == "?[31mWARNING: got *** and *** in /usr/lib/python3/site-packages/x.py"
    assert shown(b"+ echo abcd1234", b"abcd1234\n") == "+ echo ***", "a short one that it also printed"
    assert len(shown(b"word " * 1000, b"")) < 510


# One run


async def ran(*command: str, environ: dict[str, str] | None = None) -> child.Printed:
    return await bounded(child.run(reactor, command, environ or {"PATH": os.environ["PATH"]}))


@ensureDeferred
async def test_k4_no_shell_reads_the_command_and_its_input_is_empty(warm_reactor):
    assert await ran("printf", "%s;", "$HOME `id` > x", "two words") == (b"$HOME `id` > x;two words;", b"", None)
    assert (await ran("cat")).out == b""


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (["sh", "-c", "echo out; echo err >&2; exit 3"], "ended with exit status 3"),
        (["sh", "-c", "kill -9 $$"], "was ended by signal 9"),
        (["/nonexistent/program"], "cannot be started: No such file or directory"),
        (["/etc/passwd"], "cannot be started: Permission denied"),
        (["sh", "-c", "yes"], "printed more than 65536 bytes"),
    ],
)
@ensureDeferred
async def test_k4_how_a_run_fails(warm_reactor, command, problem):
    printed = await ran(*command)
    assert printed.problem == problem
    assert len(printed.error) <= child.MOST_ERROR


@ensureDeferred
async def test_k4_the_output_is_bounded_and_a_flood_of_errors_stops_nothing(warm_reactor):
    printed = await ran("sh", "-c", "yes error | head -c 3000000 >&2; echo key")
    assert (printed.out, len(printed.error), printed.problem) == (b"key\n", child.MOST_ERROR, None)


@ensureDeferred
async def test_k4_a_child_that_keeps_the_pipe_open_does_not_delay_the_key(warm_reactor):
    started = time.monotonic()
    assert (await ran("sh", "-c", "sleep 9 & echo key")).out == b"key\n"
    assert time.monotonic() - started < 6


@ensureDeferred
async def test_k4_cancelling_ends_the_command_and_the_programs_that_it_started(warm_reactor, tmp_path):
    script = f"sleep 1000 & echo $! > {tmp_path}/inner; echo $$ > {tmp_path}/outer; wait"
    running = child.run(reactor, ["sh", "-c", script], {})
    running.addErrback(lambda _: None)
    await until(lambda: (tmp_path / "outer").exists() and (tmp_path / "outer").read_text())
    pids = [int((tmp_path / name).read_text()) for name in ("inner", "outer")]
    assert all(map(is_there, pids))
    running.cancel()
    await until(lambda: not any(map(is_there, pids)))


def is_there(pid: int) -> bool:
    """Whether the process runs; who has ended and was not waited for does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_k4_the_environment_has_no_key_of_the_gateway_and_nothing_of_systemd():
    environ = {
        "PATH": "/bin", "HOME": "/root", "CLOUDSDK_CONFIG": "/etc/x", "ONE": "secret-key-1", "TWO": "Bearer secret-key-1",
        "SHORT": "k1", "K1": "k1-beside", "NOTIFY_SOCKET": "/run/x", "LISTEN_FDS": "1", "OTEL_EXPORTER_OTLP_HEADERS": "a=b", "https_proxy": "http://u:secret-key-1@proxy:3128",
    }  # fmt: skip
    kept = child.environment(environ, [Secret("secret-key-1"), Secret("k1")])
    assert set(kept) == {"PATH", "HOME", "CLOUDSDK_CONFIG", "K1", "https_proxy"}


# In a real daemon

SPY = """#!/bin/sh
ls -l /proc/self/fd > "$1/descriptors"
env > "$1/environment"
tr '\\0' '\\n' < /proc/$PPID/cmdline > "$1/gateway"
echo a-key-4711-from-the-command
"""


def test_k4_a_child_of_the_daemon_inherits_no_socket_and_no_key(tmp_path):
    """A listening socket of systemd's, those of the gateway's own, and the variables with its keys."""

    class Passing(Daemon):
        def start(self, args, **more):
            dup = f"import os, sys; os.dup2({listening.fileno()}, 3); os.environ['LISTEN_PID'] = str(os.getpid())"
            wrapped = [sys.executable, "-c", f"{dup}; os.execv(sys.argv[1], sys.argv[1:])", *args]
            return subprocess.Popen(wrapped, pass_fds=[listening.fileno()], **more)

    (tmp_path / "spy").write_text(SPY)
    (tmp_path / "spy").chmod(0o700)
    config = f"""
api_key: ${{GATEWAY_API_KEY}}
listen: [{{endpoint: "systemd:domain=INET:name=https", insecure: true}}, "tcp:0:interface=127.0.0.1"]
providers:
  - {{name: a, base_url: "http://127.0.0.1:1/v1", api_key: "${{A_KEY}}"}}
  - {{name: b, base_url: "http://127.0.0.1:1/v1", key_command: [./spy, {tmp_path}]}}
routes:
  - {{name: r, steps: [{{provider: b, model: m}}, {{provider: a, model: m}}]}}
"""
    environ = {**KEYS, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "https", "NOT_OURS": "stays"}
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        with Passing(tmp_path, config=config, environ=environ) as daemon:
            daemon.wait_for("The key_command of a provider has printed a key")
            opened = os.listdir(f"/proc/{daemon.process.pid}/fd")
            assert daemon.stop() == -signal.SIGTERM
    assert len(opened) > 6, "the daemon itself has sockets"
    descriptors = re.findall(r"(\d+) -> (.*)", (tmp_path / "descriptors").read_text())
    assert [(number, file.partition(":")[0]) for number, file in descriptors if not file.startswith("/proc/")] == [
        ("0", "/dev/null"),
        ("1", f"{tmp_path}/descriptors"),
        ("2", "pipe"),
    ]
    environment = (tmp_path / "environment").read_text()
    assert "NOT_OURS=stays" in environment
    assert not re.search("LISTEN_|NOTIFY_|GATEWAY_API_KEY|A_KEY|canary", environment)
    assert "4711" not in (tmp_path / "gateway").read_text()
    assert "4711" not in daemon.err.read_text()


def test_k4_a_stop_ends_a_command_that_runs(tmp_path):
    config = CONFIG.replace('api_key: "${A_KEY}"', f"key_command: [sh, -c, 'echo $$ > {tmp_path}/pid; sleep 1000']")
    with Daemon(tmp_path, config=config) as daemon:
        wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
        pid = int((tmp_path / "pid").read_text())
        assert daemon.stop() == -signal.SIGTERM
        wait_until(lambda: not is_there(pid))


def test_k4_a_stop_ends_a_command_that_runs_for_an_earlier_configuration(tmp_path):
    config = CONFIG.replace('api_key: "${A_KEY}"', f"key_command: [sh, -c, 'echo $$ > {tmp_path}/pid; sleep 1000']")
    with Daemon(tmp_path, config=config) as daemon:
        wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
        pid = int((tmp_path / "pid").read_text())
        (tmp_path / "config.yaml").write_text(CONFIG)
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("The gateway has reloaded")
        assert is_there(pid), "a request may still wait for it"
        assert daemon.stop() == -signal.SIGTERM
        wait_until(lambda: not is_there(pid))


def test_k2_k8_check_config_says_what_is_wrong_with_files_and_commands(tmp_path):
    config = """
api_key: ${GATEWAY_API_KEY}
listen: ["tcp:0:interface=127.0.0.1"]
providers:
  - {name: a, base_url: "http://127.0.0.1:1/v1", key_file: token}
  - {name: b, base_url: "http://127.0.0.1:1/v1", key_command: [no-such-program, x]}
  - {name: c, base_url: "http://127.0.0.1:1/v1", key_file: good}
  - {name: d, base_url: "http://127.0.0.1:1/v1", key_command: [touch, it-ran]}
  - {name: e, base_url: "http://127.0.0.1:1/v1", key_file: quoted}
routes:
  - {name: r, steps: [{provider: a, model: m}, {provider: b, model: m}, {provider: c, model: m}, {provider: d, model: m}, {provider: e, model: m}]}
"""
    (tmp_path / "good").write_text("a-good-key-4711\n")
    (tmp_path / "quoted").write_text('"a-good-key-4711"\n')
    done = run(tmp_path, "--check-config", config=config)
    assert done.returncode == 0, "the gateway starts, and the other steps work"
    warnings = [line for line in done.stdout.splitlines() if line.startswith("warning: ")]
    found = [
        re.sub(r"warning: \S*config.yaml, line (\d+): (\S+) .*?([^/ ]+): ", r"\1 \2 \3: ", each) for each in warnings
    ]
    assert found == [
        "5 providers[0].key_file: token: cannot be read: No such file or directory; no request goes to the provider before the gateway has read a key from it",
        "6 providers[1].key_command: no-such-program: there is no such program; no request goes to the provider before the command has printed a key",
        '9 providers[4].key_file: quoted: the key begins and ends with a quote ("), which is sent as part of the key; remove the quotes',
    ]
    assert "4711" not in done.stdout + done.stderr
    assert not (tmp_path / "it-ran").exists(), "no command is run"


CHECKED = """
api_key: ${{GATEWAY_API_KEY}}
listen: ["tcp:0:interface=127.0.0.1"]
providers: [{{name: a, base_url: "{url}", {key}}}]
routes: [{{name: r, steps: [{{provider: a, model: m}}]}}]
"""


@pytest.mark.parametrize(
    ("key", "code", "words"),
    [
        ("key_file: good", 0, "1 of 1 steps can work"),
        ("key_command: [cat, good], auth: api-key", 0, "1 of 1 steps can work"),
        ("key_command: [cat, bad]", 1, "the provider refuses the key (401); its key_command must print another one"),
        ("key_file: bad", 1, "the provider refuses the key (401); replace the key in its key_file"),
        ("key_file: none", 1, "there is no key for the provider: its key_file has none: cannot be read"),
        ("key_command: [sh, -c, 'echo no login for token-4711-4711-4711-4711 >&2; exit 1']", 1,
         "its key_command ended with exit status 1: no login for ***"),
    ],
)  # fmt: skip
@ensureDeferred
async def test_k_check_providers_uses_such_keys(world, tmp_path, key, code, words):
    def models(connection):
        seen = connection.provider.requests[-1]
        good = "a-good-key-4711" in (seen.header("authorization") or seen.header("api-key") or "")
        (answer(body=b'{"data": [{"id": "m"}]}') if good else answer(401))(connection)

    provider = world.provider(models)
    (tmp_path / "good").write_text("a-good-key-4711\n")
    (tmp_path / "bad").write_text("a-bad-key-4711\n")
    config = CHECKED.format(url=world.base_url(provider), key=key)
    done = await deferToThread(run, tmp_path, "--check-providers", config=config)
    assert words in done.stdout
    assert done.returncode == code
    assert "yes" in done.stdout.splitlines()[1].split()[1], "that it can be reached is seen without a key too"
    assert "4711" not in done.stdout + done.stderr


# Reload


@ensureDeferred
async def test_d1_a_reload_keeps_the_key_of_a_command_that_is_unchanged_and_runs_a_changed_one(world, tmp_path):
    provider = world.provider()
    script = ["sh", "-c", f"echo run >> {tmp_path}/runs; echo key-number-$(wc -l < {tmp_path}/runs)"]
    gateway = world.gateway(provider)
    entry = gateway.tree["providers"][0]
    del entry["api_key"]
    entry["key_command"] = script
    assert await gateway.reload()
    for _ in range(2):
        assert (await gateway.ask()).status == 200
        assert await gateway.reload()
    assert {seen.header("authorization") for seen in provider.requests} == {"Bearer key-number-1"}
    entry["key_command"] = [*script, "changed"]
    assert await gateway.reload()
    assert (await gateway.ask()).status == 200
    assert provider.requests[-1].header("authorization") == "Bearer key-number-2"


# The canary


@pytest.mark.parametrize("kind", ["key_file", "key_command", "client_key"])
@ensureDeferred
async def test_k9_no_key_is_anywhere_in_what_the_gateway_shows(world, tmp_path, monkeypatch, kind):
    """Logs, pages, metrics, spans, the errors of clients, and the list of processes; the provider repeats the key."""
    collector = Collector()
    set_environment(monkeypatch, collector.url)
    world._closers.append(collector.close)
    canaries = ["canary-4711-first-token-4711", "canary-4711-second-token-4711"]

    def repeats(connection):
        """Refuses, and repeats what it got in a header, and in its error plain and in base64."""
        import base64

        key = connection.provider.requests[-1].header("authorization") or ""
        words = f"{key} is wrong, {base64.b64encode(key.encode()).decode()} too"
        body = json.dumps({"error": {"message": words, "code": key.partition(" ")[2][:40]}}).encode()
        answer(400, body, X_RateLimit_Key=key.partition(" ")[2] or "none")(connection)

    client_key = None
    if kind == "client_key":
        provider = world.provider(repeats, as_asked(), tls=True)
        issued = world.ca.issue_cert("client")
        client_key = issued.private_key_pem.bytes()
        (tmp_path / "client.pem").write_bytes(issued.cert_chain_pems[0].bytes())
        (tmp_path / "client.key").write_bytes(client_key)
        more = {"client_cert": "client.pem", "client_key": "client.key", "ca_file": str(world.ca_file)}
    else:
        provider = world.provider(repeats, as_asked(), answer(401), repeats, as_asked())
        (tmp_path / "key").write_text(canaries[0])
        script = f"cat {tmp_path}/key; echo got $(cat {tmp_path}/key) >&2"
        more = {"key_file": "key"} if kind == "key_file" else {"key_command": ["sh", "-c", script]}
    entry = {"name": "p1", "base_url": world.base_url(provider), **more}
    top = {"providers": [entry], "admin": "tcp:0:interface=127.0.0.1"}
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "PATH": os.environ["PATH"]}
    gateway = world.gateway(provider, top=top, environ=environ)
    shown: list[str] = []
    for turn in range(5):
        if turn == 2:
            (tmp_path / "key").write_text(canaries[1])  # the next 401 finds it
        got = await gateway.ask()
        shown.append(f"{got.status} {got.headers} {got.body.decode()}")
    for path in ("/metrics", "/status.json", "/status"):
        got = await gateway.get(path, AUTH)
        assert got.status == 200
        shown.append(got.body.decode())
    await until(lambda: len(collector.spans()) >= 10)
    shown += [str(sent) for _, _, sent in collector.requests]
    shown.append(subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout)
    shown += world.log
    text = "\n".join(shown)
    assert "200 " in text
    if client_key is None:
        sent = {seen.header("authorization") for seen in provider.requests}
        assert sent == {f"Bearer {canary}" for canary in canaries}
    assert "canary-4711" not in text
    for line in (client_key or b"").splitlines()[1:-1]:
        assert line.decode() not in text
    if kind == "key_command":
        assert "got ***" in text, "its standard error is in the log"


# The OpenAI client before what looks like Vertex AI

VERTEX = "/v1/projects/p/locations/l/endpoints/openapi"


@ensureDeferred
async def test_k_the_openai_client_before_a_vertex_shaped_provider(world, tmp_path):
    """Its token ends after a short time; the command is asked again before that, and after a 401."""
    valid = tmp_path / "valid"

    def vertex(connection):
        seen = connection.provider.requests[-1]
        assert seen.line.startswith(f"POST {VERTEX}/chat/completions ")
        assert json.loads(seen.body)["model"] == "google/gemini-2.5-flash"
        number = valid.read_text().strip()
        good = seen.header("authorization") == f"Bearer ya29.token-{number}"
        (as_asked() if good else answer(401, b'{"error":{"code":401,"status":"UNAUTHENTICATED"}}'))(connection)

    provider = world.provider(vertex)
    (tmp_path / "issue").write_text(
        f"#!/bin/sh\nn=$(($(cat {valid}) + 1)); echo $n > {valid}\n"
        'echo "{\\"access_token\\": \\"ya29.token-$n\\", \\"expires_in\\": 3599, \\"token_type\\": \\"Bearer\\"}"\n'
    )
    (tmp_path / "issue").chmod(0o700)
    valid.write_text("0")
    url = f"http://127.0.0.1:{provider.port}{VERTEX}"
    top = {"providers": [{"name": "p1", "base_url": url, "key_command": ["./issue"]}]}
    gateway = world.gateway(provider, top=top, steps=[{"provider": "p1", "model": "google/gemini-2.5-flash"}])

    def use() -> list[str]:
        with openai.OpenAI(base_url=gateway.url, api_key=KEY, max_retries=0, http_client=httpx.Client()) as client:
            hi = {"model": "route", "messages": [{"role": "user", "content": "hi"}]}
            texts = [client.chat.completions.create(**hi).choices[0].message.content for _ in range(3)]
            valid.write_text("7")  # the token is revoked
            texts.append(client.chat.completions.create(**hi).choices[0].message.content)
            streamed = client.chat.completions.create(**hi, stream=True)
            return [*texts, "".join(each.choices[0].delta.content or "" for each in streamed)]

    assert await bounded(deferToThread(use), 20) == ["hello"] * 5
    tokens = [seen.header("authorization").rpartition("-")[2] for seen in provider.requests]
    assert tokens == ["1", "1", "1", "1", "8", "8"]
    assert [record["status"] for record in world.records] == [200] * 5
    assert all(len(record["attempts"]) == 1 for record in world.records), "the repeat is part of the attempt"


@ensureDeferred
async def test_d1_k3_a_reload_without_the_file_keeps_its_key_and_the_keys_of_before_stay_hidden(world, tmp_path):
    provider = world.provider()
    gateway = world.gateway(provider)
    entry = gateway.tree["providers"][0]
    del entry["api_key"]
    entry["key_file"] = "key"
    (tmp_path / "key").write_text("canary-4711-in-the-file")
    assert await gateway.reload()
    (tmp_path / "key").unlink()
    assert await gateway.reload()
    assert (await gateway.ask()).status == 200
    assert provider.requests[-1].header("authorization") == "Bearer canary-4711-in-the-file"
    assert any(
        "no request goes to the provider before the gateway has read a key from it" in line for line in world.log
    )
    entry["api_key"] = "another-key-4711"
    del entry["key_file"]
    assert await gateway.reload()
    logs.info("The canary-4711-in-the-file is of a request that still runs")
    assert "The *** is of a request that still runs" in world.log[-1]
