"""The objects of one load of the configuration, which a reload replaces together. Making them opens nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, TypeVar

from aigw.accounting.usage_file import missing_folder
from aigw.config.model import Config, Step
from aigw.config.proxies import by_proxy
from aigw.credentials.changing_keys import ChangingKeys
from aigw.errors import ConfigError, NotReady
from aigw.explain.explainer import Explainer
from aigw.net.interfaces import Reactor
from aigw.net.tls import Identity
from aigw.routing.cooldown import CooldownsByEndpoint
from aigw.routing.keyed_upstream import with_keys
from aigw.routing.router import Router
from aigw.secret import Secret
from aigw.server.listeners import InheritedSocket, configured_listeners
from aigw.settings.callers import EXPIRY_DAYS, expiry_warnings
from aigw.telemetry import logs
from aigw.telemetry.redaction import Redaction
from aigw.upstream.providers import Connect, Upstream

T = TypeVar("T")


class Runtime:
    """A configuration with its certificates, providers and listeners."""

    def __init__(
        self,
        config: Config,
        reactor: Reactor,
        connect: Connect,
        inherited: Sequence[InheritedSocket],
        make_keys: Callable[[Config], ChangingKeys],
    ) -> None:
        """Reads certificates, CA files and key files; may run in a thread. Raises ConfigError with every mistake."""
        mistakes: list[str] = []
        self._is_of_keys_file = False  # nothing but the keys_file was read
        self.config = config
        self.identity = _or_mistakes(mistakes, lambda: Identity(config.tls) if config.tls else None)
        if config.usage is not None:
            mistakes += missing_folder("usage.file", os.path.dirname(config.usage.file))
        if config.state is not None:
            mistakes += missing_folder("state", config.state)
        upstream = _or_mistakes(mistakes, lambda: Upstream(reactor, config.providers.values(), connect))
        listeners = _or_mistakes(mistakes, lambda: configured_listeners(config, inherited))
        if mistakes or upstream is None or listeners is None:
            raise ConfigError([config.located(each) for each in mistakes])
        self._reactor = reactor
        self.upstream = upstream
        self.router = Router(config)
        self.keys = make_keys(config)
        self.sender = with_keys(upstream, self.keys, self.router, reactor)
        self.listeners = listeners

    def with_callers_of(self, config: Config) -> Runtime:
        """The same with a configuration that differs in its callers only."""
        made = copy(self)
        made.config, made.router, made._is_of_keys_file = config, Router(config), True
        made.sender = with_keys(self.upstream, self.keys, made.router, self._reactor)
        return made

    def hide_keys(self, redaction: Redaction, before: Sequence[Secret] = ()) -> None:
        """Hide the keys from now on, and those of ``before``, which running requests may have."""
        redaction.use([*before, *self.config.secrets], any(caller.proofs for caller in self.config.callers))
        redaction.use_changing(self.keys.secrets)

    def take_over(self, old: Runtime, redaction: Redaction) -> None:
        """Take the connections and the keys of ``old`` that are unchanged, before the first request."""
        self.upstream.take_over(old.upstream)
        is_new = self.keys is not old.keys
        if is_new:
            self.keys.take_over(old.keys)
        self.hide_keys(redaction, old.keys.secrets)
        if is_new:
            self.keys.start()

    def close(self) -> None:
        """The gateway stops: abort every connection, and every command."""
        self.upstream.close()
        self.keys.close()

    def check_ready(self) -> None:
        """Raises NotReady."""
        if self.identity is None:
            return
        if self.identity.validity.days_left() <= 0:
            raise NotReady("A certificate of the gateway has expired.", code="certificate_expired")
        if self.identity.validity.days_to_wait() > 0:
            raise NotReady("A certificate of the gateway is not valid yet.", code="certificate_not_yet_valid")

    @property
    def served(self) -> dict[str, Any]:
        """What is served, for the log."""
        return {"routes": len(self.config.routes), "providers": list(self.config.providers)}

    def explainer(self, health: CooldownsByEndpoint) -> Explainer:
        """Explains requests with this configuration and the present state."""
        return Explainer(self.config, self.router, health)

    def summary(self) -> str:
        """What is served, in one line, for systemd."""
        served = f"Serving {len(self.config.routes)} routes with {len(self.config.providers)} providers"
        until = f", certificate valid for {self.identity.validity.days_left():.0f} days" if self.identity else ""
        return f"{served}{until}"

    def log_proxies(self) -> None:
        """Log which providers are called through a proxy, if any are, where they may have changed."""
        if not self._is_of_keys_file and (proxies := by_proxy(self.config.providers.values())):
            logs.info("The gateway calls providers through a proxy", proxies=proxies)

    def steps_unchanged_since(self, old: Runtime) -> list[Step]:
        """The steps whose provider is as it was in ``old``."""
        before, now = old.config.providers, self.config
        unchanged = {name for name, each in now.providers.items() if before.get(name) == each}
        return [step for route in now.routes.values() for step in route.steps if step.provider.name in unchanged]

    @property
    def warnings(self) -> list[str]:
        """Warnings, for the log."""
        found = [*(self.identity.warnings if self.identity else ()), *self.keys.warnings]
        return [*self.config.warnings, *self.config.warnings_of_keys_file, *map(self.config.located, found)]

    @property
    def expiry_warnings(self) -> list[str]:
        """Warnings of a certificate that is not valid now or ends soon, and of callers' keys that do."""
        found = [f"a certificate {problem}"] if (problem := self.expiry_problem) else []
        return [*found, *expiry_warnings(self.config.callers, time.time())]

    @property
    def expiry_problem(self) -> str | None:
        """What is wrong with the dates of a certificate, now or soon."""
        return self.identity.validity.problem(EXPIRY_DAYS) if self.identity else None

    def log_warnings(self) -> None:
        """Log the warnings about what was read."""
        for warning in self.config.warnings_of_keys_file if self._is_of_keys_file else self.warnings:
            logs.warn(warning)
        if self.identity is None and not self._is_of_keys_file:
            logs.warn("No TLS certificate is configured, so the gateway serves plain HTTP; set tls to serve HTTPS")

    def log_reload(self) -> None:
        """Log what a reload has to report: warnings, ends of certificates and keys, and proxies."""
        self.log_warnings()
        self.warn_of_expiry()
        self.log_proxies()

    def warn_of_expiry(self) -> None:
        """Log it if a certificate or a key of a caller ends soon, or is not valid now."""
        if self.identity and (problem := self.expiry_problem):
            report = logs.warn if self.identity.validity.is_good() else logs.error
            report(f"A certificate {problem}")
        for warning in expiry_warnings(self.config.callers, time.time()):
            logs.warn(f"{warning[0].upper()}{warning[1:]}")


def _or_mistakes(mistakes: list[str], make: Callable[[], T]) -> T | None:
    """The result of ``make()``, or None; its mistakes are added, so that all are reported at once."""
    try:
        return make()
    except ConfigError as error:
        mistakes += error.mistakes
        return None
