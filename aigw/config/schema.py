"""The schema of the configuration file: what may stand in it.

Each name in an ``*Entry`` is a setting; nothing else is one. ``notation`` says how its value is written.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from aigw.config.values import (
    Connections,
    Cooldown,
    DrainSeconds,
    Duration,
    FileName,
    HeaderName,
    ListenAddress,
    Name,
    PerAddress,
    Port,
    Refusal,
    Retries,
    Size,
    TotalSize,
    Url,
)
from aigw.secret import Secret


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Refuses every name that it does not list."""


class CertificateEntry(_Entry, frozen=True):
    """A certificate chain and its key, both PEM."""

    cert_file: FileName
    key_file: FileName


class TlsEntry(CertificateEntry, frozen=True):
    """The default certificate, others by the name that a client asks for, and whether clients must show their own."""

    certificates: tuple[CertificateEntry, ...] = ()
    client_ca: FileName | None = None
    client_certificate: Literal["required", "optional"] | None = None


class ListenerEntry(_Entry, frozen=True):
    """A Twisted server endpoint string; ``insecure`` means plain HTTP there."""

    endpoint: ListenAddress
    insecure: bool = False


class ProviderTlsEntry(_Entry, frozen=True):
    """With ``legacy`` a provider may use cipher suites without forward secrecy or AEAD."""

    legacy: bool = False


class ProviderEntry(_Entry, frozen=True):
    """An OpenAI-compatible API; ``headers`` go with every request to it, ``ca_file`` replaces the system's CAs."""

    name: Name
    base_url: Url
    api_key: Secret | None = None
    headers: dict[HeaderName, Secret] = {}
    ca_file: FileName | None = None
    tls: ProviderTlsEntry = ProviderTlsEntry()


class StepEntry(_Entry, frozen=True):
    """One step of a route as written; the limits that it leaves out are inherited."""

    provider: Name
    model: Name
    timeout: Duration | None = None
    connect_timeout: Duration | None = None
    idle_timeout: Duration | None = None
    cooldown: Cooldown | None = None
    retries: Retries = Retries(0)
    conflict_resolution: Literal["tools", "format"] | None = None


class RouteEntry(_Entry, frozen=True):
    """A route as written; its limits hold for the steps that name none."""

    name: Name
    steps: tuple[StepEntry, ...]
    timeout: Duration | None = None
    connect_timeout: Duration | None = None
    idle_timeout: Duration | None = None
    deadline: Duration | None = None
    cooldown: Cooldown | None = None
    stop_on: tuple[Refusal, ...] | None = None


class LimitsEntry(_Entry, frozen=True):
    """What a client may send at most, how large all bodies under way may be together, and how many connections there
    may be, in all and of one address."""

    body: Size = Size(32 * 1024 * 1024)
    bodies: TotalSize | None = None
    connections: Connections = Connections(2000)
    connections_per_address: PerAddress = PerAddress(0)


class LogEntry(_Entry, frozen=True):
    """What the log says of each request: with ``client_address`` also where it came from."""

    client_address: bool = True


class FileEntry(_Entry, frozen=True):
    """The whole file as written."""

    api_key: Secret
    providers: tuple[ProviderEntry, ...]
    routes: tuple[RouteEntry, ...]
    port: Port
    listen: tuple[ListenerEntry, ...] | None = None
    admin: ListenerEntry | None = None
    tls: TlsEntry | None = None
    default_timeout: Duration = Duration(300)
    connect_timeout: Duration = Duration(10)
    idle_timeout: Duration = Duration(120)
    cooldown: Cooldown = Cooldown(60)
    drain: DrainSeconds = DrainSeconds(30)
    limits: LimitsEntry = LimitsEntry()
    log: LogEntry = LogEntry()
