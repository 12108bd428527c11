"""GatewayService: it owns the objects of the running gateway, and starts, reloads and drains them."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import LoopingCall

from aigw import __version__
from aigw.access.admission import Admission
from aigw.accounting.accounts import Accounts
from aigw.admin import resources
from aigw.admin.live_feed import feed_of
from aigw.admin.session import Cookies
from aigw.config import loader
from aigw.config.model import Config, Listener
from aigw.credentials.changing_keys import ChangingKeys
from aigw.daemon.application import Parent, ProcessReactor, use_observer
from aigw.daemon.drain import Drain
from aigw.daemon.keys_watch import KeysWatch
from aigw.daemon.reload import Reload, clock_time
from aigw.daemon.runtime import Runtime
from aigw.daemon.systemd import Notify
from aigw.daemon.watchdog import Watchdog
from aigw.errors import Draining
from aigw.net.tls import CurrentIdentity
from aigw.proxy.gateway import Gateway
from aigw.proxy.held import Running
from aigw.routing.cooldown import CooldownsByEndpoint
from aigw.secret import Secret
from aigw.server import api
from aigw.server.listeners import CannotListen, Listeners, address_of, inherited_sockets
from aigw.server.resources import ApiResource
from aigw.server.site import GatewaySite
from aigw.store.shared_store import SharedStore
from aigw.telemetry import logs
from aigw.telemetry.redaction import Redaction
from aigw.telemetry.snapshot import Reloads, Snapshot
from aigw.telemetry.telemetry import Telemetry, log_attempt
from aigw.upstream.connector import Host, LookUp, Resolver, look_up


class GatewayService(Service):
    """The daemon: listeners, sites, connections to providers, and the state that a reload keeps."""

    def __init__(
        self,
        load: Callable[[], Config],
        reactor: ProcessReactor,
        observer: logs.QueuedLines | None,
        look_up: LookUp = look_up,
        notify: Notify | None = None,
        notify_every: float = math.inf,
        environ: Mapping[str, str] | None = None,
        load_callers: Callable[[Config], Config] | None = None,
    ) -> None:
        """Reads the configuration and its files, and opens nothing; each reload calls ``load`` again.

        ``load_callers`` gives a configuration with its keys_file read afresh. ``observer`` is the log unless
        ``--logger`` names another; ``environ`` is for traces. Raises ConfigError.
        """
        self._load = load
        self._load_callers = load_callers or partial(loader.with_callers, environ=environ or {})
        self._reads_all = True  # the next time
        self._reactor = reactor
        self._observer = observer
        self._notify = notify or Notify({})
        self._connect = partial(Host, reactor, Resolver(reactor, look_up))
        self._inherited = list(inherited_sockets(reactor))
        self._cooldowns = CooldownsByEndpoint(time.monotonic)
        self._running = Running()
        self._admission = Admission(SharedStore(reactor), reactor)
        self.watchdog = Watchdog(reactor, self._notify.alive, notify_every)
        self._daily = LoopingCall(lambda: self._runtime.warn_of_expiry())
        self._daily.clock = reactor
        self._drain: Drain | None = None
        self._reloads = Reloads()
        self._reload = Reload(reactor, self._read, self._swap, self._notify, self._reloads)
        self._redaction = Redaction()
        logs.use_redaction(self._redaction)
        if observer is not None:
            observer.redaction = self._redaction  # twistd adds it to the log only later
        accounts = Accounts(reactor, store=self._admission)
        self._telemetry = Telemetry(self._snapshot, reactor, self._redaction, environ, accounts)
        self._admin = resources.AdminState(self._telemetry, feed_of(self._telemetry, reactor), Cookies())
        self._is_urgent = False
        self._make_keys = partial(ChangingKeys, reactor, note=self._hide, environ=environ)
        self._runtime = self._read()
        self._key_changes = KeysWatch(reactor, lambda: self.config.keys_file, self._reload.begin)
        self._identity = CurrentIdentity(self._runtime.identity)
        sites = [GatewaySite(tree, reactor, self._redaction) for tree in self._trees(self._runtime)]
        self._site, self._admin_site = sites
        self._listeners = Listeners(reactor, self._site, self._admin_site, self._identity)
        self._listeners.check(self._runtime.listeners)
        self._telemetry.use(self.config)
        self._runtime.hide_keys(self._redaction)

    @property
    def config(self) -> Config:
        """The present configuration."""
        return self._runtime.config

    @property
    def ports(self) -> list[IListeningPort]:
        """The open listeners, in the order of the configuration."""
        return self._listeners.ports

    def setServiceParent(self, parent: Parent) -> None:
        """Set the log observer of the application, which twistd reads after this."""
        use_observer(parent, self._observer)
        super().setServiceParent(parent)

    # Start

    def privilegedStartService(self) -> None:
        """Open the listeners, while the process may still be root; a failure is one log line and exit status 1."""
        super().privilegedStartService()
        self._runtime.log_warnings()
        self._limit()
        try:
            opened = self._listeners.open_new(self._runtime.listeners)
        except CannotListen as error:
            logs.error(f"The gateway cannot open a listener: {error}")
            # Not SystemExit: twistd would keep its pid file, and as a daemon the process that waits for the result.
            sys.excepthook = lambda *_: None  # the log has the reason; a traceback would repeat it
            raise
        self._listeners.keep(self._runtime.listeners, opened)

    def startService(self) -> None:
        """Start the timers, and notify systemd."""
        super().startService()
        self._log_opened(self._listeners.open)
        logs.info("The gateway has started", version=__version__, **self._runtime.served)
        self._runtime.log_proxies()
        self._daily.start(86400)
        self._key_changes.start()
        self._telemetry.start()
        self.watchdog.start()
        self._reactor.callWhenRunning(self._runtime.keys.start)
        self._reactor.callWhenRunning(lambda: self._notify.ready(self._runtime.summary()))

    # Reload

    def reload(self) -> Deferred[bool]:
        """Read everything again and replace all of it, or nothing; gives whether it was replaced."""
        if self._drain is not None:
            logs.warn("The gateway did not reload its configuration: it is stopping")
            return succeed(False)
        self._reads_all = True
        return self._reload.begin()

    def _read(self) -> Runtime:
        reads_all, self._reads_all = self._reads_all, False
        if not reads_all:
            return self._runtime.with_callers_of(self._load_callers(self.config))
        return Runtime(self._load(), self._reactor, self._connect, self._inherited, self._make_keys)

    def _hide(self, key: Secret) -> None:
        """A key has changed: hide the new one before its first use."""
        self._redaction.use_changing([*self._runtime.keys.secrets, key])

    def _swap(self, new: Runtime) -> bool:
        """Replace the configuration, unless the gateway is stopping. An exception leaves everything unchanged."""
        if self._drain is not None:
            return False
        old = self._runtime
        self._listeners.check(new.listeners)  # what can fail comes first; until then the old configuration is served
        trees = self._trees(new)
        unchanged = new.steps_unchanged_since(old)
        identity, self._identity.identity = self._identity.identity, new.identity  # for clients that connect at once
        try:
            opened = self._listeners.open_new(new.listeners)
        except BaseException:
            self._identity.identity = identity
            raise
        new.take_over(old, self._redaction)
        self._telemetry.use(new.config)
        self._cooldowns.forget_all_but(unchanged)
        self._runtime = new
        self._site.resource, self._admin_site.resource = trees
        closed = self._listeners.keep(new.listeners, opened)
        if any(listener.admin for listener in closed):
            self._admin_site.abort()  # its clients connected without a key
        if new.config.admins != old.config.admins:
            self._admin.viewers.ask_again()
        self._limit()
        new.log_reload()
        self._log_opened(opened)
        for listener in closed:
            logs.info("The gateway has closed a listener", address=listener.endpoint)
        self._reloads.take()
        serials = new.identity.serials if new.identity else []
        logs.info("The gateway has reloaded", **new.served, serials=serials)
        self._notify.ready(f"{new.summary()}; reloaded at {clock_time()}")
        return True

    # Stop

    def stopService(self) -> Deferred[object]:
        """Close the listeners, wait for running requests, then close every connection."""
        self._key_changes.stop()
        if self._daily.running:
            self._daily.stop()
        logs.info("The gateway is stopping", in_flight=len(self._running), drain_s=(seconds := self.config.drain))
        self._notify.stopping(f"Stopping; {len(self._running)} requests may take {seconds:g} s to end")
        self._drain = Drain(self._site, self._running, self._reactor, seconds)
        shown = self._admin.viewers.end()
        stopped = self._listeners.close(admin=False).addBoth(lambda _: self._drain and self._drain.begin())
        if self._is_urgent:
            self._drain.give_up()

        def finish(_: object) -> None:
            self._runtime.close()
            self.watchdog.stop()
            logs.info("The gateway has stopped")

        # /ready answers until the end that the gateway is not ready.
        stopped.addBoth(lambda _: shown).addBoth(lambda _: self._listeners.close(admin=True))
        stopped.addBoth(lambda _: self._admin_site.abort()).addBoth(lambda _: self._telemetry.stop())
        return stopped.addBoth(finish).addBoth(lambda _: maybeDeferred(super(GatewayService, self).stopService))

    def stop_now(self) -> None:
        """A second stop signal: close every connection now."""
        self._is_urgent = True
        if self._drain is not None:
            logs.warn("The gateway stops at once and ends running requests", in_flight=len(self._running))
            self._drain.give_up()

    def log_state(self) -> None:
        """Log the present connections, timers and files of the process, to find a leak."""
        logs.info(
            "The gateway reports its state",
            connections=self._site.limiter.open,
            in_flight=len(self._running),
            delayed_calls=len(self._reactor.getDelayedCalls()),
            open_files=len(os.listdir("/proc/self/fd")) - 1,  # without the one of listdir
            lag_ms=round(self.watchdog.lag * 1000),
        )

    # What is made from a runtime

    def _trees(self, runtime: Runtime) -> tuple[ApiResource, ApiResource]:
        """The resources for clients, and for administrators. Making them changes no state."""
        config = runtime.config
        state = (self._cooldowns, self._reactor, log_attempt)
        gateway = Gateway(config, runtime.sender, *state, running=self._running, router=runtime.router)

        def check_ready() -> None:
            if self._drain is not None:
                raise Draining("The gateway is stopping.")
            runtime.check_ready()

        seen, admission = self._telemetry, self._admission
        root = api.tree(config, gateway, seen.record, seen.begin_trace, admission, seen.pricing(config), seen.counters)
        resources.add_resources(root, config, self._admin, check_ready)
        return root, resources.tree(config, self._admin, check_ready, runtime.explainer(self._cooldowns))

    def _snapshot(self) -> Snapshot:
        identity, store = self._runtime.identity, self._admission.store
        return Snapshot(
            config=self.config,
            now=self._reactor.seconds(),
            stopping=self._drain is not None,
            in_flight=Counter(exchange.route for exchange in self._running),
            connections=self._site.limiter.open,
            refused=self._site.limiter.refused,
            refused_keys=self._site.refused_keys.total,
            lag=self.watchdog.lag,
            certificate_expires=identity.validity.expires if identity else None,
            reloads=self._reloads,
            cooldown_left=self._cooldowns.cooldown_left,
            cools_down=self._cooldowns.cools_down,
            failed_at=self._cooldowns.failed_at,
            held=self._running.held,
            limits_of=store.known_usage_of,
            store_failures=store.failures,
            log_lines_dropped=self._observer.writer.dropped if self._observer else 0,
        )

    def _limit(self) -> None:
        self._site.limit(self.config)
        self._running.held.limit = self.config.max_held

    def _log_opened(self, opened: Mapping[Listener, IListeningPort]) -> None:
        for listener, port in opened.items():
            message = f"The gateway has opened {'the admin listener' if listener.admin else 'a listener'}"
            logs.info(message, address=address_of(port), tls=not listener.insecure)

    def warnings(self) -> list[str]:
        """Warnings about the configuration and the certificates."""
        return [*self._runtime.warnings, *self._runtime.expiry_warnings]
