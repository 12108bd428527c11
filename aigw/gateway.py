"""The chain: plan the attempts, try each until one answers, relay that answer, record what happened.

One Deferred runs from the request to the end of its answer. A time limit is a cancellation, and so is a client that
leaves: ``cancel()`` on that Deferred reaches whichever attempt is running, at any depth.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from twisted.web.iweb import IResponse

from aigw import headers, relay, routing
from aigw.answers import hold
from aigw.config import Config, Route
from aigw.errors import DeadlineExceeded, StreamBroken, UpstreamFailure, UpstreamTimeout
from aigw.openai import Call
from aigw.records import AttemptRecord, AttemptSink, Trail, milliseconds
from aigw.routing import Attempt, Router
from aigw.upstream import Upstream, within


class Client(relay.Client, Protocol):
    """Who asked."""

    def begin(self, status: int, headers: list[headers.Header], length: int | None) -> None:
        """Commit: send the head of the answer; ``length`` is that of the body where it is known."""

    def end(self) -> None:
        """The answer is whole."""

    def cut(self, flush: bool) -> None:
        """The answer broke: close without a proper end, after what was written is sent if ``flush``."""


class Gateway:
    """Serves calls by one configuration. ``note_failure`` hears of each failed attempt."""

    def __init__(self, config: Config, upstream: Upstream, clock: IReactorTime, note_failure: AttemptSink) -> None:
        self.router = Router(config)
        self.upstream = upstream
        self.clock = clock
        self.note_failure = note_failure
        self.secrets = config.secrets

    def serve(self, call: Call, client: Client, trail: Trail) -> Deferred[None]:
        """Answer ``call`` to ``client``. Fails with GatewayError if no byte was sent, CancelledError if cancelled."""
        route = self.router.route(call.model)
        trail.route = route.name
        return _Exchange(self, route, call, client, trail).next_attempt()


class _Exchange:
    """One call on its way along the steps of its route."""

    def __init__(self, gateway: Gateway, route: Route, call: Call, client: Client, trail: Trail) -> None:
        self._gateway = gateway
        self._clock = gateway.clock
        self._route = route
        self._call = call
        self._client = client
        self._trail = trail
        self._attempts = gateway.router.plan(route, call)
        self._failures: list[tuple[AttemptRecord, UpstreamFailure]] = []
        self._deadline = None if route.deadline is None else self._clock.seconds() + route.deadline

    def next_attempt(self) -> Deferred[None]:
        """Try the next step; give up where there is none, or no time for it."""
        if self._deadline is not None and self._clock.seconds() >= self._deadline:
            return fail(self._too_late())
        attempt = next(self._attempts, None)
        if attempt is None:
            return fail(routing.all_failed(self._failures, self._gateway.secrets))
        seconds, limit = self._limit_of(attempt)
        return self._try(attempt, seconds, limit)

    def _try(self, attempt: Attempt, seconds: float, limit: str) -> Deferred[None]:
        started = self._clock.seconds()
        answered: list[IResponse] = []

        def judge(response: IResponse) -> Deferred[relay.Relay]:
            answered.append(response)
            return hold(response, self._call.endpoint, self._call.stream, self._clock)

        def commit(held: relay.Relay) -> Deferred[None]:
            self._trail.first_byte = self._clock.seconds()
            self._begin(attempt, answered[0], held.length)
            rest = attempt.step.idle_timeout if self._call.stream else seconds - (self._clock.seconds() - started)
            flowing = held.flow(self._client, rest)
            return flowing.addBoth(self._flowed, attempt, started, answered[0].code, held)

        def fall_through(failure: Failure) -> Deferred[None]:
            if failure.check(CancelledError):
                self._note(attempt, started, "client_gone", None, "the client left")
            failure.trap(UpstreamFailure)
            self._fell(attempt, started, cast(UpstreamFailure, failure.value))
            return self.next_attempt()

        held = self._gateway.upstream.send(attempt).addCallback(judge)
        within(held, seconds, self._clock, lambda: UpstreamTimeout(limit, seconds))
        served: Deferred[Any] = held
        return served.addCallbacks(commit, fall_through)

    def _limit_of(self, attempt: Attempt) -> tuple[float, str]:
        """The seconds that an attempt has up to its commit point, and the name of the limit that says so."""
        timeout = attempt.step.timeout
        left = timeout if self._deadline is None else self._deadline - self._clock.seconds()
        if left < timeout:
            return left, "deadline"
        return timeout, "first output" if self._call.stream else "answer"

    def _too_late(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"The route's deadline of {self._route.deadline:g} s passed before a step gave an answer.",
            details={"attempts": routing.attempts_told(self._failures, self._gateway.secrets)},
        )

    def _begin(self, attempt: Attempt, response: IResponse, length: int | None) -> None:
        self._trail.provider = attempt.step.provider.name
        self._trail.model = attempt.step.model
        sent = headers.for_client(response.headers.getAllRawHeaders())
        if self._call.stream:
            sent += [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        elif length is None and isinstance(response.length, int):
            length = response.length
        self._client.begin(response.code, sent, length)

    def _flowed(self, result: Any, attempt: Attempt, started: float, status: int, held: relay.Relay) -> None:
        """The answer ended, whole or not: record it, and close or cut the client's."""
        self._trail.bytes_out = held.bytes_out
        self._trail.usage = held.usage
        if not isinstance(result, Failure):
            self._note(attempt, started, "ok", status, "")
            self._client.end()
        elif result.check(StreamBroken):
            broken = cast(StreamBroken, result.value)
            self._trail.outcome = broken.code
            self._note(attempt, started, broken.code, status, broken.message)
            self._client.cut(flush=self._call.stream)
        else:
            self._note(attempt, started, "client_gone", status, "the client left")
            result.trap(StreamBroken)

    def _fell(self, attempt: Attempt, started: float, failure: UpstreamFailure) -> None:
        record = self._note(attempt, started, failure.outcome, failure.status, failure.message)
        self._failures.append((record, failure))
        self._gateway.note_failure(self._trail.request_id, self._route.name, record)

    def _note(self, attempt: Attempt, started: float, outcome: str, status: int | None, message: str) -> AttemptRecord:
        step = attempt.step
        took = milliseconds(self._clock.seconds() - started)
        record = AttemptRecord(step.number, step.provider.name, step.model, outcome, status, took, message)
        self._trail.attempts.append(record)
        return record
