"""Calls of callers with limits, between the resource and the gateway. The calls of other callers do not come here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.python.failure import Failure

from aigw.access.admission import Admission, Reached, Store
from aigw.access.claim import Claim
from aigw.access.errors import for_client
from aigw.access.estimates import BYTES_OF_A_TOKEN, Estimated, limit_in, used
from aigw.accounting.estimated import NoPrices, complete
from aigw.config.model import Config
from aigw.errors import GatewayError, RequestError
from aigw.protocols.charges import charged_tokens, common_counts
from aigw.protocols.endpoint import Call, Endpoint
from aigw.proxy.gateway import Gateway
from aigw.server.cors import CrossOrigin
from aigw.server.resources import ApiResource
from aigw.settings.callers import PICO, Caller
from aigw.telemetry.caller_counters import CallerCounters
from aigw.telemetry.counters import Counters
from aigw.telemetry.pricing import Charge, Pricing
from aigw.telemetry.record import RecordBuilder

if TYPE_CHECKING:
    from aigw.server.request import Request

_NO_PRICES = NoPrices()
_ROUNDED_UP = BYTES_OF_A_TOKEN - 1


class LimitedClaim(Claim):
    """The claim of a call, with what was estimated of it, see Estimated.

    ``limit`` is that of the answer in the call, 0 without one; then ``assume`` is taken for it. ``path`` is of its
    endpoint, which ``spends`` tokens or not. ``events`` are those that its client was sent. ``reached`` is what the
    store has answered: None if the call is admitted.
    """

    __slots__ = ("assume", "events", "limit", "path", "reached", "spends")

    def __init__(self, caller: Caller, endpoint: Endpoint) -> None:
        Claim.__init__(self, caller.accounts)  # faster than super()
        self.path = endpoint.path
        self.spends = endpoint.spends == "tokens"
        self.assume = caller.assume if self.spends else 0
        self.limit = self.events = 0
        self.reached: Reached = None

    @property
    def output(self) -> int:
        """See Estimated."""
        return self.limit or self.assume

    @property
    def prompt(self) -> int:
        """See Estimated."""
        return self.tokens - self.output

    @property
    def is_limit(self) -> bool:
        """See Estimated."""
        return self.limit > 0


Admit = Callable[[Call, Caller, "LimitedClaim | None"], LimitedClaim]
"""Asks the store for what a call needs; by the claim of an earlier call of the same caller and endpoint, if there is
one that is settled and that nothing else refers to."""


class CountedStream:
    """A Responder in front of the request of a stream: where no usage is reported, only the events show its length."""

    def __init__(self, claim: LimitedClaim, client: Request) -> None:
        self.claim = claim
        self._write = client.write
        self.begin = client.begin
        self.end = client.end
        self.cut = client.cut
        self.header = client.header
        self.release_body = client.release_body
        self.registerProducer = client.registerProducer
        self.unregisterProducer = client.unregisterProducer

    def write(self, data: bytes, chunk: bytes = b"") -> None:
        """See Responder."""
        self.claim.events += data.count(b"data:")
        self._write(data, chunk)


class Limited:
    """Admits calls, and settles them. ``pricing`` is there if accounts are kept, as with a budget in USD."""

    def __init__(
        self,
        gateway: Gateway,
        admission: Admission,
        pricing: Pricing | None = None,
    ) -> None:
        self._gateway = gateway
        self.admission = admission
        self._store = admission.store
        self._pricing = pricing

    def admits(self, endpoint: Endpoint) -> Admit:
        """What asks the store for what the calls of an endpoint need."""
        return self._admit if endpoint.spends == "tokens" else self._admit_request

    def _admit(self, call: Call, caller: Caller, claim: LimitedClaim | None) -> LimitedClaim:
        members, prompt, limit, admit = call.members, 0, 0, self._store.admit
        if claim is None:
            claim = LimitedClaim(caller, call.endpoint)
        if call.form is None:
            prompt = (call.size + _ROUNDED_UP) // BYTES_OF_A_TOKEN
        if "max_tokens" in members or "max_completion_tokens" in members or "max_output_tokens" in members:
            limit = limit_in(members)
        claim.limit, claim.tokens, claim.events = limit, prompt + (limit or caller.assume), 0
        if self._pricing is not None:
            claim.money = self._money_for(self._pricing, call, caller, claim)
        reached = admit(claim)
        if reached is not None:
            claim.reached = reached
        return claim

    def _admit_request(self, call: Call, caller: Caller, claim: LimitedClaim | None) -> LimitedClaim:
        """Of an endpoint whose calls spend no tokens."""
        claim = claim or LimitedClaim(caller, call.endpoint)
        claim.reached = self._store.admit(claim)
        return claim

    def serve(
        self,
        call: Call,
        request: Request,
        record: RecordBuilder,
        claim: LimitedClaim | None = None,
    ) -> Deferred[None]:
        """Serve the call when it is admitted. Raises RequestError, or fails with it.

        ``claim`` is there if the store has been asked.
        """
        caller = request.caller
        assert caller is not None
        request.limited = claim = claim or self.admits(call.endpoint)(call, caller, None)
        client = CountedStream(claim, request) if call.stream else request

        def serve(_: object) -> Deferred[None]:
            claim.reached = None
            return self._gateway.serve(call, client, record)

        if claim.reached is not None:
            agent = request.header(b"user-agent")
            try:
                admitted = self.admission.decide(claim.reached, claim, caller.wait)
            except RequestError as error:
                raise for_client(error, agent) from None
            if admitted is not None:
                return admitted.addCallbacks(serve, _for_client, errbackArgs=(agent,))
        return serve(None)

    def end(self, claim: LimitedClaim, record: RecordBuilder) -> None:
        """The request has ended, in whatever way: charge what it used, and free the rest."""
        if claim.reached is not None:
            return
        tokens = money = 0
        attempts = record.attempts
        if claim.spends and record.pricing is None and record.usage:
            if len(attempts) == 1 and attempts[0].outcome == "ok":
                common = common_counts(record.usage)
                tokens = common[2] if common is not None else sum(charged_tokens(record.usage).values())
            if not tokens:  # else the usage is the charge, as on the straight path
                record.charges = (Charge(record.provider or "", record.model or "", charged_tokens(record.usage)),)
        if not tokens and claim.spends:
            tokens, record.estimated = used(record, claim, claim.events, claim.path)
            tokens, cost = complete(record, tokens, claim.prompt, record.pricing or _NO_PRICES)
            money = round(cost * PICO)
        settled = self._store.settle(claim, tokens, money)
        if self.admission.queues:
            self.admission.settled(settled, claim)

    def _money_for(self, pricing: Pricing, call: Call, caller: Caller, about: Estimated) -> int:
        """What is reserved of budgets in USD: the cost of the estimate at the dearest step of the route."""
        if not any([budget.in_usd for account in caller.accounts for budget in account.budgets]):
            return 0
        router = self._gateway.router
        try:
            visible = router.visible[caller.routes]
            route = visible[call.model] if call.model else router.default_for(call.endpoint.path, caller.routes)
        except GatewayError:  # which the client gets when the request is served
            return 0
        return round(pricing.dearest(route.steps, {"input": about.prompt, "output": about.output}) * PICO)

    def count(self, request: Request) -> None:
        """Count a request that was refused before it was a call. It needs no slot."""
        if request.caller is not None:
            accounts = [msgspec.structs.replace(each, concurrency=None) for each in request.caller.accounts]
            self._store.count_request(Claim(tuple(accounts)))


def _for_client(failure: Failure, user_agent: bytes | None) -> Failure:
    error = failure.value
    return Failure(for_client(error, user_agent)) if isinstance(error, RequestError) else failure


class UsageResource(ApiResource):
    """``GET /v1/usage``: what the caller has used, and what it has left of its limits and of those of its group."""

    def __init__(
        self, config: Config, store: Store, cross_origin: CrossOrigin | None = None, counters: Counters | None = None
    ) -> None:
        """``counters`` have what callers used since the start, if callers are counted."""
        super().__init__(config, cross_origin)
        self._store = store
        self._counters = counters or Counters()
        self._has_prices = bool(config.prices) or config.unknown_price is not None

    def render(self, request: Request) -> bytes | Deferred[None]:
        """Of the caller alone."""
        caller = request.caller
        assert caller is not None
        found = [self._store.usage_of(account) for account in caller.accounts]
        if not any([isinstance(each, Deferred) for each in found]):
            return self._shown(caller, found)
        waits = gatherResults([each if isinstance(each, Deferred) else succeed(each) for each in found])
        return waits.addCallback(lambda accounts: request.answer(200, self._shown(caller, accounts)))

    def _shown(self, caller: Caller, accounts: Sequence[object]) -> bytes:
        """A store that gateways share has the counts of them all; else those of this process are shown."""
        counted: CallerCounters | None = self._counters.callers.get(caller.name)
        limits = {account.name: found for account, found in zip(caller.accounts, accounts, strict=True)}
        data = []
        for kind, name, counts in (
            ("key", caller.name, counted),
            ("group", caller.group, counted and counted.group),
        ):
            of_limits = limits.get(f"{kind} {name}")
            if counts is not None or of_limits is not None:
                since_start = counts.shown() if counts is not None else {}
                used = {kind: name, **since_start, **(of_limits if isinstance(of_limits, dict) else {"limits": {}})}
                if not (self._has_prices or used.get("cost_usd", 1)):
                    used["cost_usd"] = None  # not known, as on the status page
                data.append(used)
        return msgspec.json.encode({"object": "usage", "caller": caller.name, "data": data})
