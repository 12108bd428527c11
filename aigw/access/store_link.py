"""The connection to the store, by txredisapi: it is opened again by itself, after pauses that grow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred, fail
from twisted.internet.ssl import optionsForClientTLS

from aigw.settings.store import StoreAddress

REPLY_SECONDS = 5.0  # without an answer the connection is closed, and opened again
CONNECT_SECONDS = 5.0
DISCOVERY_SECONDS = 1.0  # sentinels, which answer at once


class StoreError(Exception):
    """The store cannot be used; the text has the reason."""


class Link(Protocol):
    """Runs scripts in a store."""

    def start(self) -> None:
        """Begin to connect."""

    def revive(self) -> None:
        """Begin anew, if the client library has given up: by a wrong password, or a server that was starting."""

    def run(self, script: str, keys: Sequence[str], args: Sequence[str]) -> Deferred[str]:
        """The one line that the script answers. Fails at once where there is no connection."""

    def close(self) -> None:
        """Close the connection, and open none."""


Connect = Callable[[StoreAddress], Link]


class RedisLink:
    """A Link to a Valkey or Redis, with one connection: its scripts run one after the other anyway."""

    def __init__(self, store: StoreAddress) -> None:
        self._store = store
        self._handler: Any = None
        self._sentinel: Any = None

    def start(self) -> None:
        """See Link."""
        import txredisapi  # it imports the reactor

        store = self._store
        own = {
            "dbid": store.database or None,
            "charset": "utf-8",
            "password": store.password.reveal() if store.password is not None else None,
            "username": store.user,
            "replyTimeout": REPLY_SECONDS,
            "convertNumbers": False,
        }
        if store.sentinel is not None:
            self._sentinel = txredisapi.Sentinel(list(store.hosts), replyTimeout=REPLY_SECONDS)
            self._sentinel.discovery_timeout = DISCOVERY_SECONDS
            self._handler = self._sentinel.master_for(store.sentinel, **own)
        else:
            host, port = store.hosts[0]
            tls = optionsForClientTLS(host) if store.secure else None
            connect = {"connectTimeout": CONNECT_SECONDS, "ssl_context_factory": tls}
            self._handler = txredisapi.lazyConnection(host, port, **own, **connect)
        self._handler._factory.deferred.addErrback(lambda _: None)  # of a wrong password, which it logs too

    def revive(self) -> None:
        """See Link."""
        if self._handler is not None and self._handler._factory.stopped:
            self.close()
            self.start()

    def run(self, script: str, keys: Sequence[str], args: Sequence[str]) -> Deferred[str]:
        """See Link. A script is sent whole once, then by its hash."""
        pool = self._handler._factory.pool if self._handler is not None else ()
        if not pool or not pool[0].connected:
            return fail(StoreError("there is no connection"))
        answered: Deferred[Any] = pool[0].eval(script, keys, args)
        return answered.addCallback(_as_text)

    def close(self) -> None:
        """See Link."""
        for each in (self._handler, self._sentinel):
            if each is not None:
                each.disconnect().addErrback(lambda _: None)
        self._handler = self._sentinel = None


def _as_text(answer: object) -> str:
    return answer.decode() if isinstance(answer, bytes) else str(answer)
