"""The listeners: those of the configuration, and those that are open. A reload keeps unchanged listeners open."""

from __future__ import annotations

import ipaddress
import itertools
import os
import re
import select
import socket
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.internet.tcp import Port
from twisted.python.failure import Failure

from aigw.config.model import Config, Listener
from aigw.connections.connection_limits import LimitedEndpoint
from aigw.connections.overlap import NamedEndpoint, overlapping
from aigw.errors import ConfigError
from aigw.net import tcp
from aigw.net.interfaces import Reactor
from aigw.net.tls import CurrentIdentity
from aigw.net.tls_transport import TlsServer
from aigw.server.site import GatewaySite

BACKLOG = 1024  # Twisted's 50 overflows when many clients come at once
ADMIN_MODE = 0o660  # Twisted's 666 would allow every user of the machine, and this listener needs no key


class CannotListen(Exception):
    """A listener cannot be bound: its address is in use, or not one of this machine. The daemon ends with 1."""


class InheritedSocket(NamedTuple):
    """A socket that systemd passed to this process, as the endpoint that adopts it; ``local`` means on loopback.

    ``bound`` is its address, as the endpoint that would open the same address.
    """

    endpoint: str
    local: bool
    bound: str = ""


def configured_listeners(config: Config, inherited: Sequence[InheritedSocket] = ()) -> tuple[Listener, ...]:
    """The listeners for clients, then the one for administrators, if there is one. Raises ConfigError."""
    listeners = (*_for_clients(config, inherited), *([config.admin] if config.admin else []))
    bound = {each.endpoint: each.bound for each in inherited}
    setting = "listen" if config.listeners else "systemd" if inherited else "port"
    named = [
        NamedEndpoint("admin" if each.admin else setting, bound.get(each.endpoint, each.endpoint)) for each in listeners
    ]
    if setting == "systemd":  # several on one port are open already, so they can be: an upgrade serves all instances
        named = list(dict.fromkeys(named))
    if mistakes := list(overlapping(named)):
        raise ConfigError(mistakes)
    return listeners


def _for_clients(config: Config, inherited: Sequence[InheritedSocket]) -> tuple[Listener, ...]:
    """The listeners of the file, else the sockets that systemd passed, else the port: with TLS on every address of both
    families, without TLS on loopback. A Listener of the result is ``insecure`` if it uses plain HTTP.

    Raises ConfigError if a passed socket would use plain HTTP beyond loopback.
    """
    plain = config.tls is None
    if config.listeners:
        return tuple(Listener(each.endpoint, insecure=plain or each.insecure) for each in config.listeners)
    if inherited:
        if plain and not all(each.local for each in inherited):
            right = "configure tls, or write the socket in listen with insecure: true"
            raise ConfigError([f"listen: the socket from systemd has plain HTTP and is not on loopback; {right}"])
        return tuple(Listener(each.endpoint, insecure=plain) for each in inherited)
    port, both = config.port, _has_ipv6()
    if config.tls:  # :: takes IPv4 connections too
        addresses = [rf"tcp6:{port}:interface=\:\:" if both else f"tcp:{port}:interface=0.0.0.0"]
    else:
        addresses = [f"tcp:{port}:interface=127.0.0.1", *([rf"tcp6:{port}:interface=\:\:1"] if both else [])]
    return tuple(Listener(address, insecure=config.tls is None) for address in addresses)


def _has_ipv6() -> bool:
    """Whether the kernel supports IPv6 and its loopback is up; this opens no socket."""
    try:
        return "00000000000000000000000000000001" in Path("/proc/self/net/if_inet6").read_text()
    except OSError:
        return False


def inherited_sockets(reactor: Reactor) -> Iterator[InheritedSocket]:
    """The sockets that systemd passed to this process and that are not adopted yet."""
    for index in itertools.count():
        try:
            fd = serverFromString(reactor, f"systemd:domain=INET:index={index}").fileno
        except IndexError:
            return
        with socket.socket(fileno=os.dup(fd)) as passed:
            family, name = passed.family.name.removeprefix("AF_"), passed.getsockname()
        endpoint = f"systemd:domain={family}:index={index}"
        if family == "UNIX":
            yield InheritedSocket(endpoint, True, endpoint)
        else:
            bound = (
                f"{'tcp6' if family == 'INET6' else 'tcp'}:{name[1]}:interface={name[0].replace(':', chr(92) + ':')}"
            )
            yield InheritedSocket(endpoint, ipaddress.ip_address(name[0]).is_loopback, bound)


