"""The accounts of one process: what each attempt is charged, by the present prices, and a line for each request."""

from __future__ import annotations

import time
from collections.abc import Callable

from aigw.accounting.line import line_of
from aigw.accounting.price_file import PriceFile
from aigw.accounting.usage_file import UsageFile
from aigw.config.model import Config, Step
from aigw.config.prices import NO_PRICES, Prices
from aigw.protocols.charges import Usage, charged_tokens, cost
from aigw.telemetry import logs
from aigw.telemetry.record import Charge, MakeCharge, Record
from aigw.telemetry.tracing import TelemetryReactor


class Accounts:
    """Stays the same over every reload. ``prices`` may be replaced at any time."""

    def __init__(self, reactor: TelemetryReactor, wall: Callable[[], float] = time.time) -> None:
        """``wall`` is the clock of the lines, in Unix seconds."""
        self.prices: Prices = NO_PRICES
        self._wall = wall
        self._price_file = PriceFile(reactor, self._take)
        self._file: UsageFile | None = None
        self._started = False

    def use(self, config: Config) -> None:
        """Keep accounts by this configuration from now on."""
        self.prices = config.price_list
        self._price_file.use(config.prices)
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
        if self._file is not None:
            self._file.start()

    def finish(self) -> None:
        """Write the lines that wait; for the end of the process."""
        self._price_file.stop()
        if self._file is not None:
            self._file.finish()

    @property
    def lost(self) -> int:
        """How many lines could not be written since the start."""
        return 0 if self._file is None else self._file.lost

    def charge_for(self, config: Config) -> MakeCharge | None:
        """What makes the charges of requests with this configuration; None if it keeps no accounts."""
        return self._charge if config.keeps_accounts else None

    def write(self, record: Record) -> None:
        """Write the line of a request whose caller is known."""
        if record.caller and self._file is not None:
            self._file.write(line_of(record, self._wall()))

    def _charge(self, step: Step, usage: Usage, outcome: str) -> Charge:
        provider, model = step.provider.name, step.model
        charged = cost(self.prices, provider, model, usage)
        return Charge(provider, model, charged_tokens(usage), charged, priced_as=step.model)

    def _take(self, prices: Prices) -> None:
        if prices != self.prices:
            self.prices = prices
            logs.info(f"The gateway has taken new prices, for {sum(map(len, prices.models.values()))} models")
