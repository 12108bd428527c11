"""The configuration: each setting once, with its type, its default, and the place from which it is inherited.

A setting of a step is one line here, and its use. ``schema`` defines the annotations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from aigw.config.prices import NO_PRICES, PricePerMillion, Prices
from aigw.config.proxies import ProxyUrl
from aigw.secret import Secret
from aigw.settings.addresses import ListenAddress, Origin, ProviderPath, QueryName, Url, is_at_or_below
from aigw.settings.bodies import BodyChanges, ConflictResolution, MemberName, Value, changes_of
from aigw.settings.callers import ADMIN, DEFAULT, Caller, Group, KeyDefaults, NamedKey
from aigw.settings.credentials import KEY, Auth, Command, HeaderName, HeaderValue, Key, QueryValue
from aigw.settings.endpoint_names import DefaultName, EndpointName, PathName
from aigw.settings.patterns import RouteName, StepModel
from aigw.settings.route_settings import Hedge, KeepAlive
from aigw.settings.schema import NOT_WRITTEN, POSITION, At, Inherited, Named, Otherwise, Unless, Written
from aigw.settings.store import Instances, StoreUrl
from aigw.settings.tls_files import TlsFiles
from aigw.settings.values import (
    NAME,
    Connections,
    Cooldown,
    Drain,
    Duration,
    FileName,
    Flag,
    Name,
    PerAddress,
    Port,
    Refusal,
    Retries,
    SessionName,
    Size,
    Timeout,
    TotalSize,
    Weight,
)

MIB = 1024 * 1024
KEY_SETTINGS = ("api_key", "api_keys", "key_file", "key_command")  # of a provider, which has at most one of them
SESSION_FROM = ("x-claude-code-session-id", "session_id", "x-session-id", "prompt_cache_key", "user")


def _callers(value: object) -> tuple[Caller, ...]:
    return (Caller(DEFAULT, KEY.decode(value)),)


def _enough_for_one_body(made: Mapping[str, Any]) -> int:
    return max(512 * MIB, int(made["max_body"]))


class Listener(msgspec.Struct, frozen=True):
    """A Twisted server endpoint string; ``insecure`` means plain HTTP there, ``admin`` that it needs no key."""

    endpoint: ListenAddress
    insecure: Flag = False
    admin: Annotated[bool, NOT_WRITTEN] = False


class Provider(msgspec.Struct, frozen=True):
    """An API; ``headers`` go with every request to it, ``ca_file`` replaces the system's CAs, ``legacy_tls`` allows
    cipher suites without forward secrecy or AEAD. ``client_cert`` and ``client_key`` are the gateway's own certificate
    there. The key is ``api_key``, the content of ``key_file``, or what ``key_command`` prints; ``auth`` is the way in
    which it is sent. ``proxy`` is the HTTP proxy through which it is called.

    ``endpoints`` are those that it serves, each with what is below it; all if empty. ``paths`` has the paths of those
    that are not at their usual place, ``query`` is sent with every request; its values may be keys.
    ``ask_usage``: each stream is asked for its usage, and a client that did not ask does not get it.

    Requests are spread over ``api_keys`` by ``balance``."""

    name: Name
    base_url: Url
    api_key: Key | None = None
    key_file: FileName | None = None
    key_command: Command | None = None
    auth: Auth = "bearer"
    headers: dict[HeaderName, HeaderValue] = {}
    ca_file: FileName | None = None
    client_cert: FileName | None = None
    client_key: FileName | None = None
    legacy_tls: Annotated[Flag, At("tls.legacy")] = False
    endpoints: frozenset[EndpointName] = frozenset()
    paths: dict[PathName, ProviderPath] = {}
    query: dict[QueryName, QueryValue] = {}
    api_keys: tuple[Key, ...] = ()
    balance: Literal["sticky", "round_robin", "least_pending"] = "sticky"
    proxy: Annotated[ProxyUrl, Inherited(None)] = None
    ask_usage: Flag = False

    def serves(self, endpoint: str) -> bool:
        """Whether requests to this endpoint, by its path behind ``/v1/``, may be sent to it."""
        return not self.endpoints or any([is_at_or_below(endpoint, each) for each in self.endpoints])

    @property
    def keys(self) -> tuple[Secret | None, ...]:
        """Its keys, at least one; None is sent as no key. A key that may change is not here, but None."""
        return self.api_keys or (self.api_key,)

    @property
    def key_setting(self) -> str | None:
        """The name of the setting that gives its key; None if it has no key."""
        return next((name for name in KEY_SETTINGS if getattr(self, name)), None)

    @property
    def key_header(self) -> str | None:
        """The header in which its key is sent, in lower case; None if no key is sent."""
        if self.auth == "bearer":
            return "authorization"
        return None if self.auth == "none" else self.auth.removeprefix("header:").lower()


class Target(msgspec.Struct, frozen=True):
    """One of several providers and models among which a step chooses; ``weight`` is its share beside the others."""

    provider: Annotated[Provider, Named("providers", NAME)]
    model: StepModel
    weight: Weight = 1.0


class Step(msgspec.Struct, frozen=True):
    """One provider and model to try; limits in seconds, ``number`` counts from 1 within its route.

    ``key`` is the position of the provider's key that is sent, from 0. ``cooldown`` is how long it cools down after
    failures in a row, 0 for never; ``retries`` how often it is repeated. ``max_body`` is the size in bytes of the
    largest request that it is tried for. ``changes`` are those of the body, from ``remove`` and the settings below it.

    A step that is written with ``targets``, or whose provider has several keys, becomes one Step of the same ``number``
    for each target and key, see ``targets``. ``target`` is then the target's position from 1, with its ``weight``, and
    ``key_number`` the key's position from 1. ``counted``: its attempts are counted.
    ``patterns`` are the names of its route, the longest first, if its model has a star.
    """

    number: Annotated[int, POSITION]
    provider: Annotated[Provider, Named("providers", NAME), Unless("targets")]
    model: Annotated[StepModel, Unless("targets")]
    timeout: Annotated[Timeout, Inherited(300.0, top="default_timeout")]
    connect_timeout: Annotated[Timeout, Inherited(10.0)]
    idle_timeout: Annotated[Timeout, Inherited(120.0)]
    cooldown: Annotated[Cooldown, Inherited(60.0)]
    retries: Retries = 0
    remove: tuple[MemberName, ...] = ()
    rename: dict[MemberName, MemberName] = {}
    default: dict[MemberName, Value] = {}
    set: dict[MemberName, Value] = {}
    conflict_resolution: ConflictResolution | None = None
    max_body: Size | None = None
    key: Annotated[int, NOT_WRITTEN] = 0
    targets: tuple[Target, ...] = ()
    balance: Literal["sticky", "weighted", "least_pending"] = "sticky"
    target: Annotated[int, NOT_WRITTEN] = 0
    weight: Annotated[float, NOT_WRITTEN] = 1.0
    key_number: Annotated[int | None, NOT_WRITTEN] = None
    patterns: Annotated[tuple[str, ...], NOT_WRITTEN] = ()
    counted: Annotated[bool, NOT_WRITTEN] = False
    changes: Annotated[BodyChanges | None, NOT_WRITTEN] = None

    def __post_init__(self) -> None:
        """Prepare ``changes``; a copy with another provider has other ones."""
        settings = self.remove, self.rename, self.default, self.set, self.conflict_resolution
        asks = bool(self.provider and self.provider.ask_usage)
        msgspec.structs.force_setattr(self, "changes", changes_of(*settings, asks))


class Route(msgspec.Struct, frozen=True):
    """What a client names in ``model``; ``deadline`` in seconds, over all steps.

    ``also`` has more names of it. A name that ends in a star stands for all names that begin so; ``models`` are those
    of them that are in the list of models.
    ``stop_on`` has the statuses, codes and types of refusals that go to the client instead of to the next step.
    ``when_refused`` is the answer if all steps refused the request: a 502, or the refusal. ``on_context_overflow`` is
    what follows if a step refused it as too long for the model. Where they are None the endpoint decides.
    ``default_for`` has the endpoints whose requests without a ``model`` come here. ``endpoints`` are those that it is
    for, any if empty: only a route for conversations is in the list of models.
    ``hold`` is how much of an answer is held back before it is committed. ``session_from`` names headers and members of
    bodies whose values may name a request's session. ``has_choice``: several of its steps have one number.
    ``limits_bodies``: a step has ``max_body``.
    """

    name: RouteName
    steps: tuple[Step, ...]
    also: tuple[RouteName, ...] = ()
    models: tuple[Name, ...] = ()
    deadline: Duration | None = None
    stop_on: frozenset[Refusal] = frozenset()
    when_refused: Annotated[Literal["report", "pass_on"] | None, Inherited(None)] = None
    on_context_overflow: Annotated[Literal["next", "return"] | None, Inherited(None)] = None
    default_for: frozenset[DefaultName] = frozenset()
    endpoints: frozenset[EndpointName] = frozenset()
    hold: Literal["first_output", "whole"] = "first_output"
    keepalive: KeepAlive | None = None
    hedge: Hedge | None = None
    session_from: Annotated[tuple[SessionName, ...], Inherited(SESSION_FROM)] = SESSION_FROM
    has_choice: Annotated[bool, NOT_WRITTEN] = False
    limits_bodies: Annotated[bool, NOT_WRITTEN] = False

    def __post_init__(self) -> None:
        """Note once what each request would have to look for."""
        limited = any([step.max_body is not None for step in self.steps])
        msgspec.structs.force_setattr(self, "limits_bodies", limited)


class UsageSettings(msgspec.Struct, frozen=True):
    """The file with one line for each request, for accounting. ``rotate``: each day (UTC) has a file of its own."""

    file: FileName
    rotate: Literal["day"] | None = None


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The whole configuration. ``callers`` are all who may call: the one with ``api_key``, and those of ``keys`` and
    of the ``keys_file``, with their ``defaults`` and ``groups``. ``listeners`` is empty where the file names none:
    ``port`` on every address with TLS, on loopback without. ``max_body`` is for one request, ``max_bodies`` for all
    under way, ``max_held`` for all answers that are held until they are whole, in bytes. ``max_connections`` in all,
    ``max_per_address`` if that is limited; ``keep_alive``, between two requests, and ``drain`` in seconds. Pages of
    ``cors_origins`` may call the gateway. ``prices`` is the file of ``price_list``; ``unknown_price``, in USD per
    million tokens, is that of other models. ``store`` has the limits of all ``instances``. ``literal_keys`` are those
    of callers that a file holds, but for those of the gateway's own form, ``secrets`` all keys that are known, for
    redaction; ``warnings`` and those about the keys_file, which is read alone too, are for the log, in which each
    request has its client's address if ``log_client_address``; ``places`` has file and line of settings whose values
    are tried out later, by path."""

    callers: Annotated[tuple[Caller, ...], At("api_key"), Written(_callers, KEY.advice, secret=True)] = ()
    providers: dict[str, Provider]
    routes: dict[str, Route]
    port: Port = 8080
    listeners: Annotated[tuple[Listener, ...], At("listen")] = ()
    admin: Listener | None = None
    tls: TlsFiles | None = None
    drain: Drain = 30.0
    max_body: Annotated[Size, At("limits.body")] = 32 * MIB
    max_bodies: Annotated[TotalSize, At("limits.bodies"), Otherwise(_enough_for_one_body)]
    max_connections: Annotated[Connections, At("limits.connections")] = 2000
    max_per_address: Annotated[PerAddress, At("limits.connections_per_address")] = None
    cors_origins: Annotated[frozenset[Origin], At("cors.origins")] = frozenset()
    keep_alive: Annotated[Duration, At("limits.keep_alive")] = 75.0
    max_held: Annotated[TotalSize, At("limits.held")] = 64 * MIB
    log_client_address: Annotated[Flag, At("log.client_address")] = True
    prices: FileName | None = None
    usage: UsageSettings | None = None
    state: FileName | None = None
    unknown_price: PricePerMillion | None = None
    price_list: Annotated[Prices, NOT_WRITTEN] = NO_PRICES
    admin_key: Key | None = None
    groups: dict[str, Group] = {}
    defaults: KeyDefaults | None = None
    keys: tuple[NamedKey, ...] = ()
    keys_file: FileName | None = None
    store: StoreUrl = None
    instances: Instances = 2
    on_store_failure: Literal["local", "refuse"] = "local"
    literal_keys: Annotated[tuple[Secret, ...], NOT_WRITTEN] = ()
    secrets: Annotated[tuple[Secret, ...], NOT_WRITTEN] = ()
    warnings: Annotated[tuple[str, ...], NOT_WRITTEN] = ()
    warnings_of_keys_file: Annotated[tuple[str, ...], NOT_WRITTEN] = ()
    places: Annotated[dict[str, str], NOT_WRITTEN] = {}

    @property
    def admins(self) -> tuple[Caller, ...]:
        """Who may see the pages with a key: who has ``admin_key`` or, without one, ``api_key``."""
        if self.admin_key is not None:
            return (Caller(ADMIN, self.admin_key),)
        return tuple(caller for caller in self.callers if caller.key is not None)

    @property
    def keeps_accounts(self) -> bool:
        """Whether it is recorded what each caller uses."""
        return bool(self.prices or self.usage or self.unknown_price is not None)

    @property
    def counts_callers(self) -> bool:
        """Whether requests are counted by caller."""
        return bool(self.keeps_accounts or self.keys or self.keys_file)

    @property
    def has_hashed_keys(self) -> bool:
        """Whether there are callers of whose keys only the hashes are known."""
        return any(caller.proofs for caller in self.callers)

    def located(self, mistake: str) -> str:
        """``PATH: TEXT``, found after the file was read, with file and line before it."""
        place = self.places.get(mistake.partition(": ")[0])
        return f"{place}: {mistake}" if place else mistake
