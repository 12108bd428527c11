"""Who is measured: this gateway, nginx doing the same relay, and LiteLLM's and Portkey's where they are installed.

Each is one process on one core that relays to the provider. The gateway has all its features on: authentication,
records logged to a file at ``info``, limits.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import ssl
import sys
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from contrib.bench.client import Target, request
from contrib.bench.machine import Process, accepts, free_port

ROOT = Path(__file__).resolve().parents[2]
KEY = "bench-key-000000"
PATH = "/v1/chat/completions"
MODELS = ("mock", "answer-1000000", "stream-100-0", "stream-100-20", "stream-20-20", "stream-1-0", "idle")
NGINX = """
worker_processes 1; pid {dir}/nginx.pid; error_log {dir}/nginx.err; daemon off;
worker_rlimit_nofile 20000; events {{ worker_connections 9000; }}
http {{
  access_log off; client_max_body_size 64m; client_body_buffer_size 2m; keepalive_requests 100000000;
  client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u;
  scgi_temp_path {dir}/s; ssl_protocols TLSv1.2 TLSv1.3; ssl_session_cache off; ssl_session_tickets off;
  upstream up {{ server 127.0.0.1:{upstream}; keepalive 2000; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096{ssl}; {certificate}
    location = /health {{ return 200 '{{"status": "healthy"}}'; }}
    location / {{
      proxy_pass {scheme}://up; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
      proxy_read_timeout 1h; {verify}
    }}
  }}
}}
"""


@dataclass(frozen=True)
class Certificate:
    """What our own TLS listeners show; it is its own authority."""

    cert: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """For a client that trusts it."""
        return ssl.create_default_context(cafile=str(self.cert))


@dataclass(frozen=True)
class Setup:
    """What all contestants are given alike: the provider, TLS or not on either side."""

    folder: Path
    core: int
    provider: int
    tls: Certificate | None = None  # of the listener
    provider_tls: Certificate | None = None
    connections: int = 2000

    @property
    def scheme(self) -> str:
        """How the provider is called."""
        return "https" if self.provider_tls else "http"


@dataclass(frozen=True)
class Contestant:
    """One that runs."""

    name: str
    process: Process
    port: int
    headers: tuple[str, ...] = ()
    tls: Certificate | None = None
    log: Path | None = field(default=None)

    def url(self, path: str = PATH) -> str:
        """For wrk."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}{path}"

    def target(self, body: bytes, path: str = PATH, apart: bool = False) -> Target:
        """For Clients; ``apart`` sends head and body in two segments."""
        message = request(path, body, KEY, self.headers)
        first = message[: len(message) - len(body)] if apart else message
        return Target(self.name, self.port, first, self.tls.context() if self.tls else None, message[len(first) :])


def chat(model: str, prompt: int = 200) -> bytes:
    """The body of a chat request with so many bytes of prompt."""
    tree = {"model": model, "messages": [{"role": "user", "content": "x" * prompt}]}
    return json.dumps(tree | ({} if model.startswith(("mock", "answer")) else {"stream": True})).encode()


def provider(folder: Path, core: int, port: int) -> Process:
    """The provider that all relay to."""
    process = Process(
        [sys.executable, Path(__file__).with_name("provider.py"), str(port)], core, folder / "provider.log"
    )
    process.wait_until(lambda: accepts(port))
    return process


def nginx(setup: Setup, name: str = "nginx") -> Contestant:
    """Debian's nginx as a relay, or as the TLS end of the provider."""
    folder = setup.folder / f"{name}-{(port := free_port())}"
    folder.mkdir(mode=0o755)
    setup.folder.chmod(0o755)  # its worker is nobody
    pair, peer = setup.tls, setup.provider_tls
    text = NGINX.format(
        dir=folder,
        port=port,
        upstream=setup.provider,
        scheme=setup.scheme,
        ssl=" ssl" if pair else "",
        certificate=f"ssl_certificate {pair.cert}; ssl_certificate_key {pair.key};" if pair else "",
        verify=f"proxy_ssl_verify on; proxy_ssl_trusted_certificate {peer.cert}; proxy_ssl_name localhost;"
        if peer
        else "",
    )
    (folder / "nginx.conf").write_text(text)
    found = shutil.which("nginx") or "/usr/sbin/nginx"
    process = Process([found, "-c", folder / "nginx.conf"], setup.core, setup.folder / f"{name}.log")
    process.wait_until(lambda: accepts(port))
    return Contestant(name, process, port, tls=pair)


