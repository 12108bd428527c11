"""The reactor as the process has it: with the parts that each room needs."""

from __future__ import annotations

from aigw.net import interfaces
from aigw.telemetry.tracing import TelemetryReactor
from aigw.upstream.connector import ConnectorReactor


class ProcessReactor(interfaces.Reactor, ConnectorReactor, TelemetryReactor):
    """The reactor of the process."""
