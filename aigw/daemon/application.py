"""The application and the reactor that twistd gives to the service."""

from __future__ import annotations

from typing import TypeAlias

from twisted.application.service import IServiceCollection
from twisted.logger import ILogObserver
from twisted.python.components import Componentized

from aigw.net.interfaces import Reactor
from aigw.telemetry.tracing import TelemetryReactor


class ProcessReactor(Reactor, TelemetryReactor):
    """The reactor, with all that the gateway uses of it."""


Parent: TypeAlias = "IServiceCollection | Componentized"
"""Of a service: another service, or the application, which is a Componentized."""


def use_observer(parent: Parent, observer: ILogObserver | None) -> None:
    """Set the log observer of the application, which twistd reads when it has set the service's parent."""
    if observer is not None and isinstance(parent, Componentized):
        parent.setComponent(ILogObserver, observer)
