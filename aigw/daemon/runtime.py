"""What one reading of the configuration makes: all that a reload replaces, in one go. Making it opens nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from aigw.config.model import Config
from aigw.errors import ConfigError, NotReady
from aigw.net.tls import Identity
from aigw.proxy.router import Router
from aigw.server.listeners import Inherited, wanted
from aigw.upstream.providers import Connect, Upstream

T = TypeVar("T")


class Runtime:
    """A configuration with its certificates loaded and its providers made ready."""

    def __init__(self, config: Config, reactor: Any, connect: Connect, inherited: Sequence[Inherited]) -> None:
        """Reads certificates and CA files; may run in a thread. Raises ConfigError with every mistake."""
        mistakes: list[str] = []
        self.config = config
        self.identity = _or_mistakes(mistakes, lambda: Identity(config.tls) if config.tls else None)
        upstream = _or_mistakes(mistakes, lambda: Upstream(reactor, config.providers.values(), connect))
        listeners = _or_mistakes(mistakes, lambda: wanted(config, inherited))
        if mistakes or upstream is None or listeners is None:
            raise ConfigError([config.located(each) for each in mistakes])
        self.upstream = upstream
        self.router = Router(config)
        self.listeners = listeners

    def check_ready(self) -> None:
        """Raises NotReady."""
        if self.identity is None:
            return
        if self.identity.validity.days_left() <= 0:
            raise NotReady("A certificate of the gateway has expired.", code="certificate_expired")
        if self.identity.validity.days_to_wait() > 0:
            raise NotReady("A certificate of the gateway is not valid yet.", code="certificate_not_yet_valid")

    @property
    def warnings(self) -> list[str]:
        """What is not a mistake, but should be known."""
        return [*self.config.warnings, *map(self.config.located, self.identity.warnings if self.identity else ())]


def _or_mistakes(mistakes: list[str], make: Callable[[], T]) -> T | None:
    """What ``make()`` makes, or None with its mistakes added: all are to be told at once."""
    try:
        return make()
    except ConfigError as error:
        mistakes += error.mistakes
        return None
