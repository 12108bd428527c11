"""What an explanation has in it: names and sizes, and values only of what the settings put there."""

from __future__ import annotations

from typing import Literal

import msgspec


class Change(msgspec.Struct, frozen=True, omit_defaults=True):
    """One member of the body that a step gets in another way. ``value`` is there if the settings give it.

    ``size`` is that of the client's value in bytes. ``to`` is the new name of a member that is renamed.
    """

    member: str
    change: Literal["added", "removed", "renamed", "replaced"]
    size: int | None = None
    value: msgspec.Raw | None = None
    to: str | None = None


class ExplainedStep(msgspec.Struct, frozen=True):
    """One step, in the order in which it would be tried.

    ``cools_down_s`` is None if it does not cool down now. ``probe``: its cooldown is over, and it has not answered
    since. ``bytes`` is the size of its body. ``target`` and ``key`` are positions from 1, where a step has several;
    ``choice`` is how they are chosen.
    """

    step: int
    provider: str
    model: str
    url: str
    bytes: int
    changes: list[Change]
    cools_down_s: int | None = None
    probe: bool = False
    target: int | None = None
    key: int | None = None
    choice: str | None = None


class PassedOver(msgspec.Struct, frozen=True):
    """A step that would not be tried."""

    step: int
    provider: str
    model: str
    reason: str


class Refused(msgspec.Struct, frozen=True):
    """The error that the client would get at once."""

    status: int
    type: str
    code: str | None
    message: str


class Explained(msgspec.Struct):
    """A request: ``model`` is what it names, ``members`` are the first of its body with their sizes in bytes.

    ``found_by``: the route has this name, or another name (``also``), or a name with a star, which stands for ``star``;
    or the request names none, and the route is the default of its endpoint. ``name`` is that name.
    ``cooldowns_known`` is False where no gateway runs. ``session`` is what names the session of the request, if a step
    is chosen by it.
    """

    endpoint: str
    cooldowns_known: bool
    bytes: int = 0
    members: dict[str, int] = {}
    model: str | None = None
    stream: bool = False
    route: str | None = None
    found_by: Literal["name", "also", "pattern", "default_for"] | None = None
    name: str | None = None
    star: str | None = None
    session: str | None = None
    notes: list[str] = []
    steps: list[ExplainedStep] = []
    passed_over: list[PassedOver] = []
    error: Refused | None = None
