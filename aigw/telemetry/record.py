"""The record of one request, from which every log line is made. It holds sizes and names, no content.

Each field is defined here, once. Only a field of type ``Logged`` or ``Public`` is in a log line. A ``RecordBuilder`` is
filled while the request runs; its ``record`` makes the frozen Record that a sink gets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import lru_cache
from operator import attrgetter
from typing import Annotated, ClassVar, TypeVar, get_args, get_type_hints
from urllib.parse import quote, urlsplit

import msgspec

from aigw.config.model import Step
from aigw.config.prices import EXACT
from aigw.key_forms import shortened
from aigw.protocols.charges import CommonCounts, common_counts
from aigw.settings.addresses import MODEL, joined, path_at, socket_of
from aigw.telemetry.pricing import Charge, Pricing
from aigw.telemetry.trace_context import Trace

MAX_REQUESTED_MODEL = 64
MAX_SESSION = 128
_SHORT_WORD = re.compile(r"[A-Za-z0-9_.-]{1,40}")

HEDGES = ("won", "lost", "no_answer", "over_share")

T = TypeVar("T")
Logged = Annotated[T, "log"]
Public = Annotated[T, "log", "client"]  # a client sees it too, in an error that the gateway itself writes
LoggedIfSet = Annotated[T, "log", "if set"]  # in the line of a request only if it has a value


class AttemptRecord(msgspec.Struct, frozen=True):
    """One attempt: its result and how many milliseconds it took. ``message`` is the gateway's text.

    ``rests_s`` is how many seconds the step cools down because of it. ``host`` and ``path`` are of the URL that was
    called. ``code`` is the provider's code for the failure, if that is one short word.
    """

    key_number: ClassVar[int | None] = None

    step: Public[int]
    provider: Public[str]
    model: Public[str]
    outcome: Public[str]
    status: Public[int | None]
    duration_ms: Public[int]
    message: Public[str]
    rests_s: Logged[int | None] = None
    host: Logged[str] = ""
    path: Logged[str] = ""
    code: Logged[str | None] = None


class KeyAttemptRecord(AttemptRecord, frozen=True):
    """One at a provider with several keys: ``key_number`` is the position of the key that was sent, from 1."""

    key_number: Public[int] = 0  # type: ignore[misc]  # a field in place of a class variable


class Skipped(msgspec.Struct, frozen=True):
    """A step that was skipped. ``reason`` is one of ``cooling_down``, ``key_refused``, ``endpoint_not_served``,
    ``too_large``.

    ``cooling_down``: ``until`` is the end of the cooldown in Unix seconds. ``key_refused``: the provider has refused
    the same key in an attempt of another step, or there is none for it. ``endpoint_not_served``: the ``endpoints`` of
    its provider do not have that of the request. ``too_large``: the request is over the step's ``max_body``.
    """

    step: Logged[int]
    reason: Logged[str]
    until: Logged[int | None] = None


class Facts(msgspec.Struct):
    """The facts about a request that exist while it runs and after it.

    ``client_address`` is None if addresses are not logged. ``requested_model`` is what the client wrote, bounded.
    ``step``, ``provider`` and ``model`` are those that answered. ``outcome`` is ``client_gone`` if the client closed
    the connection, and ``draining`` if the gateway stopped in the middle of an answer. ``error`` is the code of the
    gateway's own error, or its type, and the member of the request that the error names. ``usage`` is what the
    provider reported, never an estimate. ``dropped`` names the members of the request that the answering step did not
    get. ``started`` is on the gateway's clock, in seconds. ``keepalives`` is the number of keep-alives that were
    written. ``held`` is the time between the first output and the commit point, in seconds; None if they are the same.
    ``hedge`` is the result of a second attempt beside a slow one: one of HEDGES, None if none was due. The attempt that
    answered had ``key_number``, if its provider has several keys. ``charges`` are of all attempts whose use is known,
    if accounts are kept; ``cost`` is the sum of their known costs in USD, ``estimated`` whether one of them, or what
    was charged to a limit of the caller, is estimated.
    """

    request_id: str
    method: Logged[str]
    path: Logged[str]
    started: float
    caller: Logged[str] = ""
    client_address: Logged[str | None] = None
    requested_model: Logged[str | None] = None
    route: Logged[str | None] = None
    step: Logged[int | None] = None
    provider: Logged[str | None] = None
    model: Logged[str | None] = None
    stream: Logged[bool] = False
    outcome: Logged[str] = "ok"
    error: Logged[str | None] = None
    bytes_in: Logged[int] = 0
    bytes_out: Logged[int] = 0
    usage: Logged[dict[str, int]] = {}
    dropped: Logged[tuple[str, ...]] = ()
    keepalives: Logged[int] = 0
    held: float | None = None
    hedge: Logged[str | None] = None
    key_number: int | None = None
    trace: Trace | None = None
    cost: LoggedIfSet[Decimal | None] = None
    estimated: LoggedIfSet[bool] = False
    charges: tuple[Charge, ...] = ()


class Record(Facts, frozen=True, kw_only=True):  # type: ignore[misc]  # a rule of dataclasses, not of msgspec
    """The result of one request.

    ``status`` is what the client got, or 499 if the client closed the connection. ``ttft_ms`` is the time to the first
    byte of the answer; ``ttft`` is the same in seconds, ``held_ms`` is ``held`` in milliseconds. ``ended`` is on the
    gateway's clock, in seconds. ``overhead`` is the duration without the time to read the request's body and without
    the time of providers, in seconds. ``common`` are the ``common_counts`` of the
    usage, if there are no charges and no accounts.
    """

    attempts: Logged[tuple[AttemptRecord, ...]]
    status: Logged[int]
    duration_ms: Logged[int]
    skipped: Logged[tuple[Skipped, ...]] = ()
    ttft_ms: Logged[int | None] = None
    held_ms: Logged[int | None] = None
    ended: float = 0.0
    ttft: float | None = None
    overhead: float = 0.0
    session: str | None = None
    common: CommonCounts | None = None


Sink = Callable[[Record], None]
AttemptSink = Callable[[str, str, AttemptRecord], None]


class RecordBuilder(Facts, kw_only=True):
    """The record of a request that still runs.

    ``seconds`` is the clock, ``received`` the time when the request's body was complete, and ``waited`` how many
    seconds the providers took, without those since ``waiting_since``. ``pricing`` is there if accounts are kept.
    ``session`` is what the request itself names, on routes that choose a step by it; it is content of the client, so
    the Record has it only for the accounts.
    """

    seconds: Callable[[], float]
    pricing: Pricing | None = None
    attempts: list[AttemptRecord] = []
    skipped: tuple[Skipped, ...] = ()
    tried: int = 0
    first_byte: float | None = None
    received: float = 0.0
    waited: float = 0.0
    waiting_since: float = 0.0
    sent_model: str = ""
    session: str | None = None

    def answered_by(self, step: Step, dropped: tuple[str, ...] = (), sent_model: str = "") -> None:
        """Note the step that answers. ``dropped`` names the members of the request that the step did not get.
        ``sent_model`` is what the provider got; a step's model with a star has more of them than a record may name."""
        self.step, self.provider, self.model = step.number, step.provider.name, step.model
        self.key_number = step.key_number
        self.dropped, self.sent_model = dropped, sent_model

    def skip(self, step: Step, reason: str, until: float | None = None) -> None:
        """Note that this step was skipped; only the first reason counts. One that was tried by another key was not."""
        if step.number not in [*(each.step for each in self.skipped), *(each.step for each in self.attempts)]:
            self.skipped += (Skipped(step.number, reason, None if until is None else round(until)),)

    def add(self, charge: Charge) -> None:
        """Note what one attempt used."""
        self.charges += (charge,)
        self.estimated = self.estimated or charge.estimated
        if charge.cost is not None:
            self.cost = charge.cost if self.cost is None else EXACT.add(self.cost, charge.cost)

    def record(self, status: int) -> Record:
        """Make the record; the request has ended."""
        if self.requested_model is not None:
            self.requested_model = requested(self.requested_model)
        ended, ttft = self.seconds(), None if self.first_byte is None else self.first_byte - self.started
        return Record(
            *_facts_of(self),
            attempts=tuple(self.attempts),
            status=status,
            duration_ms=milliseconds(ended - self.started),
            skipped=self.skipped,
            ttft_ms=None if ttft is None else milliseconds(ttft),
            held_ms=None if self.held is None else milliseconds(self.held),
            ended=ended,
            ttft=ttft,
            overhead=ended - self.received - self.waited,
            session=None if self.session is None or self.pricing is None else requested(self.session, MAX_SESSION),
            common=common_counts(self.usage) if self.usage and not self.charges and self.pricing is None else None,
        )


