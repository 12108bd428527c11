"""All that calls have in common while one configuration holds: a call goes to the exchange of its route."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from aigw.config.model import Config
from aigw.protocols.endpoint import Call
from aigw.protocols.endpoints import ENDPOINTS
from aigw.proxy.exchange import Exchange
from aigw.proxy.held import Running
from aigw.proxy.responder import Responder
from aigw.proxy.sent import Sent
from aigw.proxy.stored_responses import StoredResponses
from aigw.routing.balance import Balance
from aigw.routing.cooldown import CooldownsByEndpoint
from aigw.routing.keyed_upstream import Sender
from aigw.routing.router import Router
from aigw.telemetry.record import AttemptSink, RecordBuilder


class Gateway:
    """Serves calls with one configuration. ``note_failure`` is called with each failed attempt."""

    def __init__(
        self,
        config: Config,
        upstream: Sender,
        health: CooldownsByEndpoint,
        clock: IReactorTime,
        note_failure: AttemptSink,
        random: Callable[[], float] = random.random,
        running: Running | None = None,
        router: Router | None = None,
    ) -> None:
        """``running`` has each exchange that has not ended, of any configuration. ``router`` is that of ``config``."""
        self.router = router or Router(config)
        self.upstream = upstream
        self.cooldowns = {path: health.at(path) for path in ENDPOINTS}
        self.random = random
        self.clock = clock
        self.note_failure = note_failure
        self.running = Running(config.max_held) if running is None else running
        self.finishing = health.finishing
        self.budgets = health.budgets
        self.balance = Balance(config, self.router.key_names, self.cooldowns, health.pending, random)
        self.stored = StoredResponses(config, upstream, self.router, self.cooldowns, health.response_ids, clock)

    def serve(self, call: Call, client: Responder, record: RecordBuilder) -> Deferred[None]:
        """Answer ``call`` to ``client``. Fails with GatewayError if no byte was sent, CancelledError if cancelled."""
        record.stream, record.requested_model = call.stream, call.model
        if call.endpoint.state_in is not None and (response_id := call.endpoint.state_in(call)):
            exchange = partial(Exchange, self, call=call, client=client, record=record)
            return self.stored.serve(call, response_id, record, lambda route: exchange(route).run())
        router, mine = self.router, call.caller.routes if call.caller is not None else ()
        route = router.visible[mine][call.model] if call.model else router.default_for(call.endpoint.path, mine)
        if self.router.parts:
            record.route = route.name
            route = self.router.part(route, call.endpoint.path, record.skip)
        return Exchange(self, route, call, client, record).run()

    def resume(self, sent: Sent, client: Responder, record: RecordBuilder) -> Deferred[None]:
        """See ``serve``, for a call whose first attempt was sent on the straight path."""
        record.stream, record.requested_model = sent.call.stream, sent.call.model
        sent.exchange = exchange = Exchange(self, sent.plan.route, sent.call, client, record)
        return exchange.resume(sent)
