"""``aigw demo``, or ``twistd -n aigw --demo``: the real gateway over TLS on loopback, with one failed provider of two.

It needs no configuration, key or network. All of its files are in one temporary folder, which it removes at the end.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import shlex
import shutil
import socket
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from twisted.application.service import MultiService
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import ServerFactory
from twisted.internet.task import LoopingCall
from twisted.web.http import Request as HTTPRequest
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from aigw.commands.own_requests import OwnRequests
from aigw.config import loader
from aigw.daemon.application import Parent, ProcessReactor, use_observer
from aigw.daemon.service import GatewayService
from aigw.net.interfaces import Reactor
from aigw.telemetry import logs

KEY = "demo-key-on-this-machine"
PORT = 8443
ADMIN_PORT = 8444
WORDS = "Hello! The first provider of this route is down, so the second one answers you, word by word.".split()
SECONDS_PER_WORD = 0.1

MESSAGES = [{"role": "user", "content": "Hi"}]

TRY_IT = """
The gateway has started. Its status page needs no key:

{page}

The demo sends one request a second to itself, for an hour, so that the page shows data. Its route "demo" has two steps,
and the provider of the first step is down. Send your own requests:

1. With curl, a plain answer:

curl --cacert {quoted_ca} {url}/chat/completions {headers} -d '{plain}'

2. With curl, a streamed one:

curl -N --cacert {quoted_ca} {url}/chat/completions {headers} -d '{stream}'

3. With Python, after: pip install openai

import openai, ssl
http = openai.DefaultHttpxClient(verify=ssl.create_default_context(cafile={ca!r}))
client = openai.OpenAI(base_url="{url}", api_key="{key}", http_client=http)
for chunk in client.chat.completions.create(model="demo", messages={messages}, stream=True):
    print(chunk.choices[0].delta.content or "", end="", flush=True)

The log below shows that the second provider answers each request. Ctrl-C stops the demo.
"""


class DemoProvider(Resource):
    """Answers every chat completion with the same words, streamed if the request asks for it."""

    isLeaf = True

    def __init__(self, reactor: Reactor) -> None:
        super().__init__()
        self._reactor = reactor

    def render_POST(self, request: Request) -> bytes | int:
        """A chat completion."""
        assert request.content is not None  # the whole body, which twisted.web has read
        asked = json.loads(request.content.read())
        shape = {"id": "chatcmpl-demo", "created": 1700000000, "model": asked["model"]}
        if asked.get("stream"):
            self._stream(request, {**shape, "object": "chat.completion.chunk"})
            return NOT_DONE_YET
        message = {"role": "assistant", "content": " ".join(WORDS)}
        usage = {"prompt_tokens": 1, "completion_tokens": len(WORDS), "total_tokens": 1 + len(WORDS)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        request.setHeader(b"content-type", b"application/json")
        return json.dumps({**shape, "object": "chat.completion", "choices": [choice], "usage": usage}).encode()

    def _stream(self, request: Request, shape: dict[str, object]) -> None:
        request.setHeader(b"content-type", b"text/event-stream")
        words = iter([f"{word} " for word in WORDS[:-1]] + [WORDS[-1]])

        def send(delta: dict[str, str], finish_reason: str | None = None) -> None:
            choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
            request.write(b"data: " + json.dumps({**shape, "choices": [choice]}).encode() + b"\n\n")

        def send_a_word() -> None:
            word = next(words, None)
            if word is not None:
                send({"content": word})
                return
            ticking.stop()
            send({}, "stop")
            request.write(b"data: [DONE]\n\n")
            request.finish()

        def client_left(_: object) -> None:
            if ticking.running:
                ticking.stop()

        send({"role": "assistant", "content": ""})
        ticking = LoopingCall(send_a_word)
        ticking.clock = self._reactor
        request.notifyFinish().addErrback(client_left)
        ticking.start(SECONDS_PER_WORD)


class _QuietSite(Site):
    noisy = False

    def log(self, request: HTTPRequest) -> None:
        pass


class DemoService(MultiService):
    """Makes providers, certificate, configuration and gateway when it starts."""

    def __init__(self, reactor: ProcessReactor, observer: logs.QueuedLines | None) -> None:
        """Opens nothing."""
        super().__init__()
        self._reactor = reactor
        self._observer = observer
        self._folder: Path | None = None
        self._requests: OwnRequests | None = None
        self._down = socket.socket()
        self._name = socket.socket(socket.AF_UNIX)

    def setServiceParent(self, parent: Parent) -> None:
        """See GatewayService.setServiceParent."""
        use_observer(parent, self._observer)
        super().setServiceParent(parent)

    def privilegedStartService(self) -> None:
        """Make the providers and the certificate, and open the listeners."""
        self._folder = Path(tempfile.mkdtemp(prefix="aigw-demo-"))
        certify(self._folder)
        self._down.bind(("127.0.0.1", 0))  # bound, but not listening: connections are refused
        site = cast(ServerFactory, _QuietSite(DemoProvider(self._reactor)))  # whose type Twisted narrows
        port = self._reactor.listenTCP(0, site, interface="127.0.0.1")
        ports = [_free_port(PORT), _free_port(ADMIN_PORT)] if self._is_first() else [0, 0]
        tree = _configuration(self._down.getsockname()[1], _number(port), *ports)
        self._gateway = GatewayService(partial(loader.build, tree, {}, self._folder), self._reactor, None)
        self._gateway.setServiceParent(self)
        super().privilegedStartService()

    def startService(self) -> None:
        """Print how to try it."""
        super().startService()
        port, admin_port = [_number(port) for port in self._gateway.ports]
        url, ca = f"https://127.0.0.1:{port}/v1", f"{self._folder}/cert.pem"
        page = f"http://127.0.0.1:{admin_port}/status"
        print(instructions(url, ca, page), file=sys.__stdout__, flush=True)
        self._requests = OwnRequests(self._reactor, port, Path(ca).read_bytes(), _request())
        self._requests.start()

    def _is_first(self) -> bool:
        """Whether no other demo runs, which would use the same ports."""
        try:
            self._name.bind("\0aigw-demo")  # an abstract name, which the kernel removes with the process
        except OSError:
            return False
        return True

    def stop_now(self) -> None:
        """See GatewayService.stop_now."""
        self._gateway.stop_now()

    def stopService(self) -> Deferred[object]:
        """Stop, and remove all files."""
        if self._requests is not None:
            self._requests.stop()
        self._down.close()
        self._name.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        stopped: Deferred[object] = super().stopService()
        return stopped


def _request() -> bytes:
    body = json.dumps({"model": "demo", "messages": MESSAGES})
    head = [
        "POST /v1/chat/completions HTTP/1.1",
        "Host: localhost",
        f"Authorization: Bearer {KEY}",
        "Connection: close",
    ]
    return "\r\n".join([*head, "Content-Type: application/json", f"Content-Length: {len(body)}", "", body]).encode()


def instructions(url: str, ca: str, page: str) -> str:
    """The text on how to try it; ``ca`` is the certificate's path, ``page`` the address of the status page."""
    body = {"model": "demo", "messages": MESSAGES}
    headers = f"-H 'Authorization: Bearer {KEY}' -H 'Content-Type: application/json'"
    plain, stream = json.dumps(body), json.dumps({**body, "stream": True})
    return TRY_IT.format(
        url=url,
        page=page,
        ca=ca,
        quoted_ca=shlex.quote(ca),
        key=KEY,
        headers=headers,
        plain=plain,
        stream=stream,
        messages=MESSAGES,
    )


