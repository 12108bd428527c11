"""What accounts have used, as the store knows it: looks that change nothing."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from aigw.settings.callers import Account
from aigw.store.scripts import USAGE
from aigw.store.store_state import ShortLimit, StoreState
from aigw.store.stored_accounts import Described, Share, numbers_in

MOST_LOOKS = 200  # in a second


class StoredUsage:
    """Asks the store; while it is away ``share`` knows what this process has by itself."""

    def __init__(self, clock: IReactorTime, state: StoreState, described: Described, share: Share) -> None:
        self._clock = clock
        self._state = state
        self._described = described
        self._share = share
        self._known: dict[str, dict[str, object]] = {}  # as the store answered last
        self._wanted: dict[str, Account] = {}  # of whom that was asked since then

    def usage_of(self, account: Account) -> dict[str, object] | Deferred[dict[str, object]]:
        """See Store."""
        if not self._state.is_up:
            return self._share.usage_of(account)
        keys, args = self._described.of((account,))
        result: Deferred[dict[str, object]] = Deferred(lambda _: None)

        def instead() -> None:
            if not result.called:
                result.callback(self._share.usage_of(account))

        def answered(line: str) -> None:
            limit.stop()
            shown = self._known[account.name] = self._described.shown(account, numbers_in(line))
            if not result.called:
                result.callback(shown)

        def failed(failure: Failure) -> None:
            limit.stop()
            self._state.failed(failure)
            instead()

        limit = ShortLimit(self._clock, instead)
        self._state.run(USAGE, keys, args[1:]).addCallback(answered).addErrback(failed)
        return result

    def known_usage_of(self, account: Account) -> dict[str, object]:
        """See Store. ``refresh`` asks for it."""
        self._wanted[account.name] = account
        known = self._known.get(account.name) if self._state.is_up else None
        return known or self._share.usage_of(account)

    def refresh(self) -> None:
        """Ask the store for what was wanted since the last time, of MOST_LOOKS accounts; to be called each second."""
        for name in list(self._wanted)[:MOST_LOOKS]:
            self.usage_of(self._wanted.pop(name))
