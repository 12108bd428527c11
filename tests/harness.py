"""A world on real sockets: gateways, providers and clients, all of them closed when the test is over."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import h11
import trustme
from twisted.internet import reactor, ssl
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import globalLogPublisher

from aigw.config import loader
from aigw.config.model import Config
from aigw.daemon.service import GatewayService
from aigw.telemetry.logs import JsonLines
from aigw.telemetry.redaction import Redaction
from aigw.upstream import connector
from tests import providers

KEY = "gateway-key-1234-of-the-tests"
AUTH = {"Authorization": f"Bearer {KEY}"}
CHAT = "/v1/chat/completions"
HELLO = {"model": "route", "messages": [{"role": "user", "content": "hi"}]}


def bounded(deferred: Deferred, seconds: float = 10.0) -> Deferred:
    """Every wait on a real socket has an end."""
    return deferred.addTimeout(seconds, reactor)


def until(condition: Callable[[], Any], seconds: float = 5.0) -> Deferred:
    """Fires when ``condition()`` is true."""
    done: Deferred = Deferred()

    def look() -> None:
        if done.called:
            return
        if condition():
            done.callback(None)
        else:
            reactor.callLater(0.005, look)

    look()
    return bounded(done, seconds)


@dataclass
class Answer:
    """What a client received; ``whole`` says that HTTP's framing says so."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    whole: bool = False
    informational: list[int] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict:
        return self.json["error"]


class Client(Protocol):
    """Sends bytes, and reads one answer with h11, which is strict."""

    def __init__(self, method: str = "POST") -> None:
        self.answer = Answer()
        self.done: Deferred = Deferred()
        self.closed: Deferred = Deferred()
        self.started: Deferred = Deferred()
        self.received = b""
        self._parser = h11.Connection(h11.CLIENT)
        self._parser.send(h11.Request(method=method, target="/", headers=[("Host", "x"), ("Content-Length", "0")]))
        self._parser.send(h11.EndOfMessage())

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        self._feed(data)

    def connectionLost(self, reason) -> None:
        self._feed(b"")
        if not self.done.called:
            self.done.callback(self.answer)
        self.closed.callback(self.answer)

    def _feed(self, data: bytes) -> None:
        if self.done.called:
            return
        try:
            self._parser.receive_data(data)
            while (event := self._parser.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
                self._take(event)
                if self.done.called:
                    return
        except h11.RemoteProtocolError:
            self.done.callback(self.answer)

    def _take(self, event) -> None:
        if isinstance(event, h11.InformationalResponse):
            self.answer.informational.append(event.status_code)
        elif isinstance(event, h11.Response):
            self.answer.status = event.status_code
            self.answer.headers = {name.decode(): value.decode() for name, value in event.headers}
        elif isinstance(event, h11.Data):
            self.answer.body += bytes(event.data)
            self.answer.pieces.append(bytes(event.data))
            if not self.started.called:
                self.started.callback(None)
        elif isinstance(event, h11.EndOfMessage):
            self.answer.whole = True
            self.done.callback(self.answer)
        elif isinstance(event, h11.ConnectionClosed):
            self.done.callback(self.answer)


def request(body: Any, path: str = CHAT, method: str = "POST", headers: dict[str, str] | None = None) -> bytes:
    """A request's bytes; a ``body`` of None is none at all."""
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"Host": "gateway", "Content-Type": "application/json", **(AUTH if headers is None else headers)}
    if body is not None:
        sent.setdefault("Content-Length", str(len(data)))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items())]
    return "\r\n".join([*lines, "", ""]).encode() + data


def tls_options(certificate: trustme.LeafCert) -> ssl.CertificateOptions:
    """A server's side of TLS."""
    pem = certificate.private_key_pem.bytes() + certificate.cert_chain_pems[0].bytes()
    loaded = ssl.PrivateCertificate.loadPEM(pem)
    return ssl.CertificateOptions(
        privateKey=loaded.privateKey.original, certificate=loaded.original, acceptableProtocols=[b"http/1.1"]
    )


@cache
def authority() -> trustme.CA:
    """The one of all tests of this process."""
    return trustme.CA()