def certify(folder: Path) -> None:
    """A self-signed certificate for loopback, valid for 30 days: ``cert.pem`` and ``key.pem``."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "aigw demo")])
    now = datetime.datetime.now(datetime.timezone.utc)
    loopback = [x509.IPAddress(ipaddress.ip_address(address)) for address in ("127.0.0.1", "::1")]
    unused = "content_commitment key_encipherment data_encipherment key_agreement key_cert_sign crl_sign".split()
    usage = x509.KeyUsage(
        digital_signature=True,
        **dict.fromkeys(unused, False),
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost"), *loopback]), critical=False)
        .add_extension(
            x509.BasicConstraints(ca=False, path_length=None), critical=True
        )  # rustls refuses a CA certificate
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").touch(mode=0o600)
    (folder / "key.pem").write_bytes(private)


def _configuration(down: int, up: int, port: int, admin_port: int) -> dict[str, object]:
    steps = [{"provider": "down", "model": "demo-large"}, {"provider": "up", "model": "demo-small"}]
    return {
        "api_key": KEY,
        "listen": [f"tcp:{port}:interface=127.0.0.1"],
        "admin": f"tcp:{admin_port}:interface=127.0.0.1",
        "tls": {"cert_file": "cert.pem", "key_file": "key.pem"},
        "providers": [
            {"name": "down", "base_url": f"http://127.0.0.1:{down}/v1", "api_key": "demo-provider-key-1"},
            {"name": "up", "base_url": f"http://127.0.0.1:{up}/v1", "api_key": "demo-provider-key-2"},
        ],
        "routes": [{"name": "demo", "steps": steps}],
        "when_refused": "pass_on",
        "cooldown": 0,  # else the first step would cool down after three requests, and its failures would not be seen
    }


def _number(port: IListeningPort) -> int:
    """Of a port on IPv4."""
    return cast(IPv4Address, port.getHost()).port


def _free_port(preferred: int) -> int:
    """The preferred port if it is free, else 0, which means any port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", preferred))
        except OSError:
            return 0
    return preferred
