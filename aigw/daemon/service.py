"""GatewayService: the one owner of live objects. It starts, reloads and drains what the other modules describe."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import LoopingCall
from twisted.logger import ILogObserver

from aigw import __version__
from aigw.admin import resources
from aigw.admin.live_feed import LiveFeed
from aigw.admin.session import Cookies
from aigw.config.advice import ignored_proxies
from aigw.config.model import Config, Listener
from aigw.daemon.drain import Drain
from aigw.daemon.reload import Reload, clock_time
from aigw.daemon.runtime import Runtime
from aigw.daemon.systemd import Notify
from aigw.daemon.watchdog import Watchdog
from aigw.errors import CannotListen, Draining
from aigw.net.tls import CurrentIdentity
from aigw.proxy.cooldown import CooldownsByEndpoint
from aigw.proxy.exchange import Exchange, Gateway
from aigw.server import api
from aigw.server.listeners import Listeners, inherited, told
from aigw.server.resources import ApiResource
from aigw.server.site import GatewaySite
from aigw.telemetry import logs
from aigw.telemetry.redaction import Redaction
from aigw.telemetry.snapshot import Reloads, Snapshot
from aigw.telemetry.telemetry import Telemetry, log_attempt
from aigw.upstream.connector import Host, LookUp, Resolver, look_up

EXPIRY_DAYS = 14.0


class GatewayService(Service):
    """The daemon: listeners, the site behind them, the providers' connections; and what outlives a reload."""

    def __init__(
        self,
        load: Callable[[], Config],
        reactor: Any,
        observer: logs.QueuedLines | None,
        look_up: LookUp = look_up,
        notify: Notify | None = None,
        feed_every: float = math.inf,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """Reads the configuration and what it names, opens nothing; ``load`` reads it once more for each reload.

        ``observer`` becomes the log unless ``--logger`` says otherwise; ``notify`` is fed every ``feed_every`` seconds;
        ``environ`` may ask for traces, and name proxies. Raises ConfigError.
        """
        self._load = load
        self._reactor = reactor
        self._observer = observer
        self._notify = notify or Notify({})
        self._connect = partial(Host, reactor, Resolver(reactor, look_up))
        self._inherited = list(inherited(reactor))
        self._health = CooldownsByEndpoint(time.monotonic)
        self._running: set[Exchange] = set()
        self.pulse = Watchdog(reactor, self._notify.alive, feed_every)
        self._daily = LoopingCall(self._warn_of_expiry)
        self._daily.clock = reactor
        self._drain: Drain | None = None
        self._reloads = Reloads()
        self._reload = Reload(reactor, self._read, self._swap, self._notify, self._reloads)
        self._redaction = Redaction()
        logs.hand_down(self._redaction)
        if observer is not None:
            observer.redaction = self._redaction  # twistd adds it to the log only later
        self._watch = Telemetry(self._look, reactor, self._redaction, environ)
        self._admin = resources.AdminState(self._watch, LiveFeed(self._watch.status, reactor), Cookies())
        self._hurry = False
        self._ignored = ignored_proxies(environ or {})
        self._now = self._read()
        self._identity = CurrentIdentity(self._now.identity)
        self._site, self._admin_site = (GatewaySite(tree, reactor) for tree in self._trees(self._now))
        self._listeners = Listeners(reactor, self._site, self._admin_site, self._identity)
        self._listeners.check(self._now.listeners)
        self._watch.use(self.config)
        self._redaction.use(self.config.secrets)

    @property
    def config(self) -> Config:
        """What the gateway runs by."""
        return self._now.config

    @property
    def ports(self) -> list[IListeningPort]:
        """The open listeners, in the order of the configuration."""
        return self._listeners.ports

    def setServiceParent(self, parent: Any) -> None:
        """twistd takes its log observer from the application, and asks for it only after this."""
        if self._observer is not None:
            parent.setComponent(ILogObserver, self._observer)
        super().setServiceParent(parent)

    # Start

    def privilegedStartService(self) -> None:
        """Bind, while we may still be root; if that fails, say so in one line and exit with 1."""
        super().privilegedStartService()
        self._warn(self._ignored)
        self._limit_connections()
        try:
            opened = self._listeners.open_new(self._now.listeners)
        except CannotListen as error:
            logs.error(f"Cannot listen: {error}")
            # Not SystemExit: twistd would leave its pid file, and as a daemon the process that waits for word from it.
            sys.excepthook = lambda *_: None  # it is said; a traceback would say it twenty times
            raise
        self._listeners.keep(self._now.listeners, opened)

    def startService(self) -> None:
        """Everything is up."""
        super().startService()
        self._say_opened(self._listeners.open)
        logs.info("Started", version=__version__, routes=len(self.config.routes), providers=list(self.config.providers))
        self._daily.start(86400)
        self._watch.start()
        self.pulse.start()
        self._reactor.callWhenRunning(lambda: self._notify.ready(self._status()))

    # Reload

    def reload(self) -> Deferred[bool]:
        """Read everything afresh and swap all of it, or nothing; whether it was swapped."""
        if self._drain is not None:
            logs.warn("Not reloaded: the gateway is stopping")
            return succeed(False)
        return self._reload.begin()

    def _read(self) -> Runtime:
        return Runtime(self._load(), self._reactor, self._connect, self._inherited)

    def _swap(self, new: Runtime) -> bool:
        """Unless the gateway is stopping by now. Whatever it raises, it raises before anything is changed."""
        if self._drain is not None:
            return False
        old = self._now
        # Whatever can fail comes first: until all of it is made, all that is served is what was served before.
        self._listeners.check(new.listeners)
        trees = self._trees(new)
        unchanged = {name for name, each in new.config.providers.items() if old.config.providers.get(name) == each}
        steps = [
            step for route in new.config.routes.values() for step in route.steps if step.provider.name in unchanged
        ]
        identity, self._identity.identity = self._identity.identity, new.identity  # for whoever connects at once
        try:
            opened = self._listeners.open_new(new.listeners)
        except BaseException:
            self._identity.identity = identity
            raise
        self._redaction.use(new.config.secrets)
        self._watch.use(new.config)
        new.upstream.take_over(old.upstream)
        self._health.forget_all_but(steps)
        self._now = new
        self._site.resource, self._admin_site.resource = trees
        closed = self._listeners.keep(new.listeners, opened)
        if any(listener.admin for listener in closed):
            self._admin_site.abort()  # who came in there without a key is to be out
        if new.config.callers != old.config.callers:
            self._admin.viewers.ask_again()
        self._warn()
        self._limit_connections()
        self._warn_of_expiry()
        self._say_opened(opened)
        for listener in closed:
            logs.info("No longer listening", address=listener.endpoint)
        self._reloads.take()
        serials = new.identity.serials if new.identity else []
        logs.info("Reloaded", routes=len(new.config.routes), providers=list(new.config.providers), serials=serials)
        self._notify.ready(self._status(f"; reloaded at {clock_time()}"))
        return True

    # Stop

    def stopService(self) -> Deferred[Any]:
        """Stop listening, let what is under way end, close every connection."""
        seconds = self.config.drain
        if self._daily.running:
            self._daily.stop()
        logs.info("Stopping", in_flight=len(self._running), drain_s=seconds)
        self._notify.stopping(f"Stopping; {len(self._running)} requests may take {seconds:g} s to end")
        self._drain = Drain(self._site, self._running, self._reactor, seconds)
        self._admin.viewers.end()
        stopped = self._listeners.close(admin=False).addBoth(lambda _: self._drain and self._drain.begin())

        if self._hurry:
            self._drain.give_up()

        def say_so(_: object) -> None:
            self._now.upstream.close()
            self.pulse.stop()
            logs.info("Stopped")

        # To the end it can be asked whether the gateway is ready: it is not.
        stopped.addBoth(lambda _: self._listeners.close(admin=True)).addBoth(lambda _: self._admin_site.abort())
        stopped.addBoth(lambda _: self._watch.stop())
        return stopped.addBoth(say_so).addBoth(lambda _: maybeDeferred(super(GatewayService, self).stopService))

    def stop_now(self) -> None:
        """Whoever asked for a stop has asked again."""
        self._hurry = True
        if self._drain is not None:
            logs.warn("Stopping now", in_flight=len(self._running))
            self._drain.give_up()

    def say_state(self) -> None:
        """One line with what the process holds right now, for whoever looks for a leak."""
        logs.info(
            "State",
            connections=self._site.admission.open,
            in_flight=len(self._running),
            delayed_calls=len(self._reactor.getDelayedCalls()),
            open_files=len(os.listdir("/proc/self/fd")) - 1,  # less the listing's own
            lag_ms=round(self.pulse.lag * 1000),
        )

    # What is made of a generation

    def _trees(self, generation: Runtime) -> tuple[ApiResource, ApiResource]:
        """For clients, and for administrators. Making them changes nothing."""
        config = generation.config
        upstream, router, running = generation.upstream, generation.router, self._running
        gateway = Gateway(config, upstream, self._health, self._reactor, log_attempt, running=running, router=router)

        def check_ready() -> None:
            if self._drain is not None:
                raise Draining("The gateway is stopping.")
            generation.check_ready()

        root = api.tree(config, gateway, self._watch.record, self._watch.begin_trace)
        resources.show(root, config, self._admin, check_ready)
        return root, resources.tree(config, self._admin, check_ready)

    def _look(self) -> Snapshot:
        identity = self._now.identity
        return Snapshot(
            config=self.config,
            now=self._reactor.seconds(),
            stopping=self._drain is not None,
            in_flight=Counter(exchange.route for exchange in self._running),
            connections=self._site.admission.open,
            refused=self._site.admission.refused,
            refused_keys=self._site.refused_keys.total,
            lag=self.pulse.lag,
            certificate_expires=identity.validity.expires if identity else None,
            reloads=self._reloads,
            rests_for=self._health.rests_for,
            cools_down=self._health.cools_down,
            log_lines_dropped=self._observer.writer.dropped if self._observer else 0,
        )

    def _limit_connections(self) -> None:
        self._site.admission.limit(self.config.max_connections, self.config.max_per_address)
        self._site.bodies.limit = self.config.max_bodies

    def _say_opened(self, opened: Mapping[Listener, IListeningPort]) -> None:
        for listener, port in opened.items():
            message = "The admin listener is open" if listener.admin else "Listening"
            logs.info(message, address=told(port), tls=not listener.insecure)

    def _warn(self, more: Sequence[str] = ()) -> None:
        for warning in [*more, *self._now.warnings]:
            logs.warn(warning)
        if self._now.identity is None:
            logs.warn("No TLS certificate is configured: plain HTTP, on loopback only unless a listener says insecure")

    def warnings(self) -> list[str]:
        """What is no mistake, but should be known of the configuration and the certificates."""
        identity = self._now.identity
        problem = identity.validity.problem(EXPIRY_DAYS) if identity else None
        return [*self._ignored, *self._now.warnings, *([f"a certificate {problem}"] if problem else ())]

    def _warn_of_expiry(self) -> None:
        identity = self._now.identity
        if identity and (problem := identity.validity.problem(EXPIRY_DAYS)):
            report = logs.warn if identity.validity.is_good() else logs.error
            report(f"A certificate {problem}")

    def _status(self, since: str = "") -> str:
        served = f"Serving {len(self.config.routes)} routes over {len(self.config.providers)} providers"
        good = f", certificate good for {it.validity.days_left():.0f} days" if (it := self._now.identity) else ""
        return f"{served}{good}{since}"