class Listeners:
    """The open listeners, in the order of the configuration; each serves ``site`` or, for administrators,
    ``admin_site``."""

    def __init__(self, reactor: Reactor, site: GatewaySite, admin_site: GatewaySite, identity: CurrentIdentity) -> None:
        self._reactor = reactor
        self._site = site
        self._admin_site = admin_site
        self._identity = identity
        self.open: dict[Listener, IListeningPort] = {}
        self._started = False

    @property
    def ports(self) -> list[IListeningPort]:
        """The open ports."""
        return list(self.open.values())

    def check(self, listeners: Iterable[Listener]) -> None:
        """Raises ConfigError for an invalid endpoint, or a change that is impossible while the listener is open."""
        mistakes = []
        for index, listener in enumerate(listeners):
            setting = "admin" if listener.admin else f"listen[{index}]"
            try:
                self._endpoint(listener)
            except ConfigError as error:
                mistakes += [f"{setting}: {mistake}" for mistake in error.mistakes]
                continue  # its text may be a key
            path = f"{setting}: {listener.endpoint}"
            if listener in self.open:
                continue
            if msgspec.structs.replace(listener, insecure=not listener.insecure) in self.open:
                mistakes.append(
                    f"{path} cannot change between TLS and plain HTTP while it is open; restart the gateway"
                )
            elif self._started and listener.endpoint.startswith("systemd:"):
                # Its descriptor is closed or adopted, and its number may belong to another file.
                mistakes.append(f"{path} can be taken from systemd only at the start; restart the gateway")
        if mistakes:
            raise ConfigError(mistakes)

    def open_new(self, listeners: Iterable[Listener]) -> dict[Listener, IListeningPort]:
        """Open the ``listeners`` that are not open yet, all or none. Raises CannotListen."""
        opened: dict[Listener, IListeningPort] = {}
        for listener in listeners:
            if listener in self.open or listener in opened:
                continue
            try:
                opened[listener] = self._listen(listener)
            except BaseException:
                for port in opened.values():
                    port.stopListening()
                raise
        return opened

    def keep(self, listeners: Iterable[Listener], opened: dict[Listener, IListeningPort]) -> list[Listener]:
        """Keep only ``listeners`` open, of which ``opened`` are new; gives the closed ones."""
        self._started = True
        before, ports = self.open, {**self.open, **opened}
        self.open = {listener: ports[listener] for listener in listeners}
        closed = [listener for listener in before if listener not in self.open]
        for listener in closed:
            self._close(listener, before[listener])
        return closed

    def close(self, admin: bool) -> Deferred[list[object]]:
        """Close the listeners for clients, or the one for administrators; connections stay open."""
        closing = [(listener, port) for listener, port in self.open.items() if listener.admin == admin]
        self.open = {listener: port for listener, port in self.open.items() if listener.admin != admin}
        return gatherResults([self._close(*each) for each in closing], consumeErrors=True)

    def _close(self, listener: Listener, port: IListeningPort) -> Deferred[object]:
        """Close a port after accepting the clients in its backlog: the kernel would reset their connections.

        A socket that systemd holds open keeps them for the next process. One of several on one port is closed for good
        where there are to be fewer instances.
        """
        if not listener.endpoint.startswith("systemd:") or shares_port(port):
            accept_waiting(port)
            self._reactor.callLater(0, accept_waiting, port)  # Twisted closes it in the next turn, after this
        return maybeDeferred(port.stopListening)

    def _endpoint(self, listener: Listener) -> IStreamServerEndpoint:
        kind, written = listener.endpoint.partition(":")[0], listener.endpoint
        if kind in ("tcp", "tcp6") and ":backlog=" not in written:
            written += f":backlog={BACKLOG}"
        if kind == "unix" and listener.admin and ":mode=" not in written:
            written += f":mode={ADMIN_MODE:o}"
        try:
            endpoint: IStreamServerEndpoint = serverFromString(self._reactor, written)
        except (ValueError, TypeError):
            right = r"write tcp:PORT:interface=ADDRESS, tcp6:PORT:interface=\:\:, unix:PATH or systemd:..."
            raise ConfigError([f"is not a Twisted server endpoint; {right}"]) from None
        except (LookupError, AttributeError):
            raise ConfigError(
                ["systemd did not pass this socket at the start; correct the name, or add the socket to the unit"]
            ) from None
        endpoint = LimitedEndpoint(self._site_of(listener).limiter, endpoint, secure=not listener.insecure)
        return endpoint if listener.insecure else TlsServer(self._identity, endpoint, self._reactor)

    def _site_of(self, listener: Listener) -> GatewaySite:
        return self._admin_site if listener.admin else self._site

    def _by_us(self, listener: Listener) -> str:
        """Advice if the gateway itself has the port, with another address or without TLS."""
        port = re.match(r"tcp6?:(\d+)", listener.endpoint)
        ours = port and int(port[1]) in [getattr(each.getHost(), "port", None) for each in self.ports]
        return " The gateway itself listens on this port; restart the gateway to change its address" if ours else ""

    def _listen(self, listener: Listener) -> IListeningPort:
        results: list[IListeningPort | Failure] = []
        try:
            self._endpoint(listener).listen(self._site_of(listener)).addBoth(results.append)
        except ConfigError as error:
            raise CannotListen(f"{listener.endpoint}: {error}") from None
        if isinstance(results[0], Failure):
            raise CannotListen(f"{listener.endpoint}: {results[0].value}{self._by_us(listener)}")
        port: IListeningPort = results[0]
        tcp.find_lost_peer(port, tcp.CLIENT_SECONDS)
        return port


def shares_port(port: IListeningPort) -> bool:
    """Whether the kernel spreads connections over this and other sockets on one port (``ReusePort=`` of systemd)."""
    if not (isinstance(port, Port) and port.connected):
        return False
    return port.socket.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 1


def accept_waiting(port: IListeningPort) -> None:
    """Take all connections that wait in the backlog of ``port``."""
    if not (isinstance(port, Port) and port.connected):
        return
    waiting = select.poll()
    waiting.register(port, select.POLLIN)
    for _ in range(BACKLOG):  # each call accepts one or more; the loop ends even if clients connect faster
        if not waiting.poll(0):
            return
        port.doRead()


def address_of(port: IListeningPort) -> str:
    """The address of a port, for messages."""
    host = port.getHost()
    if isinstance(host, IPv4Address | IPv6Address):
        return f"[{host.host}]:{host.port}" if ":" in host.host else f"{host.host}:{host.port}"
    return os.fsdecode(host.name) if isinstance(host, UNIXAddress) and host.name else str(host)