@dataclass(frozen=True)
class Tree:
    """Source of the gateway. ``under`` is a command that runs it, which may take longer for everything."""

    name: str = "aigw"
    root: Path = ROOT
    under: tuple[str, ...] = ()
    environ: dict[str, str] = field(default_factory=dict)
    patience: float = 5.0

    def twistd(self) -> list[str]:
        """The options of twistd with which its own unit starts it."""
        unit = (self.root / "contrib" / "systemd" / "ai-gateway.service").read_text()
        found = re.search(r"^ExecStart=\S+/twistd (.*) aigw -c ", unit, re.M)
        return found[1].split() if found else ["-n", "--pidfile="]


def gateway(setup: Setup, passed: socket.socket | None = None, number: int = 1, tree: Tree | None = None) -> Contestant:
    """This gateway, from this checkout or another; where a socket is passed, that is its listener."""
    source = tree or Tree()
    port = passed.getsockname()[1] if passed else free_port()
    base = f"{setup.scheme}://127.0.0.1:{setup.provider}/v1"
    one = {"name": "provider", "base_url": base, "api_key": "provider-key"}
    config = {
        "api_key": KEY,
        "port": port,
        "idle_timeout": "1h",
        "limits": {"connections": setup.connections},
        "providers": [one | ({"ca_file": str(setup.provider_tls.cert)} if setup.provider_tls else {})],
        "routes": [{"name": name, "steps": [{"provider": "provider", "model": name}]} for name in MODELS],
    }
    if setup.tls:
        config["tls"] = {"cert_file": str(setup.tls.cert), "key_file": str(setup.tls.key)}
    name = f"gateway-{port}-{number}"
    file, log = setup.folder / f"{name}.yaml", setup.folder / f"{name}.jsonl"
    file.touch(0o600)
    file.write_text(json.dumps(config))  # JSON is YAML
    twistd = Path(sys.executable).with_name("twistd")
    command: list[str | Path] = [*source.under, *([sys.executable, twistd] if twistd.exists() else ["twistd"])]
    command += [*source.twistd(), f"--logfile={log}", "aigw", "-c", file]
    environ = {"PYTHONPATH": str(source.root), **source.environ}
    output = setup.folder / f"{name}.log"
    process = Process(command, setup.core, output, environ, passed, log, source.patience)
    try:
        process.wait_until(lambda: log.exists() and '"The gateway has started"' in log.read_text())
    except BaseException:
        process.__exit__(None, None, None)
        raise
    return Contestant(source.name, process, port, tls=setup.tls, log=log)


def litellm(setup: Setup, command: str) -> Contestant:
    """LiteLLM's proxy (pip install 'litellm[proxy]') with one worker."""
    parameters = {"api_base": f"http://127.0.0.1:{setup.provider}/v1", "api_key": "provider-key"}
    models = [{"model_name": name, "litellm_params": parameters | {"model": f"openai/{name}"}} for name in MODELS]
    file = setup.folder / "litellm.yaml"
    file.write_text(json.dumps({"model_list": models, "general_settings": {"master_key": KEY}}))
    port = free_port()
    words: list[str | Path] = [
        command,
        "--config",
        file,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--num_workers",
        "1",
    ]
    environ = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_TELEMETRY": "False"}
    process = Process(words, setup.core, setup.folder / "litellm.log", environ)
    return _checked(Contestant("LiteLLM", process, port))


def portkey(setup: Setup, command: str) -> Contestant:
    """Portkey's gateway (npm install @portkey-ai/gateway); what it calls is told it in headers."""
    port = free_port()
    headers = ("x-portkey-provider: openai", f"x-portkey-custom-host: http://127.0.0.1:{setup.provider}/v1")
    environ = {"NODE_ENV": "production", "TRUSTED_CUSTOM_HOSTS": "127.0.0.1,localhost"}
    process = Process([command, f"--port={port}", "--headless"], setup.core, setup.folder / "portkey.log", environ)
    return _checked(Contestant("Portkey", process, port, headers))


def _checked(contestant: Contestant) -> Contestant:
    """It answers as it should, or is not measured."""

    def answers() -> bool:
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        headers |= dict(each.split(": ", 1) for each in contestant.headers)
        asked = urllib.request.Request(contestant.url(), chat("mock"), headers)
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return b"Hello world" in answer.read()

    try:
        contestant.process.wait_until(answers)
    except BaseException:
        contestant.process.__exit__(None, None, None)
        raise
    return contestant


def rivals(setup: Setup, commands: Sequence[tuple[str, str]]) -> list[Contestant]:
    """Those that are installed: by the command that was named, else on PATH."""
    makers = {"litellm": litellm, "portkey": portkey}
    found = []
    for name, command in commands:
        path = shutil.which(command)
        if path is None:
            print(f"{name} is not installed ({command}): left out", file=sys.stderr)
            continue
        found.append(makers[name](setup, os.path.abspath(path)))
    return found