@cache
def issued(*hosts: str) -> trustme.LeafCert:
    return authority().issue_cert(*hosts)


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = authority()
        self.ca_file = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(str(self.ca_file))
        self.records: list[dict] = []
        self.log: list[str] = []
        self._closers: list[Callable[[], Any]] = []
        self._closed_socket = socket.socket()
        self._closed_socket.bind(("127.0.0.1", 0))
        self._redaction = Redaction()
        globalLogPublisher.addObserver(self._observe)

    def _observe(self, event: dict) -> None:
        """A new observer for each, so that none is held back because it came before."""
        observer = JsonLines(self)
        observer.redaction = self._redaction
        observer(event)
        self._redaction = observer.redaction

    def write(self, line: str) -> None:
        """The log's file."""
        self.log.append(line)
        event = json.loads(line)
        if event["message"] == "Request":
            self.records.append({"request_id": event["request_id"], **event["fields"]})

    def flush(self) -> None:
        pass

    def close(self) -> Deferred:
        globalLogPublisher.removeObserver(self._observe)
        self._closed_socket.close()
        return bounded(DeferredList([maybeDeferred(close) for close in reversed(self._closers)], consumeErrors=True))

    # Providers

    def provider(self, *behaviours, tls: bool = False, host: str = "127.0.0.1", **more) -> providers.Provider:
        """One that shows a certificate for ``host`` if ``tls``."""
        provider = providers.Provider(list(behaviours) or [providers.as_asked()], **more)
        factory: Any = provider
        if tls:
            certificate = issued(host, "localhost")
            options = tls_options(certificate)
            port = reactor.listenSSL(0, factory, options, interface="127.0.0.1")
        else:
            port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        provider.port = port.getHost().port
        provider.tls = tls

        def close():
            for connection in provider.connections:
                if not connection.is_closed:
                    connection.transport.abortConnection()
            return port.stopListening()

        self._closers.append(close)
        return provider

    def black_hole(self) -> int:
        """A port whose kernel completes the handshake, and whose process never accepts."""
        hole = socket.socket()
        hole.bind(("127.0.0.1", 0))
        hole.listen(1)
        self._closers.append(hole.close)
        return hole.getsockname()[1]

    def dead_port(self) -> int:
        """A port on which nobody listens, and nobody else can."""
        return self._closed_socket.getsockname()[1]

    def base_url(self, provider: providers.Provider | str | None) -> str:
        if isinstance(provider, str):
            return provider
        if provider is None:
            return f"http://127.0.0.1:{self.dead_port()}/v1"
        return f"{'https' if provider.tls else 'http'}://127.0.0.1:{provider.port}/v1"

    # Gateways

    def gateway(self, *steps: providers.Provider | str | None, tls: bool = False, **settings) -> Gateway:
        """A gateway whose route ``route`` has these providers as its steps (None is one that is down)."""
        settings = {"timeout": 5, **settings}
        look_up, environ = settings.pop("look_up", None), settings.pop("environ", None)
        tree = {
            "api_key": KEY,
            "listen": ["tcp:0:interface=127.0.0.1"],
            "providers": [
                {
                    "name": f"p{number}",
                    "base_url": self.base_url(provider),
                    "api_key": f"provider-key-{number}",
                    **({"ca_file": str(self.ca_file)} if getattr(provider, "tls", False) else {}),
                }
                for number, provider in enumerate(steps, 1)
            ],
            "routes": [
                {
                    "name": "route",
                    "steps": [
                        {"provider": f"p{number}", "model": f"model-{number}"} for number in range(1, len(steps) + 1)
                    ],
                }
            ],
            **settings.pop("top", {}),
        }
        tree["routes"][0].update(settings)
        return self.gateway_of(tree, tls, environ, look_up=look_up)

    def gateway_of(self, tree: dict, tls: bool = False, environ: dict[str, str] | None = None, look_up=None) -> Gateway:
        if tls:
            certificate = issued("127.0.0.1", "localhost", "::1")
            certificate.private_key_pem.write_to_path(str(self.folder / "key.pem"))
            certificate.cert_chain_pems[0].write_to_path(str(self.folder / "cert.pem"))
            tree = {**tree, "tls": {"cert_file": "cert.pem", "key_file": "key.pem"}}
        tree = {"drain": 0, **tree}  # what a test changes in it holds after a reload

        def load() -> Config:
            return loader.build(tree, environ or {}, self.folder)

        service = GatewayService(load, reactor, None, look_up or connector.look_up, environ=environ)
        service.privilegedStartService()
        service.startService()
        self._closers.append(service.stopService)
        return Gateway(self, service, tls, tree)


class Gateway:
    def __init__(self, world: World, service: GatewayService, tls: bool, tree: dict) -> None:
        self.world = world
        self.tree = tree
        self.service = service
        self.tls = tls
        self.port = getattr(service.ports[0].getHost(), "port", None)  # a Unix socket has none

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}/v1"

    def reload(self) -> Deferred:
        return bounded(self.service.reload())

    host = "127.0.0.1"

    async def connect(self, method: str = "POST") -> Client:
        client = Client(method)
        endpoint: Any = HostnameEndpoint(reactor, self.host, self.port)
        if self.tls:
            root = ssl.Certificate.loadPEM(self.world.ca_file.read_bytes())
            endpoint = wrapClientTLS(ssl.optionsForClientTLS("127.0.0.1", trustRoot=root), endpoint)
        factory = Factory.forProtocol(lambda: client)
        factory.noisy = False
        await bounded(endpoint.connect(factory))
        self.world._closers.append(lambda: client.transport.abortConnection())
        return client

    async def send(self, data: bytes, method: str = "POST") -> Client:
        client = await self.connect(method)
        client.transport.write(data)
        return client

    async def ask(self, body: Any = None, **more) -> Answer:
        """One request on its own connection, and its answer; a dict is added to HELLO."""
        headers = more.pop("headers", None)
        path, method = more.pop("path", CHAT), more.pop("method", "POST")
        if method == "POST" and not isinstance(body, bytes):
            body = {**HELLO, **(body or {}), **more}
        client = await self.send(request(body, path, method, headers), method)
        return await bounded(client.done)

    async def get(self, path: str, headers: dict[str, str] | None = None, method: str = "GET") -> Answer:
        return await self.ask(path=path, method=method, headers=headers)


def contents(body: bytes) -> str:
    """The text that a stream's deltas make."""
    deltas = re.findall(rb"^data: (\{.*\})$", body, re.MULTILINE)
    return "".join(
        choice["delta"].get("content") or "" for delta in deltas for choice in json.loads(delta).get("choices", [])
    )


@contextmanager
def lines_of_the_log() -> Iterator[list[dict]]:
    """The lines that the log gets meanwhile, as they come."""
    lines: list[dict] = []

    class File:
        write = staticmethod(lambda line: lines.append(json.loads(line)))
        flush = staticmethod(lambda: None)

    observer = JsonLines(File())
    globalLogPublisher.addObserver(observer)
    try:
        yield lines
    finally:
        globalLogPublisher.removeObserver(observer)
