"""The chain: choose a step, try it, try the next if it fails, relay the answer, record the result.

One Deferred runs from the request to the end of its answer. A time limit cancels it, and so does a client that leaves.
``cancel()`` on that Deferred cancels the attempt that is running, at any depth.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from aigw.config.model import Route
from aigw.errors import Draining, GatewayError, StreamBroken, UpstreamFailure, UpstreamRefused, UpstreamTimeout
from aigw.net import headers
from aigw.net.lateness import within
from aigw.protocols.endpoint import Call
from aigw.proxy import passed_refusals
from aigw.proxy.answers import hold
from aigw.proxy.committed import Answer
from aigw.proxy.failure_report import FailedAttempts
from aigw.proxy.keepalive import KeptAlive
from aigw.proxy.race import Race
from aigw.proxy.relay import Relay
from aigw.proxy.responder import Responder
from aigw.proxy.running_attempt import RunningAttempt
from aigw.proxy.sent import Sent
from aigw.proxy.whole import HoldWhole
from aigw.routing import retry_policy
from aigw.routing.hedge import may_be_sent_twice
from aigw.routing.retry_policy import Verdict
from aigw.routing.router import fitted
from aigw.telemetry.record import RecordBuilder
from aigw.upstream.attempt import Attempt
from aigw.upstream.response import Response

if TYPE_CHECKING:
    from aigw.proxy.gateway import Gateway


class Exchange:
    """One call along the steps of its route."""

    def __init__(self, gateway: Gateway, route: Route, call: Call, client: Responder, record: RecordBuilder) -> None:
        self._gateway = gateway
        self._clock = gateway.clock
        self._path = call.endpoint.path
        self._health = gateway.cooldowns[self._path]
        record.route = route.name
        self._route = route = fitted(route, call, record.skip) if route.limits_bodies else route
        self._call = call
        self._client = client
        self._record = record
        self._kept_alive: KeptAlive | None = None
        if call.stream and route.keepalive is not None:
            self._client = self._kept_alive = KeptAlive(client, route.keepalive, call, record, self._clock)
        self._whole = HoldWhole(call, record, gateway.running.held, self._kept_alive) if route.hold == "whole" else None
        self._left = list(route.steps)
        if route.has_choice:
            self._left = gateway.balance.order(route, self._left, call, client, record)
        self._failures = FailedAttempts()
        self._deadline = math.inf if route.deadline is None else self._clock.seconds() + route.deadline
        self._flowing: Answer | None = None
        self._running: Deferred[None] | None = None
        self._interrupted = False
        self._race: Race | None = None
        if route.hedge is not None:
            self._race = Race(self, route.hedge, gateway.budgets.of(route.name), record, self._clock)

    @property
    def route(self) -> str:
        """The name of the route."""
        return self._route.name

    def run(self) -> Deferred[None]:
        """See Gateway.serve."""
        self._gateway.running.add(self)
        try:
            self._running = self.next_step()
        except Exception:  # a fault of the gateway
            self._over(None)
            raise
        self._running.addBoth(self._over)
        return self._kept_alive.until(self._running) if self._kept_alive is not None else self._running

    def resume(self, sent: Sent) -> Deferred[None]:
        """The same for a call that was sent to the first step on the straight path. Its answer may have begun."""
        self._gateway.running.add(self)
        step = self._left.pop(0)
        try:
            if sent.response is not None and sent.relay is not None:
                self._running = self._go_on(sent, sent.relay)
            else:
                attempt = self._gateway.router.attempt(step, self._call)
                self._running = self._try(attempt, sent.received + step.timeout, tries=1, sent=sent)
        except Exception:  # a fault of the gateway
            self._over(None)
            raise
        self._running.addBoth(self._over)
        return self._running

    def _go_on(self, sent: Sent, relay: Relay) -> Deferred[None]:
        step, record, received = sent.plan.step, self._record, sent.received
        running = RunningAttempt(record, step, None, received, step.timeout, received + step.timeout, 1, False, None)
        running.response, running.relay, self._flowing = sent.response, relay, relay
        record.waiting_since, record.first_byte = sent.waiting_since, sent.first_byte
        record.answered_by(step, (), step.model)
        return relay.go_on_to(self._client).addBoth(self._flowed, running, relay)

    def interrupt(self) -> None:
        """End the exchange because the gateway stops: with an error event in the stream, or with Draining."""
        self._interrupted = True
        if self._flowing is not None:
            self._flowing.interrupt()
        elif self._running is not None:
            self._running.cancel()

    def _over(self, result: Failure | None) -> Failure | None:
        self._gateway.running.discard(self)
        self._race = self._flowing = None  # they refer to this
        if self._interrupted and isinstance(result, Failure) and result.check(CancelledError):
            raise Draining("The gateway is stopping, and no provider has answered yet.", headers={"Retry-After": "1"})
        return result

    def next_step(self, beside: RunningAttempt | None = None) -> Deferred[None]:
        """See Chain: try the next step; give up if no step or no time is left."""
        left = self._left if beside is None else retry_policy.other_keys_last(self._left, beside.step)
        step = self._health.choose(left, self._record.skip)
        is_late = self._clock.seconds() >= self._deadline
        if step is None or is_late:
            return self._give_up(is_late)
        self._left.remove(step)
        attempt = self._gateway.router.attempt(step, self._call)
        return self._try(attempt, self._clock.seconds() + step.timeout, tries=1)

    def _try(self, attempt: Attempt, step_ends: float, tries: int, sent: Sent | None = None) -> Deferred[None]:
        started, span = self._clock.seconds() if sent is None else sent.received, None
        if trace := self._record.trace:
            attempt, span = trace.sent(attempt, started), trace.spans[-1]
        seconds = min(step_ends, self._deadline) - started
        limit = "first output" if self._call.stream and not self._whole else "answer"
        limit = "deadline" if self._deadline < step_ends else limit
        probe = sent is None and self._health.begin(attempt.step)
        running = RunningAttempt(self._record, attempt.step, attempt, started, seconds, step_ends, tries, probe, span)
        if attempt.step.counted:
            running.count(self._gateway.balance.pending)
        self._record.tried += 1
        self._record.waiting_since = started
        sent_on = None if sent is None else sent.connection
        held = self._gateway.upstream.send(attempt, sent_on).addCallback(self._hold, running)
        self._record.waiting_since = self._clock.seconds()  # the time until now is the gateway's
        left = seconds
        if sent is not None:
            self._record.waiting_since, left = sent.waiting_since, sent.seconds_left
        running.held = within(held, left, self._clock, lambda: UpstreamTimeout(limit, seconds))
        if self._race is not None:
            return self._race.enter(running)
        served: Deferred[Any] = held
        return served.addCallbacks(self.commit, self.fall_through, (running,), {}, (running,))

    def _hold(self, response: Response, running: RunningAttempt) -> Deferred[Relay] | Deferred[Answer]:
        running.response, step, whole = response, running.step, self._whole
        must_finish = partial(self._gateway.finishing.expected, step, self._path)
        running.relay = relay = hold(response, self._call, self._clock, must_finish, running.attempt)
        return relay.held if whole is None else whole.hold(relay.held.addCallback(running.note_output), step)

    def may_start_beside(self, running: RunningAttempt) -> bool:
        """See Chain."""
        is_early = self._clock.seconds() < self._deadline
        has_step = is_early and self._health.any_awake(self._left)
        return has_step and running.attempt is not None and may_be_sent_twice(self._call, running.attempt, self._left)

    def commit(self, held: Answer, running: RunningAttempt) -> Deferred[None]:
        """See Chain: send the head to the client, then let the body flow."""
        response, step = cast(Response, running.response), running.step
        attempt, running.attempt = cast(Attempt, running.attempt), None
        try:
            self._record.first_byte = now = self._clock.seconds()
            self._call.members.clear()  # a stream may be long, and its prompt is not needed again
            if self._call.form is not None:
                self._call.form.release()
            if held.length is not None:
                held.rewrite(self._gateway.router.without_keys[step.provider.name])
            length = held.length
            self._record.answered_by(step, attempt.difference.dropped, attempt.model)
            if self._call.endpoint.id_in is not None:
                self._gateway.stored.note(self._call, self._route, step, held)
            sent = headers.for_client(response.given.items())
            if b"content-type" not in dict(sent):
                sent.append((b"content-type", held.default_type))
            rest = step.idle_timeout if held.flows else running.started + running.seconds - now
            if self._call.stream:
                sent = headers.of_a_stream(sent, held.mislabelled)
            elif length is None and isinstance(response.length, int):
                length = response.length
            if self._gateway.router.keys.may_be_in(sent):
                sent = self._gateway.router.keys.without(sent)
            self._client.begin(response.code, sent, length)
            self._flowing = held
            flowing = held.flow(self._client, max(0.0, rest))
        except Exception:  # a fault of the gateway: the provider's answer ends too
            held.hang_up()
            running.abandon(self._health)
            raise
        return flowing.addBoth(self._flowed, running, held)

    def fall_through(self, failure: Failure, running: RunningAttempt) -> Deferred[None]:
        """See Chain: note it, then stop, repeat the step, or try the next one."""
        attempt, tries, step_ends = cast(Attempt, running.attempt), running.tries, running.step_ends
        if failure.check(CancelledError):
            self.note_cancelled(running)
        elif not failure.check(UpstreamFailure):
            running.abandon(self._health)
        failure.trap(UpstreamFailure)
        error = cast(UpstreamFailure, failure.value)
        verdict = self.note_failure(error, running)
        if verdict.final:
            return self._pass_on(attempt, cast(UpstreamRefused, error))
        if verdict.repeatable and tries <= running.step.retries:
            delay = retry_policy.retry_delay(error, tries, self._gateway.random)
            if self._clock.seconds() + delay < min(step_ends, self._deadline):
                pause: Deferred[None] = deferLater(self._clock, delay).addBoth(running.paused, self._clock.seconds())
                return pause.addCallback(lambda _: self._try(attempt, step_ends, tries + 1))
        return self.next_step()

    def is_final(self, error: UpstreamFailure) -> bool:
        """See Chain."""
        return passed_refusals.is_final(error, self._route, self._call.endpoint, self._gateway.router.keys)

    def note_failure(self, error: UpstreamFailure, running: RunningAttempt) -> Verdict:
        """See Chain."""
        step = running.step
        verdict = retry_policy.decide(error, self.is_final(error))
        cooldown = retry_policy.apply(self._health, step, verdict, running.probe)
        attempted = running.ended(error.outcome, error.status, error.message, cooldown, error.words)
        self._failures.note(attempted, error, cast(Attempt, running.attempt))
        self._gateway.note_failure(self._record.request_id, self._route.name, attempted)
        self._left = retry_policy.left_after(error, verdict, step, self._left, self._health, self._record.skip)
        return verdict

    def _pass_on(self, attempt: Attempt, refusal: UpstreamRefused) -> Deferred[None]:
        """The client gets the refusal as the provider sent it."""
        self._record.answered_by(attempt.step, attempt.difference.dropped, attempt.model)
        self._record.bytes_out = passed_refusals.pass_on(refusal, self._client, self._gateway.router.keys)
        self._client.end()
        return succeed(None)

    def _give_up(self, is_late: bool) -> Deferred[None]:
        """No step or no time is left: the client gets a refusal if the route passes it on, else the gateway's error."""
        found = self._route, self._call.endpoint, self._gateway.router.keys, is_late
        end = self._failures.in_the_end(*found, self._health.shortest(self._route.steps))
        return fail(end) if isinstance(end, GatewayError) else self._pass_on(*end)

    def _flowed(self, result: Failure | None, running: RunningAttempt, held: Answer) -> None:
        """The answer ended, whole or not: note it for the step, record it, and end or break the client's answer."""
        self._record.bytes_out = held.bytes_out
        self._record.usage = held.usage
        if isinstance(result, Failure) and result.check(CancelledError) and held.failure is not None:
            result = Failure(held.failure)  # the client left because of it
        if not isinstance(result, Failure):
            self._health.succeeded(running.step)
            if held.finished:
                self._gateway.finishing.note(running.step, self._path)
            running.ended("ok", running.status, "")
            self._client.end()
        elif result.check(StreamBroken):
            self._broke(cast(StreamBroken, result.value), running)
        else:
            self.note_cancelled(running)
            result.trap(StreamBroken)

    def _broke(self, broken: StreamBroken, running: RunningAttempt) -> None:
        # If the gateway itself ended the stream the code is for the client only; the step did not fail.
        self._record.outcome = outcome = "draining" if self._interrupted else broken.code
        (self._health.abandoned if self._interrupted else self._health.failed)(running.step, running.probe)
        running.ended(outcome, running.status, broken.message, self._health.cooldown_left(running.step))
        if broken.reported:
            self._client.end()
        else:
            self._client.cut(self._flowing.flushes if self._flowing else False)

    def note_cancelled(self, running: RunningAttempt) -> None:
        """See Chain."""
        self._health.abandoned(running.step, running.probe)
        running.cancelled(self._interrupted)
