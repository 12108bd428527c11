"""The connection to the store, by txredisapi: it is opened again by itself, after pauses that grow."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Factory
from twisted.internet.ssl import optionsForClientTLS
from twisted.python.failure import Failure

from aigw.key_forms import shortened
from aigw.settings.store import StoreAddress
from aigw.store.scripts import ADMIT, REFUSE, RENEW, SETTLE, USAGE

if TYPE_CHECKING:
    from aigw.store.store_protocol import StoreProtocol

REPLY_SECONDS = 5.0  # without an answer the connection is closed, and opened again
CONNECT_SECONDS = 5.0  # with TLS and the password
SENTINEL_SECONDS = 1.0  # one that does not answer in that time is passed over
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
LONGEST_REASON = 200  # characters

Place = tuple[str, int]


class StoreError(Exception):
    """The store cannot be used; the text has the reason."""


class Link(Protocol):
    """Runs scripts in a store."""

    def start(self) -> None:
        """Begin to connect."""

    def run(self, script: str, keys: Sequence[str], args: Sequence[str]) -> Deferred[str]:
        """The one line that the script answers. Fails at once where there is no connection."""

    def close(self) -> None:
        """Close the connection, and open none."""


Connect = Callable[[StoreAddress], Link]


class RedisLink:
    """A Link to a Valkey or Redis, with one connection: its scripts run one after the other anyway.

    It never logs: what a server answers, and each attempt, are for the caller of ``run``, as the reason of its failure.
    """

    def __init__(self, store: StoreAddress) -> None:
        self._store = store
        self._protocol: StoreProtocol | None = None
        self._opening: Deferred[Any] | None = None
        self._timer: IDelayedCall | None = None
        self._reactor: Any = None
        self._pause = FIRST_PAUSE
        self._reason = "there is no connection"

    def start(self) -> None:
        """See Link."""
        from twisted.internet import reactor

        self._reactor = reactor
        self._open()

    def run(self, script: str, keys: Sequence[str], args: Sequence[str]) -> Deferred[str]:
        """See Link. A script is sent whole once, then by its hash."""
        protocol = self._protocol
        if protocol is None:
            return fail(StoreError(self._reason))

        def failed(failure: Failure) -> Failure:
            if failure.getErrorMessage().startswith("READONLY"):  # another server is the primary one by now
                protocol.end("it takes no writes")
            return failure

        return maybeDeferred(protocol.eval, script, keys, args).addCallbacks(_as_text, failed)

    def close(self) -> None:
        """See Link."""
        self._reactor, protocol, opening = None, self._protocol, self._opening
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if opening is not None:
            opening.cancel()
        if protocol is not None:
            self._protocol = None
            protocol.transport.loseConnection()

    # To connect

    def _open(self) -> None:
        self._timer = None
        self._opening = Deferred.fromCoroutine(self._opened()).addCallbacks(self._use, self._failed)

    async def _opened(self) -> StoreProtocol:
        store, commands = self._store, [["PING"]]  # with TLS a connection is one when the server has answered
        if store.password is not None:
            commands.insert(0, ["AUTH", *([store.user] if store.user else []), store.password.reveal()])
        if store.database:
            commands.append(["SELECT", str(store.database)])
        if store.sentinel is None:
            return await self._connected(store.hosts[0], commands, CONNECT_SECONDS)
        return await self._connected(await self._primary(store.sentinel), [*commands, ["ROLE"]], CONNECT_SECONDS)

    def _use(self, protocol: StoreProtocol) -> None:
        self._opening, self._protocol, self._pause = None, protocol, FIRST_PAUSE
        protocol.on_lost = self._lost
        for script in (ADMIT, SETTLE, RENEW, USAGE, REFUSE):  # many requests at once shall not send them many times
            loaded = protocol.script_load(script).addCallback(protocol.script_hashes.add)
            loaded.addErrback(lambda _: None)  # a user that may not do that: each script is sent with its first call

    def _lost(self, reason: str) -> None:
        self._protocol = None
        self._again(reason)

    def _failed(self, failure: Failure) -> None:
        self._opening = None
        self._again(failure.getErrorMessage() or type(failure.value).__name__)

    def _again(self, reason: str) -> None:
        if self._reactor is None:  # closed
            return
        self._reason = shortened(f"there is no connection: {reason}", LONGEST_REASON)
        pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        self._timer = self._reactor.callLater(pause * random.uniform(0.8, 1.2), self._open)

    def _connected(self, place: Place, greeting: list[list[str]], seconds: float) -> Deferred[StoreProtocol]:
        from aigw.store.store_protocol import StoreProtocol

        factory = Factory.forProtocol(lambda: StoreProtocol(greeting, REPLY_SECONDS))
        factory.noisy = False
        host, port = place
        endpoint: Any = HostnameEndpoint(self._reactor, host, port, timeout=seconds)
        if self._store.secure:
            endpoint = wrapClientTLS(optionsForClientTLS(host), endpoint)
        connecting: Deferred[StoreProtocol] = endpoint.connect(factory)
        return connecting.addCallback(lambda protocol: protocol.ready).addTimeout(seconds, self._reactor)

    async def _primary(self, name: str) -> Place:
        """Where the store is, by the first sentinel that knows it. Raises StoreError."""
        reasons = []
        for place in self._store.hosts:
            try:
                sentinel = await self._connected(place, [], SENTINEL_SECONDS)
            except CancelledError:
                raise
            except Exception as error:  # of the network, of whatever kind
                reasons.append(str(error) or type(error).__name__)
                continue
            try:
                command = "SENTINEL", "GET-MASTER-ADDR-BY-NAME", name
                host, port = await sentinel.execute_command(*command).addTimeout(SENTINEL_SECONDS, self._reactor)
                return str(host), int(port)
            except CancelledError:
                raise
            except Exception as error:  # it is none, or does not know the name
                reasons.append(str(error) or type(error).__name__)
            finally:
                sentinel.end("it was asked")
        raise StoreError(f"no sentinel names the primary server of {name}: {reasons[-1]}")


def _as_text(answer: object) -> str:
    return answer.decode() if isinstance(answer, bytes) else str(answer)
