"""C14, L7, B9: no key and no hash of one is in anything that a running gateway writes, shows, sends or answers.

A real daemon has keys of every kind. Clients send right and wrong ones, in every place where a key may be put by mistake.
What the gateway wrote is then searched for each key in each form, for its secret part, and for its SHA-256.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from aigw.access.keys import new_key
from tests.test_daemon import Daemon, run, wait_until
from tests.test_trace import Collector

OWN = {name: new_key() for name in "hashed literal expired disabled late rotated in_file literal_in_file wrong".split()}
OTHER = {
    "api_key": "gateway-key-of-the-search-0001",
    "admin_key": "admin-key-of-the-search-0002",
    "other_form": "a-key-that-a-person-wrote-0003",
    "variable": "key-from-a-variable-0004-xyz",
    "provider": "sk-provider-0005-abcdefghijk",
    "of_several": "sk-provider-0006-abcdefghijk",
    "second": "sk-provider-0014-abcdefghijk",
    "key_file": "sk-provider-0007-abcdefghijk",
    "key_command": "sk-provider-0008-abcdefghijk",
    "header": "Sk-Header-0009-abcdefghijk",
    "query": "sk-query-0010-abcdefghijk",
    "store": "store-password-0011-xyz",
    "proxy": "proxy-password-0012-xyz",
    "collector": "collector-key-0013-xyz",
}
KEYS = {**OWN, **OTHER}
HASHED = {**OWN, **{name: OTHER[name] for name in ("api_key", "admin_key", "other_form", "variable")}}
COMMAND = """import json, os, sys
def of(pid): return [open(f"/proc/{pid}/{name}", "rb").read().decode("latin-1") for name in ("cmdline", "environ")]
parent = open(f"/proc/{os.getppid()}/cmdline", "rb").read().decode("latin-1")
open(sys.argv[2], "a").write(json.dumps([of("self"), parent]) + "\\n")
print(open(sys.argv[1]).read())
"""


def needles() -> dict[str, bytes]:
    """Each form of each key that must be nowhere, by what it is."""
    found = {}
    for name, key in KEYS.items():
        raw = key.encode()
        found[name] = raw
        found[f"{name} in hex"] = raw.hex().encode()
        found[f"{name} in base64"] = base64.b64encode(raw).rstrip(b"=")[:-1]
    for name, key in OWN.items():
        found[f"secret part of {name}"] = key[-32:].encode()
    for name, key in HASHED.items():
        digest = hashlib.sha256(key.encode()).digest()
        found[f"hash of {name}"] = digest
        found[f"hash of {name} in hex"] = digest.hex().encode()
        found[f"hash of {name} in upper case"] = digest.hex().upper().encode()
        found[f"hash of {name} in base64"] = base64.b64encode(digest)[:-2]
        found[f"hash of {name} in url-safe base64"] = base64.urlsafe_b64encode(digest)[:-2]
    return found


class Echo(BaseHTTPRequestHandler):
    """A provider that repeats what it was sent: in a header, in errors and in answers."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        sent = " ".join(f"{name}: {value}" for name, value in self.headers.items())
        usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        body = {"id": "1", "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}}], "usage": usage}
        if asked["model"].startswith("bad"):
            body = {"error": {"message": f"no access with {sent} {self.path}", "code": self.headers["authorization"]}}
        data = json.dumps(body).encode()
        self.send_response(401 if asked["model"].startswith("bad") else 200)
        self.send_header("X-Echo", sent)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def named(name: str, key: str, **more) -> dict:
    return {"name": name, "key_sha256": hashlib.sha256(key.encode()).hexdigest(), **more}


def written(folder: Path, url: str) -> dict:
    """A configuration with every place where a key can be."""
    provider = {"base_url": f"{url}/v1"}
    run_it = [sys.executable, str(folder / "command.py"), str(folder / "printed.key"), str(folder / "seen")]
    step = [{"provider": f"p{number}", "model": "m"} for number in (1, 2, 3, 4)]
    return {
        "api_key": KEYS["api_key"],
        "admin_key": KEYS["admin_key"],
        "keys_file": "keys.yaml",
        "keys": [
            named("hashed", KEYS["hashed"], requests="1000/m", budget=[{"usd": 5, "per": "day"}]),
            {"name": "literal", "key": KEYS["literal"], "tokens": "100k/m"},
            {"name": "person", "key": KEYS["other_form"], "concurrency": 1},
            {"name": "variable", "key": "${VARIABLE_KEY}", "tags": ["team"]},
            named("expired", KEYS["expired"], expires="2020-01-01"),
            named("disabled", KEYS["disabled"], disabled=True),
            named("late", KEYS["late"], requests="1/h"),
            named("hashed", KEYS["rotated"], not_after="2099-01-01"),
        ],
        "listen": ["tcp:0:interface=127.0.0.1"],
        "admin": "unix:admin.sock",
        "providers": [
            {"name": "p1", **provider, "api_key": KEYS["provider"], "headers": {"X-Own-Token": KEYS["header"]}},
            {
                "name": "p2",
                **provider,
                "api_keys": [KEYS["of_several"], KEYS["second"]],
                "query": {"key": KEYS["query"]},
            },
            {"name": "p3", **provider, "key_file": "provider.key"},
            {"name": "p4", **provider, "key_command": run_it},
            {"name": "p5", **provider, "api_key": "${VARIABLE_KEY}", "proxy": f"http://u:{KEYS['proxy']}@127.0.0.1:1"},
        ],
        "routes": [
            {"name": "good", "steps": step, "session_from": ["user"]},
            {"name": "bad", "steps": [{**each, "model": "bad"} for each in step]},
            {"name": "any/*", "steps": [{"provider": "p1", "model": "*"}]},
            {"name": "proxied", "steps": [{"provider": "p5", "model": "m"}]},
        ],
        "prices": "prices.yaml",
        "usage": {"file": "usage.jsonl", "rotate": "day"},
        "state": "state",
        "store": f"valkey://:{KEYS['store']}@127.0.0.1:1/0",
        "unknown_price": 1,
    }


class Scene:
    """The daemon, what its clients got, and what it wrote."""

    def __init__(self, folder: Path, daemon: Daemon) -> None:
        self.folder = folder
        self.daemon = daemon
        self.seen: dict[str, bytes] = {}

    def ask(self, what: str, target: str, body: object = None, admin: bool = False, **headers: str) -> bytes:
        """One request; ``what`` names it. Gives and keeps the whole answer."""
        data = json.dumps(body).encode() if body is not None else b""
        lines = [f"{'GET' if body is None else 'POST'} {target} HTTP/1.1", "Host: x", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        lines += [f"Content-Length: {len(data)}"] if data else []
        with contextlib.closing(socket.socket(socket.AF_UNIX if admin else socket.AF_INET)) as client:
            client.settimeout(20)
            if not admin:  # a client that has sent many wrong keys waits, see S20
                client.bind((f"127.0.{len(self.seen) // 4}.2", 0))
            client.connect(str(self.folder / "admin.sock") if admin else self.daemon.address())
            client.sendall("\r\n".join([*lines, "", ""]).encode() + data)
            answer = b""
            while part := client.recv(65536):
                answer += part
                if target.endswith("/events") and b"\n\n" in answer.partition(b"\r\n\r\n")[2]:
                    break
        self.seen[f"answer to {what}"] = answer
        return answer


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """The daemon after all requests, stopped."""
    folder = tmp_path_factory.mktemp("no-key")
    echo, collector = ThreadingHTTPServer(("127.0.0.1", 0), Echo), Collector()
    echo.daemon_threads = True
    threading.Thread(target=echo.serve_forever, daemon=True).start()
    for name, text in {
        "command.py": COMMAND,
        "printed.key": KEYS["key_command"],
        "provider.key": KEYS["key_file"],
        "prices.yaml": "p1: {m: {input: 1, output: 2}}\n",
        "keys.yaml": yaml.safe_dump(
            {"keys": [named("in-file", KEYS["in_file"]), {"name": "file-literal", "key": KEYS["literal_in_file"]}]}
        ),
    }.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)
    (folder / "state").mkdir()
    environ = {
        "VARIABLE_KEY": KEYS["variable"],
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_EXPORTER_OTLP_HEADERS": f"x-api-key={KEYS['collector']}",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
    }
    config = yaml.safe_dump(written(folder, f"http://127.0.0.1:{echo.server_port}"))
    with Daemon(folder, config=config, environ=environ) as daemon:
        daemon.wait_for("The gateway has started")
        scene = Scene(folder, daemon)
        use(scene)
        scene.seen["ps"] = Path(f"/proc/{daemon.process.pid}/cmdline").read_bytes()
        wait_until(lambda: len(collector.spans()) > 60)
        daemon.stop()
    for name, arguments in {
        "--check-config": ["--check-config"],
        "--usage": ["--usage", "--by", "key,route,model,session", "--csv"],
        "--explain": ["--explain", "asked.json"],
    }.items():
        asked = {"path": "/v1/chat/completions", "headers": {"authorization": f"Bearer {KEYS['hashed']}"}}
        (folder / "asked.json").write_text(json.dumps({**asked, "body": {**HI, "user": KEYS["hashed"]}}))
        done = run(folder, *arguments, config=None, environ=environ)
        assert done.returncode == 0, done.stderr
        scene.seen[name] = (done.stdout + done.stderr).encode()
    scene.seen["log"] = daemon.out.read_bytes() + daemon.err.read_bytes()
    scene.seen["spans"] = b"".join(sent.SerializeToString() for _, _, sent in collector.requests)
    for path in [*(folder / "state").iterdir(), *folder.glob("usage*")]:
        scene.seen[f"file {path.name}"] = path.read_bytes()
    collector.close()
    echo.shutdown()
    echo.server_close()
    return scene


HI = {"model": "good", "messages": [{"role": "user", "content": "hi"}]}
CHAT = "/v1/chat/completions"


def use(scene: Scene) -> None:
    """Requests with each key as it should be sent, and in each place where it should not be."""

    def ok(what: str, *request, **headers) -> None:
        answer = scene.ask(what, *request, **headers)
        assert answer.startswith(b"HTTP/1.1 200 "), (what, answer)

    for name in ("api_key", "hashed", "rotated", "literal", "other_form", "variable", "in_file", "literal_in_file"):
        key = KEYS[name]
        ok(f"{name} as a bearer", CHAT, HI, Authorization=f"Bearer {key}")
        ok(f"{name} in X-Api-Key", "/v1/usage", X_Api_Key=key)
        ok(f"{name} in Api-Key", "/v1/models", Api_Key=key)
        for route in ("bad", "proxied"):
            scene.ask(f"{name} for {route}", CHAT, {**HI, "model": route}, Authorization=f"Bearer {key}")
        scene.ask(f"{name} opens no page", "/metrics", X_Api_Key=key)
    for name in ("late", "late", "expired", "disabled", "wrong", "admin_key"):
        scene.ask(f"{name} is refused", CHAT, HI, Authorization=f"Bearer {KEYS[name]}")
    right = {"Authorization": f"Bearer {KEYS['hashed']}"}
    for name in ("hashed", "other_form", "wrong", "admin_key", "in_file", "provider"):
        key = KEYS[name]
        digest = hashlib.sha256(key.encode()).hexdigest()
        scene.ask(f"{name} in the query", f"{CHAT}?api_key={key}", HI)
        scene.ask(f"{name} in the path", f"/v1/{key}", **right)
        scene.ask(f"{name} as an id", f"/v1/models/{key}", **right)
        scene.ask(f"{name} as an id of a response", f"/v1/responses/{key}", **right)
        scene.ask(f"{name} as a model", CHAT, {**HI, "model": key}, **right)
        scene.ask(f"{name} as a part of a model", CHAT, {**HI, "model": f"any/{key}"}, **right)
        scene.ask(f"{name} as a model in other letters", CHAT, {**HI, "Model": key}, **right)
        scene.ask(f"{name} in the body", CHAT, {**HI, "api_key": key}, **right)
        scene.ask(f"{name} as user", CHAT, {**HI, "user": key, "metadata": {"key": key}}, **right)
        scene.ask(f"{name} as user for a step that fails", CHAT, {**HI, "model": "bad", "user": key}, **right)
        scene.ask(f"{name} as a name of a member", CHAT, {**HI, key: 1}, **right)
        scene.ask(f"{name} as a role", CHAT, {**HI, "messages": [{"role": [key]}]}, **right)
        scene.ask(f"{name} as an id of a request", CHAT, HI, X_Request_Id=key, **right)
        scene.ask(f"{name} in traceparent", CHAT, HI, Traceparent=key, **right)
        scene.ask(f"{name} in a cookie", "/status.json", Cookie=f"aigw={key}; key={key}")
        scene.ask(f"{name} as a method", CHAT, HI, X_HTTP_Method_Override=key, Content_Encoding=key, **right)
        scene.ask(f"{name} as basic", CHAT, HI, Authorization=f"Basic {base64.b64encode(key.encode()).decode()}")
        scene.ask(f"{name} without a scheme", CHAT, HI, Authorization=key)
        scene.ask(f"{name} in another letter case", CHAT, HI, Authorization=f"Bearer {key.swapcase()}")
        scene.ask(f"the hash of {name}", CHAT, HI, Authorization=f"Bearer {digest}")
    admin = {"X-Api-Key": KEYS["admin_key"]}
    for page in ("/metrics", "/status.json", "/status", "/status/events", "/ready"):
        ok(page, page, **admin)
        ok(f"admin {page}", page, None, True)
    ok("openmetrics", "/metrics", Accept="application/openmetrics-text", **admin)
    ok("explain", "/explain", {"path": CHAT, "headers": right, "body": {**HI, "user": KEYS["hashed"]}}, True)
    # A new file of keys, and one with a mistake.
    keys = scene.folder / "keys.yaml"
    keys.write_text(yaml.safe_dump({"keys": [named("in-file", KEYS["in_file"]), named("new", KEYS["in_file"])]}))
    scene.daemon.wait_for("The gateway did not reload")
    keys.write_text(f"keys: [{{name: a, key: {KEYS['literal_in_file']}, unknown: {KEYS['in_file']}}}\n")
    scene.daemon.wait_for("The gateway did not reload", 2)
    ok("page after a mistake", "/status.json", **admin)
    keys.write_text(yaml.safe_dump({"keys": [named("in-file", KEYS["in_file"], expires="2020-01-01")]}))
    scene.daemon.wait_for("The gateway has reloaded")


def shown(where: str, data: bytes) -> str:
    return f"{where}: ...{data.decode('latin-1')}..."


def test_c14_no_key_and_no_hash_is_in_anything_that_the_gateway_writes(scene):
    found = [
        shown(f"{what} is in {where}", data[max(0, at - 80) : at + 60])
        for where, data in scene.seen.items()
        for what, needle in needles().items()
        if (at := data.find(needle)) >= 0
    ]
    assert not found, f"{len(found)} places:\n" + "\n".join(found)


def test_c14_the_search_looks_where_it_should(scene):
    """What it finds nothing in is there, and has what it should have."""
    text = {name: data.decode("latin-1") for name, data in scene.seen.items()}
    assert text["log"].count('"message":"Request"') > 100
    assert 'caller="hashed"' in text["answer to /metrics"]
    assert '"hashed"' in text["answer to /status.json"]
    assert "in-file" in text["--check-config"]
    assert "hashed" in text["--usage"]
    assert any(name.startswith("file usage") and '"caller":"hashed"' in data for name, data in text.items())
    assert '"session":"***"' in "".join(data for name, data in text.items() if name.startswith("file usage"))
    assert b"401" in scene.seen["answer to wrong is refused"]


def test_c14_a_program_that_gives_a_key_gets_no_other_key(scene):
    """The environment of the gateway itself is what its operator gave it; that of a process that it starts is less."""
    seen = (scene.folder / "seen").read_text().splitlines()
    (arguments, environ), parent = json.loads(seen[-1])
    everything = "\n".join([arguments, environ, parent]).encode("latin-1")
    assert "PATH=" in environ
    assert not [what for what, needle in needles().items() if needle in everything]