_facts_of = attrgetter(*Facts.__struct_fields__)


def names_for(kind: type[msgspec.Struct], reader: str) -> tuple[str, ...]:
    """The names of the fields of a Struct that a ``reader``, ``log`` or ``client``, may see."""
    hints = get_type_hints(kind, include_extras=True)
    return tuple(name for name in kind.__struct_fields__ if reader in get_args(hints[name])[1:])


def texts_for(kind: type[msgspec.Struct]) -> tuple[str, ...]:
    """The names of the fields of a Struct that are logged and hold a text; ``request_id`` is not among them."""
    hints = get_type_hints(kind)
    return tuple(name for name in names_for(kind, "log") if hints[name] in (str, str | None))


_RECORD = tuple(name for name in names_for(Record, "log") if name not in names_for(Record, "if set"))
_ATTEMPT_OF_CLIENTS = names_for(AttemptRecord, "client")
_values_of = attrgetter(*_RECORD)


def attempt_for_client(attempt: AttemptRecord) -> dict[str, object]:
    """The fields of an attempt that a client may see."""
    shown = {name: getattr(attempt, name) for name in _ATTEMPT_OF_CLIENTS}
    return shown if attempt.key_number is None else {**shown, "key_number": attempt.key_number}


def attempt_for_log(attempt: AttemptRecord) -> dict[str, object]:
    """The fields of the log line of a failed attempt."""
    return msgspec.structs.asdict(attempt)


