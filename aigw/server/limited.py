"""Calls of callers with limits, between the resource and the gateway. The calls of other callers do not come here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.python.failure import Failure

from aigw.access.admission import Admission, Store
from aigw.access.errors import as_upstream, for_client
from aigw.access.estimates import Estimate, estimate, used
from aigw.access.ledger import Claim
from aigw.accounting.estimated import complete
from aigw.config.model import Config
from aigw.errors import GatewayError, RequestError
from aigw.net.headers import Header
from aigw.protocols.endpoint import Call
from aigw.proxy.gateway import Gateway
from aigw.server.cors import CrossOrigin
from aigw.server.resources import ApiResource
from aigw.settings.callers import PICO, Caller
from aigw.telemetry.pricing import Pricing
from aigw.telemetry.record import RecordBuilder

if TYPE_CHECKING:
    from aigw.server.request import Request

_NOTHING = Estimate(0, 0, False)


class LimitedCall:
    """A call with what it has claimed: a Responder in front of the request.

    The events of a stream are counted: where the provider reports no usage, only they show how long the answer was.
    """

    def __init__(self, claim: Claim, about: Estimate, call: Call, client: Request) -> None:
        self.claim = claim
        self.about = about
        self.path = call.endpoint.path
        self.events = 0
        self._begin = client.begin
        self._write = client.write
        if not call.stream:
            self.write = client.write  # type: ignore[method-assign]  # there are no events
        self.end = client.end
        self.cut = client.cut
        self.header = client.header
        self.release_body = client.release_body
        self.registerProducer = client.registerProducer
        self.unregisterProducer = client.unregisterProducer

    def begin(self, status: int, headers: list[Header], length: int | None, is_early: bool = False) -> None:
        """See Responder. The limits of the provider's key are not those of the caller."""
        for name, _ in headers:
            if name[:12] == b"x-ratelimit-":
                headers = as_upstream(headers)
                break
        self._begin(status, headers, length, is_early)

    def write(self, data: bytes) -> None:
        """See Responder."""
        self.events += data.count(b"data:")
        self._write(data)


class Limited:
    """Admits calls, and settles them. ``pricing`` is there if accounts are kept, as with a budget in USD."""

    def __init__(
        self,
        gateway: Gateway,
        admission: Admission,
        pricing: Pricing | None = None,
    ) -> None:
        self._gateway = gateway
        self._admission = admission
        self._store = admission.store
        self._pricing = pricing

    def serve(self, call: Call, request: Request, record: RecordBuilder) -> Deferred[None]:
        """Serve the call when it is admitted. Raises RequestError, or fails with it."""
        caller = request.caller
        assert caller is not None
        about = estimate(call, caller.assume) if call.endpoint.spends == "tokens" else _NOTHING
        money = self._money_for(call, caller, about) if self._pricing is not None else 0
        claim = Claim(caller.accounts, about.prompt + about.output, money)
        limited = request.limited = LimitedCall(claim, about, call, request)
        reached = self._store.admit(claim)
        if reached is not None:
            agent = request.header(b"user-agent")
            try:
                admitted = self._admission.decide(reached, claim, caller.wait)
            except RequestError as error:
                raise for_client(error, agent) from None
            if admitted is not None:
                return admitted.addCallbacks(
                    lambda _: self._gateway.serve(call, limited, record), _for_client, errbackArgs=(agent,)
                )
        return self._gateway.serve(call, limited, record)

    def end(self, limited: LimitedCall, record: RecordBuilder) -> None:
        """The request has ended, in whatever way: charge what it used, and free the rest."""
        claim = limited.claim
        if not claim.admitted:
            return
        tokens = money = 0
        if limited.about is not _NOTHING:
            tokens, record.estimated = used(record, limited.about, limited.events, limited.path)
            if record.pricing is not None:
                tokens, cost = complete(record, tokens, limited.about.prompt)
                money = round(cost * PICO)
        settled = self._store.settle(claim, tokens, money)
        if self._admission.queues:
            self._admission.settled(settled, claim)

    def _money_for(self, call: Call, caller: Caller, about: Estimate) -> int:
        """What is reserved of budgets in USD: the cost of the estimate at the dearest step of the route."""
        if self._pricing is None or about is _NOTHING:
            return 0
        if not any([budget.in_usd for account in caller.accounts for budget in account.budgets]):
            return 0
        router = self._gateway.router
        try:
            visible = router.visible[caller.routes]
            route = visible[call.model] if call.model else router.default_for(call.endpoint.path, caller.routes)
        except GatewayError:  # which the client gets when the request is served
            return 0
        return round(self._pricing.dearest(route.steps, {"input": about.prompt, "output": about.output}) * PICO)

    def count(self, request: Request) -> None:
        """Count a request that was refused before it was a call."""
        if request.caller is not None:
            self._store.count_request(Claim(request.caller.accounts))


def _for_client(failure: Failure, user_agent: bytes | None) -> Failure:
    error = failure.value
    return Failure(for_client(error, user_agent)) if isinstance(error, RequestError) else failure


class UsageResource(ApiResource):
    """``GET /v1/usage``: what the caller has used, and what it has left of its limits and of those of its group."""

    def __init__(self, config: Config, store: Store, cross_origin: CrossOrigin | None = None) -> None:
        super().__init__(config, cross_origin)
        self._store = store

    def render(self, request: Request) -> bytes | Deferred[None]:
        """Of the caller alone."""
        caller = request.caller
        assert caller is not None
        name = caller.name
        found = [self._store.usage_of(account) for account in caller.accounts]
        if not any([isinstance(each, Deferred) for each in found]):
            return _shown(name, found)
        waits = gatherResults([each if isinstance(each, Deferred) else succeed(each) for each in found])
        return waits.addCallback(lambda accounts: request.answer(200, _shown(name, accounts)))


def _shown(name: str, accounts: Sequence[object]) -> bytes:
    return msgspec.json.encode({"object": "usage", "caller": name, "data": accounts})
