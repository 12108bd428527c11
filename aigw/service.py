"""GatewayService: the one owner of live objects. It starts and stops what the other modules describe."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.endpoints import serverFromString, wrapServerTLS
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.logger import ILogObserver

from aigw import __version__, logs, web
from aigw.config import Config, Listener
from aigw.dial import Host, LookUp, Names, look_up
from aigw.errors import CannotListen, ConfigError
from aigw.gateway import Gateway
from aigw.health import Health
from aigw.records import AttemptRecord, Record
from aigw.routing import KEY_REFUSED
from aigw.tls import ServerIdentity
from aigw.upstream import Upstream

T = TypeVar("T")


class GatewayService(Service):
    """The daemon: listeners, the site behind them, the providers' connections."""

    def __init__(
        self, config: Config, reactor: Any, observer: logs.JsonLines | None, look_up: LookUp = look_up
    ) -> None:
        """Reads certificates, opens nothing. ``observer`` becomes the log unless ``--logger`` says otherwise.

        Raises ConfigError.
        """
        self.config = config
        self.ports: list[IListeningPort] = []
        self._reactor = reactor
        self._observer = observer
        mistakes: list[str] = []
        connect = partial(Host, reactor, Names(reactor, look_up))
        self._identity = _or_mistakes(mistakes, lambda: ServerIdentity(config.tls) if config.tls else None)
        upstream = _or_mistakes(mistakes, lambda: Upstream(reactor, config.providers.values(), connect))
        endpoints = _or_mistakes(mistakes, lambda: [(each, self._endpoint(each)) for each in listeners(config)])
        if mistakes or upstream is None or endpoints is None:
            raise ConfigError(mistakes)
        self._upstream = upstream
        self._endpoints = endpoints
        gateway = Gateway(config, self._upstream, Health(time.monotonic), reactor, log_attempt)
        self._site = web.Front(web.tree(config, gateway, log_record), config.max_body, reactor)
        logs.hide(secret.hide_in for secret in config.secrets)

    def setServiceParent(self, parent: Any) -> None:
        """twistd takes its log observer from the application, and asks for it only after this."""
        if self._observer is not None:
            parent.setComponent(ILogObserver, self._observer)
        super().setServiceParent(parent)

    def privilegedStartService(self) -> None:
        """Bind, while we may still be root; if that fails, say so in one line and exit with 1."""
        super().privilegedStartService()
        for warning in self.config.warnings:
            logs.warn(warning)
        if self._identity is None:
            logs.warn("No TLS certificate is configured: plain HTTP, on loopback only unless a listener says insecure")
        for listener, endpoint in self._endpoints:
            self._listen(listener, endpoint)

    def startService(self) -> None:
        """Everything is up."""
        super().startService()
        for (listener, _), port in zip(self._endpoints, self.ports, strict=True):
            tls = self._identity is not None and not listener.insecure
            logs.info("Listening", address=_address(port.getHost()), tls=tls)
        gc.collect()
        gc.freeze()  # what is there now stays, and is not to be looked through again
        gc.set_threshold(10_000, 20, 20)  # a request leaves no cycle: looking after every 700 objects cost a tenth
        logs.info("Started", version=__version__, routes=len(self.config.routes), providers=list(self.config.providers))

    def stopService(self) -> Deferred[Any]:
        """Stop listening and close every connection."""
        logs.info("Stopping")
        stopped = gatherResults([maybeDeferred(port.stopListening) for port in self.ports], consumeErrors=True)
        self.ports = []
        self._upstream.close()

        def say_so(_: object) -> None:
            logs.info("Stopped")

        return stopped.addBoth(say_so).addBoth(lambda _: maybeDeferred(super(GatewayService, self).stopService))

    def _endpoint(self, listener: Listener) -> IStreamServerEndpoint:
        try:
            endpoint: IStreamServerEndpoint = serverFromString(self._reactor, listener.endpoint)
        except (ValueError, TypeError):
            right = r"write tcp:PORT:interface=ADDRESS, tcp6:PORT:interface=\:\:, unix:PATH or systemd:..."
            raise ConfigError([f"listen: {listener.endpoint!r} is not a Twisted server endpoint; {right}"]) from None
        if self._identity is not None and not listener.insecure:
            endpoint = wrapServerTLS(self._identity, endpoint, self._reactor)
        return endpoint

    def _listen(self, listener: Listener, endpoint: IStreamServerEndpoint) -> None:
        failures: list[Any] = []
        endpoint.listen(self._site).addCallbacks(self.ports.append, failures.append)
        if failures:  # a Deferred would keep an exception that is raised in it to itself
            logs.error(f"Cannot listen: {failures[0].value}", address=listener.endpoint)
            # Not SystemExit: twistd would leave its pid file, and as a daemon the process that waits for word from it.
            sys.excepthook = lambda *_: None  # it is said; a traceback would say it twenty times
            raise CannotListen(listener.endpoint)


def _or_mistakes(mistakes: list[str], make: Callable[[], T]) -> T | None:
    """What ``make()`` makes, or None with its mistakes added: all are to be told at once."""
    try:
        return make()
    except ConfigError as error:
        mistakes += error.mistakes
        return None


def listeners(config: Config) -> tuple[Listener, ...]:
    """Those of the file, else the port: on every address of both families with TLS, on loopback without."""
    if config.listeners:
        return config.listeners
    port, both = config.port, _has_ipv6()
    if config.tls:  # :: takes IPv4 connections too
        addresses = [rf"tcp6:{port}:interface=\:\:" if both else f"tcp:{port}:interface=0.0.0.0"]
    else:
        addresses = [f"tcp:{port}:interface=127.0.0.1", *([rf"tcp6:{port}:interface=\:\:1"] if both else [])]
    return tuple(Listener(address) for address in addresses)


def _has_ipv6() -> bool:
    """Whether the kernel speaks IPv6 and its loopback is up, found out without opening a socket."""
    try:
        return "00000000000000000000000000000001" in Path("/proc/net/if_inet6").read_text()
    except OSError:
        return False


def _address(host: Any) -> str:
    if not hasattr(host, "port"):
        return str(getattr(host, "name", host))
    return f"[{host.host}]:{host.port}" if ":" in host.host else f"{host.host}:{host.port}"


def log_record(record: Record) -> None:
    """The one line of a request."""
    fields = msgspec.structs.asdict(record)
    logs.info("Request", fields.pop("request_id"), **fields)


def log_attempt(request_id: str, route: str, attempt: AttemptRecord) -> None:
    """One line for an attempt that failed."""
    fields = msgspec.structs.asdict(attempt)
    say = logs.error if attempt.status in KEY_REFUSED else logs.warn  # a refused key is for somebody to mend
    say(f"Step failed: {fields.pop('message')}", request_id, route=route, **fields)
