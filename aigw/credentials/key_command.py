"""A key that a command prints, such as a token for an hour. The command runs again before the key ends."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from aigw.credentials.child import Printed
from aigw.credentials.printed import read_printed, shown
from aigw.credentials.source import RECENT, NoKey, NoteKey, checked
from aigw.net.lateness import within
from aigw.secret import Secret
from aigw.telemetry import logs

RUN_SECONDS = 10.0
LAST_SECONDS = 10.0  # of a key, in which it is not sent: the provider's clock and the way there take some of them
RENEW_SECONDS = 300.0  # before the end of the key, or
RENEW_SHARE = 0.1  # of its time, whichever is nearer to the end
_SOONER = LAST_SECONDS + RUN_SECONDS  # so that a new key is there when the old one may not be sent any more
RETRY_FIRST = 1.0
RETRY_MOST = 30.0
FORCED_SECONDS = 10.0  # between two runs because of a 401: a provider that refuses every key starts no more


class _TooSlow(Exception):
    """The run took longer than RUN_SECONDS."""


class KeyCommand:
    """See KeySource. At most one run is under way, however many requests wait for it."""

    def __init__(
        self,
        provider: str,
        run: Callable[[], Deferred[Printed]],
        clock: IReactorTime,
        note: NoteKey,
        unix_time: Callable[[], float] = time.time,
    ) -> None:
        """``run`` runs the command once; cancelling ends it."""
        self.recent: Sequence[Secret] = ()
        self._provider = provider
        self._run = run
        self._clock = clock
        self._note = note
        self._unix_time = unix_time
        self._last_use = -math.inf  # when the present key may not be sent any more
        self._running: Deferred[None] | None = None
        self._waiting: dict[Deferred[Secret], None] = {}
        self._keeps_fresh = False
        self._timer: IDelayedCall | None = None
        self._failures = 0  # in a row
        self._next = -math.inf  # when the command may run again after a failure
        self._problem = self._words = ""  # of the last run: why it failed, and what the command wrote
        self._forced = -math.inf  # when it last ran because of a 401

    @property
    def runs(self) -> bool:
        """See KeySource."""
        return self._running is not None

    def start(self) -> None:
        """See KeySource."""
        self._keeps_fresh = True
        if not self.recent and self._running is None:
            self._begin()

    def stop(self) -> None:
        """See KeySource."""
        self._keeps_fresh = False
        self._stop_timer()

    def close(self) -> None:
        """See KeySource."""
        self.stop()
        if self._running is not None:
            self._running.cancel()

    def present(self) -> Secret | None:
        """See KeySource."""
        return self.recent[0] if self._clock.seconds() < self._last_use else None

    def seconds_left(self) -> float:
        """See KeySource."""
        return self._last_use - self._clock.seconds()

    def wait(self) -> Deferred[Secret]:
        """See KeySource. Cancelling ends the waiting, not the run."""
        if self._running is None and self._clock.seconds() < self._next:
            return fail(self._no_key())
        waiting: Deferred[Secret] = Deferred(self._leave)
        self._waiting[waiting] = None
        if self._running is None:
            self._begin()
        return waiting

    def renew(self, refused: Secret) -> Deferred[Secret | None]:
        """See KeySource. Runs the command, unless there is another key by now."""
        key = self.present()
        if key is not None and key != refused:
            return succeed(key)
        if self._running is None:
            if self._clock.seconds() < self._forced + FORCED_SECONDS:
                return succeed(None)
            self._forced, self._next = self._clock.seconds(), -math.inf
            logs.warn("A provider refused its key (401), so its key_command runs again", provider=self._provider)
        renewed: Deferred[Any] = self.wait()
        return renewed.addCallbacks(lambda key: None if key == refused else key, _none_without_key)

    def _leave(self, waiting: Deferred[Secret]) -> None:
        self._waiting.pop(waiting, None)

    # One run

    def _begin(self) -> None:
        self._stop_timer()
        began = self._clock.seconds(), self._unix_time()
        running: Deferred[Any] = within(maybeDeferred(self._run), RUN_SECONDS, self._clock, _TooSlow)
        self._running = running
        running.addCallbacks(self._take, self._ended_early, callbackArgs=began)
        running.addErrback(self._crashed)

    def _take(self, printed: Printed, began: float, unix_time: float) -> None:
        self._running = None
        self._words = shown(printed.error, printed.out)
        if printed.problem is not None:
            self._fail(printed.problem)
            return
        try:
            text, seconds = read_printed(printed.out, unix_time)
            key, advice = checked(text)
        except ValueError as error:
            self._fail(f"printed a key that {error}" if not str(error).startswith("printed") else str(error))
            return
        ends = math.inf if seconds is None else began + seconds
        if ends - self._clock.seconds() <= LAST_SECONDS:
            self._fail(f"printed a key that ends within {LAST_SECONDS:g} s")
            return
        self._use(key, ends, began)
        if advice:
            logs.warn(f"The key that the key_command of a provider prints {advice}", provider=self._provider)

    def _use(self, key: Secret, ends: float, began: float) -> None:
        if not self.recent or key != self.recent[0]:
            self._note(key)
            self.recent = (key, *self.recent[: RECENT - 1])
        self._last_use = ends - LAST_SECONDS
        self._failures, self._next = 0, -math.inf
        now = self._clock.seconds()
        known = "" if ends == math.inf else f", which is valid for {ends - now:.0f} s"
        wrote = f"; it wrote: {self._words}" if self._words else ""
        logs.info(f"The key_command of a provider has printed a key{known}{wrote}", provider=self._provider)
        if ends != math.inf:
            lasts = ends - began
            before = max(min(RENEW_SECONDS, RENEW_SHARE * lasts), min(_SOONER, lasts / 2))
            self._run_in(max(RETRY_FIRST, ends - before - now))
        waiting, self._waiting = self._waiting, {}
        for each in waiting:
            if not each.called:  # cancelled by a callback of an earlier one
                each.callback(key)

    def _ended_early(self, failure: Failure) -> None:
        self._running = None
        self._words = ""
        if failure.trap(_TooSlow, CancelledError) is _TooSlow:
            self._fail(f"took longer than {RUN_SECONDS:g} s and was ended")
        else:  # the gateway stops
            self._problem = "was ended"
            self._refuse_waiting()

    def _crashed(self, failure: Failure) -> None:
        logs.log.failure("A key_command failed with an unexpected error", failure=failure)
        self._fail("failed with an unexpected error")

    def _fail(self, problem: str) -> None:
        self._failures += 1
        seconds = min(RETRY_MOST, RETRY_FIRST * 2.0 ** min(self._failures - 1, 10))
        self._next = self._clock.seconds() + seconds
        self._problem = problem
        left = self.seconds_left()
        what = "there is no key for the provider"
        if left > 0:
            what = "the old key stays in use" + ("" if left == math.inf else f" for {left:.0f} s")
        wrote = f": {self._words}" if self._words else ""
        report = logs.warn if left > 0 else logs.error
        report(f"The key_command of a provider {problem}, so {what}{wrote}", provider=self._provider)
        self._run_in(seconds)
        self._refuse_waiting()

    def _refuse_waiting(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for each in waiting:
            if not each.called:
                each.errback(self._no_key())

    def _no_key(self) -> NoKey:
        text = f"there is no key for the provider: its key_command {self._problem}"
        return NoKey(text, max(RETRY_FIRST, self._next - self._clock.seconds()), self._words)

    def _run_in(self, seconds: float) -> None:
        self._stop_timer()
        if self._keeps_fresh:
            self._timer = self._clock.callLater(seconds, self._due)

    def _due(self) -> None:
        self._timer = None
        if self._running is None:
            self._begin()

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()


def _none_without_key(failure: Failure) -> None:
    failure.trap(NoKey)