def for_log(record: Record) -> dict[str, object]:
    """The fields of the log line of a request. Attempts and skipped steps stay Structs: all their fields are logged."""
    fields: dict[str, object] = dict(zip(_RECORD, _values_of(record), strict=True))
    if record.cost is not None:
        fields["cost"] = float(record.cost)
    if record.estimated:
        fields["estimated"] = True
    if record.key_number is not None:
        fields["key_number"] = record.key_number
    return fields


def milliseconds(seconds: float) -> int:
    """Seconds as whole milliseconds."""
    return round(seconds * 1000)


def requested(name: str, most: int = MAX_REQUESTED_MODEL) -> str:
    """A client's ``model`` or session for the log: ``most`` characters, with ``?`` for each that is not printable."""
    if len(name) > most:
        name = shortened(name, most)
    return name if name.isprintable() else "".join([each if each.isprintable() else "?" for each in name])


def called(step: Step, endpoint: str) -> tuple[str, str]:
    """See host_and_path, for a provider with ``paths``. It is not kept, because a client may have chosen the model."""
    provider = step.provider
    path = path_at(provider.paths, endpoint).replace(MODEL, quote(step.model, safe=""))
    return _split(joined(provider.base_url, path))


@lru_cache(maxsize=8192)
def host_and_path(base_url: str, endpoint: str) -> tuple[str, str]:
    """The host of a provider's base URL, with its port if one is given, and the path of an endpoint below that URL.

    In place of the host of a Unix socket there is ``unix:`` and its file. There is no query, which may hold a key.
    """
    return _split(f"{base_url}/{endpoint}")


def _split(url: str) -> tuple[str, str]:
    socket, parts = socket_of(url), urlsplit(url)
    return f"unix:{socket}" if socket else parts.netloc.rpartition("@")[2], parts.path


def short_word(words: Sequence[str]) -> str | None:
    """The first of ``words`` that is one short word, with no space in it; None if there is none."""
    return next((word for word in words if _SHORT_WORD.fullmatch(word)), None)
