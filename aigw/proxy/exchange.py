"""The chain: choose a step, try it, try the next if it fails, relay the answer, record the result.

One Deferred runs from the request to the end of its answer. A time limit cancels it, and so does a client that leaves.
``cancel()`` on that Deferred cancels the attempt that is running, at any depth.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from aigw.config.model import Config, Route, Step
from aigw.errors import Draining, GatewayError, StreamBroken, UpstreamFailure, UpstreamRefused, UpstreamTimeout
from aigw.net import headers
from aigw.net.lateness import within
from aigw.protocols.endpoint import Call
from aigw.protocols.endpoints import ENDPOINTS
from aigw.proxy import failure_report, passed_refusals, retry_policy
from aigw.proxy.answers import hold
from aigw.proxy.cooldown import CooldownsByEndpoint
from aigw.proxy.relay import Relay, Responder
from aigw.proxy.router import Router, less_provider
from aigw.proxy.stored_responses import StoredResponses
from aigw.secret import KeySearch
from aigw.telemetry.record import AttemptRecord, AttemptSink, RecordBuilder, host_and_path, milliseconds, short_word
from aigw.upstream.attempt import Attempt
from aigw.upstream.connection import Response
from aigw.upstream.providers import Upstream


class Gateway:
    """Serves calls with one configuration. ``note_failure`` is called with each failed attempt."""

    def __init__(
        self,
        config: Config,
        upstream: Upstream,
        health: CooldownsByEndpoint,
        clock: IReactorTime,
        note_failure: AttemptSink,
        random: Callable[[], float] = random.random,
        running: set[Exchange] | None = None,
        router: Router | None = None,
    ) -> None:
        """``running`` has each exchange that has not ended, of any configuration. ``router`` is that of ``config``."""
        self.router = router or Router(config)
        self.upstream = upstream
        self.cooldowns = {path: health.at(path) for path in ENDPOINTS}
        self.random = random
        self.clock = clock
        self.note_failure = note_failure
        self.keys = KeySearch(config.secrets)
        self.running = set() if running is None else running
        self.finishing = health.finishing
        self.stored = StoredResponses(config, upstream, self.router, self.cooldowns, health.response_ids, clock)

    def serve(self, call: Call, client: Responder, record: RecordBuilder) -> Deferred[None]:
        """Answer ``call`` to ``client``. Fails with GatewayError if no byte was sent, CancelledError if cancelled."""
        record.stream, record.requested_model = call.stream, call.model
        if call.endpoint.state_in is not None and (response_id := call.endpoint.state_in(call)):
            return self.stored.serve(call, response_id, record, partial(self._start, call, client, record))
        route = self.router.routes[call.model] if call.model else self.router.default_for(call.endpoint.path)
        record.route = route.name
        return Exchange(self, route, call, client, record).run()

    def _start(self, call: Call, client: Responder, record: RecordBuilder, route: Route) -> Deferred[None]:
        record.route = route.name
        return Exchange(self, route, call, client, record).run()


class Exchange:
    """One call along the steps of its route."""

    def __init__(self, gateway: Gateway, route: Route, call: Call, client: Responder, record: RecordBuilder) -> None:
        self._gateway = gateway
        self._clock = gateway.clock
        self._health = gateway.cooldowns[call.endpoint.path]
        self._route = route
        self._call = call
        self._client = client
        self._record = record
        self._left = list(route.steps)
        self._failures: list[tuple[AttemptRecord, UpstreamFailure]] = []
        self._refusals: dict[int, tuple[Attempt, UpstreamRefused]] = {}  # the last one of each step
        self._deadline = math.inf if route.deadline is None else self._clock.seconds() + route.deadline
        self._flowing: Relay | None = None
        self._running: Deferred[None] | None = None
        self._interrupted = False
        self._waiting_since = 0.0

    @property
    def route(self) -> str:
        """The name of the route."""
        return self._route.name

    def run(self) -> Deferred[None]:
        """See Gateway.serve."""
        self._gateway.running.add(self)
        self._running = self.next_step()
        return self._running.addBoth(self._over)

    def interrupt(self) -> None:
        """End the exchange because the gateway stops: with an error event in the stream, or with Draining."""
        self._interrupted = True
        if self._flowing is not None:
            self._flowing.interrupt()
        elif self._running is not None:
            self._running.cancel()

    def _over(self, result: Failure | None) -> Failure | None:
        self._gateway.running.discard(self)
        if self._interrupted and isinstance(result, Failure) and result.check(CancelledError):
            raise Draining("The gateway is stopping, and no provider has answered yet.", headers={"Retry-After": "1"})
        return result

    def next_step(self) -> Deferred[None]:
        """Try the next step; give up if no step or no time is left."""
        step = self._health.choose(self._left, self._record.skip)
        is_late = self._clock.seconds() >= self._deadline
        if step is None or is_late:
            return self._give_up(is_late)
        self._left.remove(step)
        attempt = self._gateway.router.attempt(step, self._call)
        return self._try(attempt, self._clock.seconds() + step.timeout, tries=1)

    def _try(self, attempt: Attempt, step_ends: float, tries: int) -> Deferred[None]:
        step, started = attempt.step, self._clock.seconds()
        if self._record.trace is not None:
            attempt = self._record.trace.sent(attempt, started)
        answered: list[Response] = []
        probe = self._health.begin(step)
        self._record.tried += 1
        seconds = min(step_ends, self._deadline) - started
        limit = "deadline" if self._deadline < step_ends else "first output" if self._call.stream else "answer"

        def hold_answer(response: Response) -> Deferred[Relay]:
            answered.append(response)
            must_finish = partial(self._gateway.finishing.expected, step, self._call.endpoint.path)
            return hold(response, self._call, self._clock, must_finish)

        def commit_or_hang_up(held: Relay) -> Deferred[None]:
            try:
                return self._commit(held, attempt, started, seconds, answered[0], probe)
            except Exception:  # a fault of the gateway: the provider's answer ends too
                held.hang_up()
                raise

        def fall_through(failure: Failure) -> Deferred[None]:
            if not failure.check(UpstreamFailure):
                self._health.abandoned(step, probe)
            if failure.check(CancelledError):
                self._note_cancelled(step, started, None)
            failure.trap(UpstreamFailure)
            return self._fell(attempt, started, cast(UpstreamFailure, failure.value), step_ends, tries, probe)

        self._waiting_since = started
        held = self._gateway.upstream.send(attempt).addCallback(hold_answer)
        self._waiting_since = self._clock.seconds()  # the time until now is the gateway's
        within(held, seconds, self._clock, lambda: UpstreamTimeout(limit, seconds))
        return held.addCallbacks(commit_or_hang_up, fall_through)

    def _commit(
        self, held: Relay, attempt: Attempt, started: float, seconds: float, response: Response, probe: bool
    ) -> Deferred[None]:
        """The answer works: send the head to the client, then let the body flow."""
        step = attempt.step
        self._record.first_byte = now = self._clock.seconds()
        self._call.members.clear()  # a stream may be long, and its prompt is not needed again
        if self._call.form is not None:
            self._call.form.release()
        if held.length is not None:
            held.rewrite(self._gateway.router.without_keys[step.provider.name])
        length = held.length
        self._record.answered_by(step, attempt.dropped)
        if self._call.endpoint.id_in is not None:
            self._gateway.stored.note(self._call, self._route, step, held)
        sent = headers.for_client(response.given.items())
        if b"content-type" not in dict(sent):
            sent.append((b"content-type", held.default_type))
        rest = step.idle_timeout if held.flows else started + seconds - now
        if self._call.stream:
            sent = headers.of_a_stream(sent, held.mislabelled)
        elif length is None and isinstance(response.length, int):
            length = response.length
        if self._gateway.keys.may_be_in(sent):
            sent = self._gateway.keys.without(sent)
        self._client.begin(response.code, sent, length)
        self._flowing = held
        return held.flow(self._client, max(0.0, rest)).addBoth(self._flowed, step, started, response.code, held, probe)

    def _fell(
        self, attempt: Attempt, started: float, failure: UpstreamFailure, step_ends: float, tries: int, probe: bool
    ) -> Deferred[None]:
        """An attempt failed: note it, then stop, repeat the step, or try the next one."""
        step = attempt.step
        final = passed_refusals.is_final(failure, self._route, self._call.endpoint, self._gateway.keys)
        verdict = retry_policy.decide(failure, final)
        cooldown = retry_policy.apply(self._health, step, verdict, probe)
        attempted = self._note(step, started, failure.outcome, failure.status, failure.message, cooldown, failure.words)
        failure.__traceback__ = failure.__context__ = None  # their frames would keep the body in memory
        self._failures.append((attempted, failure))
        self._gateway.note_failure(self._record.request_id, self._route.name, attempted)
        if isinstance(failure, UpstreamRefused):
            if final:
                return self._pass_on(attempt, failure)
            self._refusals[step.number] = attempt, failure
        if verdict.key_refused:
            self._left = less_provider(self._left, step.provider, self._record.skip)
        if verdict.repeatable and tries <= step.retries:
            delay = retry_policy.retry_delay(failure, tries, self._gateway.random)
            if self._clock.seconds() + delay < min(step_ends, self._deadline):
                pause: Deferred[None] = deferLater(self._clock, delay).addBoth(self._paused, self._clock.seconds())
                return pause.addCallback(lambda _: self._try(attempt, step_ends, tries + 1))
        return self.next_step()

    def _paused(self, result: Failure | None, since: float) -> Failure | None:
        """Add the real length of the pause, which is shorter if the client left."""
        self._record.waited += self._clock.seconds() - since
        return result

    def _pass_on(self, attempt: Attempt, refusal: UpstreamRefused) -> Deferred[None]:
        """The client gets the refusal as the provider sent it."""
        self._record.answered_by(attempt.step, attempt.dropped)
        self._record.bytes_out = passed_refusals.pass_on(refusal, self._client, self._gateway.keys)
        self._client.end()
        return succeed(None)

    def _give_up(self, is_late: bool) -> Deferred[None]:
        """No step or no time is left: the client gets a refusal if the route passes it on, else the gateway's error."""
        cooldowns = [left for step in self._route.steps if (left := self._health.cooldown_left(step)) is not None]
        found = self._failures, self._refusals.values(), self._gateway.keys
        end = failure_report.in_the_end(self._route, self._call.endpoint, *found, is_late, min(cooldowns, default=None))
        return fail(end) if isinstance(end, GatewayError) else self._pass_on(*end)

    def _flowed(
        self, result: Failure | None, step: Step, started: float, status: int, held: Relay, probe: bool
    ) -> None:
        """The answer ended, whole or not: note it for the step, record it, and end or break the client's answer."""
        self._record.bytes_out = held.bytes_out
        self._record.usage = held.usage
        if isinstance(result, Failure) and result.check(CancelledError) and held.failure is not None:
            result = Failure(held.failure)  # the client left because of it
        if not isinstance(result, Failure):
            self._health.succeeded(step)
            if held.finished:
                self._gateway.finishing.note(step, self._call.endpoint.path)
            self._note(step, started, "ok", status, "")
            self._client.end()
        elif result.check(StreamBroken):
            self._broke(cast(StreamBroken, result.value), step, started, status, probe)
        else:
            self._health.abandoned(step, probe)
            self._note_cancelled(step, started, status)
            result.trap(StreamBroken)

    def _broke(self, broken: StreamBroken, step: Step, started: float, status: int, probe: bool) -> None:
        # If the gateway itself ended the stream the code is for the client only; the step did not fail.
        self._record.outcome = outcome = "draining" if self._interrupted else broken.code
        (self._health.abandoned if self._interrupted else self._health.failed)(step, probe)
        self._note(step, started, outcome, status, broken.message, self._health.cooldown_left(step))
        if broken.reported:
            self._client.end()
        else:
            self._client.cut(self._flowing.flushes if self._flowing else False)

    def _note_cancelled(self, step: Step, started: float, status: int | None) -> None:
        if self._interrupted:
            self._note(step, started, "draining", status, "the gateway is stopping")
        else:
            self._note(step, started, "client_gone", status, "the client left")

    def _note(
        self,
        step: Step,
        started: float,
        outcome: str,
        status: int | None,
        message: str,
        cooldown: float | None = None,
        words: Sequence[str] = (),
    ) -> AttemptRecord:
        now = self._clock.seconds()
        took = milliseconds(now - started)
        self._record.waited += now - self._waiting_since
        rests_s = None if cooldown is None else math.ceil(cooldown)
        where = host_and_path(step.provider.base_url, self._call.endpoint.path)
        what = (outcome, status, took, message, rests_s, *where, short_word(words) if words else None)
        attempted = AttemptRecord(step.number, step.provider.name, step.model, *what)
        self._record.attempts.append(attempted)
        if self._record.trace is not None:
            self._record.trace.attempted(attempted, now)
        return attempted
