"""The accounts of one process: what each attempt is charged, by the present prices, and a line for each request."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Protocol

import msgspec

from aigw.accounting.line import line_of
from aigw.accounting.price_file import PriceFile
from aigw.accounting.usage_file import UsageFile
from aigw.config.model import Config, Step
from aigw.config.prices import NO_PRICES, Prices, unpriced_budgets
from aigw.protocols.charges import Usage, charged_tokens, cost
from aigw.telemetry import logs
from aigw.telemetry.pricing import Charge
from aigw.telemetry.record import Record
from aigw.telemetry.tracing import TelemetryReactor


class KeptStore(Protocol):
    """What callers have used of their limits."""

    def use(self, config: Config) -> None:
        """Limits are those of this configuration from now on."""

    def start(self) -> None:
        """The process has forked, and no request was admitted yet."""

    def finish(self) -> None:
        """The process ends."""


class Accounts:
    """Stays the same over every reload. ``prices`` may be replaced at any time."""

    def __init__(
        self, reactor: TelemetryReactor, wall: Callable[[], float] = time.time, store: KeptStore | None = None
    ) -> None:
        """``wall`` is the clock of the lines, in Unix seconds. ``store`` begins and ends with the accounts."""
        self._store = store
        self.prices: Prices = NO_PRICES
        self._wall = wall
        self._price_file = PriceFile(reactor, self._take)
        self._file: UsageFile | None = None
        self._started = False
        self._config: Config | None = None

    def use(self, config: Config) -> None:
        """Keep accounts by this configuration from now on."""
        self._config, self.prices = config, config.price_list
        self._price_file.use(config.prices)
        if self._store is not None:
            self._store.use(config)
        if config.usage is not None:
            self._file = self._file or UsageFile(self._wall)
            self._file.use(config.usage.file, config.usage.rotate == "day")
            if self._started:
                self._file.start()
        elif self._file is not None:
            self._file.leave()

    def start(self) -> None:
        """Check for new prices, and start the thread that writes the file; after the process has forked."""
        self._started = True
        self._price_file.start()
        if self._store is not None:
            self._store.start()
        if self._file is not None:
            self._file.start()

    def finish(self) -> None:
        """Write the lines that wait; for the end of the process."""
        self._price_file.stop()
        if self._store is not None:
            self._store.finish()
        if self._file is not None:
            self._file.finish()

    @property
    def lost(self) -> int:
        """How many lines could not be written since the start."""
        return 0 if self._file is None else self._file.lost

    def charge(self, provider: str, model: str, usage: Usage, estimated: bool = False) -> Charge:
        """See Pricing."""
        charged, tokens, unknown = cost(self.prices, provider, model, usage), charged_tokens(usage), self.prices.unknown
        if charged is None and tokens and unknown is not None:
            return Charge(provider, model, tokens, unknown.cost(tokens), True, False)
        return Charge(provider, model, tokens, charged, estimated, charged is not None)

    def dearest(self, steps: Iterable[Step], tokens: Mapping[str, int]) -> Decimal:
        """See Pricing."""
        prices = [self.prices.of(step.provider.name, step.model) or self.prices.unknown for step in steps]
        return max([price.cost(tokens) or Decimal(0) for price in prices if price is not None], default=Decimal(0))

    def write(self, record: Record) -> None:
        """Write the line of a request whose caller is known."""
        if record.caller and self._file is not None:
            self._file.write(line_of(record, self._wall()))

    def _take(self, prices: Prices) -> None:
        prices = msgspec.structs.replace(prices, unknown=self.prices.unknown)
        config = self._config and msgspec.structs.replace(self._config, price_list=prices)
        if mistakes := list(unpriced_budgets(config)) if config else []:
            logs.error(
                "The gateway did not take the new prices: budgets need those that are missing", mistakes=mistakes
            )
        elif prices != self.prices:
            self.prices = prices
            logs.info(f"The gateway has taken new prices, for {sum(map(len, prices.models.values()))} models")
