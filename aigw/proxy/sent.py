"""A call that was sent to the first step of its route before it had an exchange. See the room ``straight``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from aigw.config.model import Route, Step
from aigw.protocols.endpoint import Call
from aigw.proxy.relay import Relay
from aigw.upstream.connection import Connection
from aigw.upstream.response import Response

if TYPE_CHECKING:
    from aigw.proxy.exchange import Exchange


class SentTo(Protocol):
    """Where it was sent."""

    @property
    def route(self) -> Route:
        """Its route."""

    @property
    def step(self) -> Step:
        """The first step of the route."""


class Sent(Protocol):
    """The call. ``received`` is when its request was whole, ``waiting_since`` when it was sent.

    Until the commit point its answer has ``seconds_left``. From then on there is the ``first_byte``, which is the time
    of the commit point, with the ``response``, whose body ``relay`` carries.
    """

    seconds_left: float
    exchange: Exchange | None

    @property
    def plan(self) -> SentTo:
        """Where it was sent."""

    @property
    def call(self) -> Call:
        """What was sent."""

    @property
    def connection(self) -> Connection:
        """On which it was sent."""

    @property
    def received(self) -> float:
        """In seconds, on the gateway's clock."""

    @property
    def waiting_since(self) -> float:
        """In seconds, on the gateway's clock."""

    @property
    def first_byte(self) -> float:
        """In seconds, on the gateway's clock."""

    @property
    def response(self) -> Response | None:
        """The head of the answer, from the commit point on."""

    @property
    def relay(self) -> Relay | None:
        """What carries the body."""
