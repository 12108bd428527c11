"""What a configuration means once it is read: frozen values, names resolved, limits inherited."""

from __future__ import annotations

from typing import Literal

import msgspec

from aigw.secret import Secret


class Caller(msgspec.Struct, frozen=True):
    """Somebody with a key to this gateway."""

    name: str
    key: Secret


class CertificateFiles(msgspec.Struct, frozen=True):
    """A certificate chain and its key, both PEM."""

    cert_file: str
    key_file: str


class TlsFiles(CertificateFiles, frozen=True):
    """The listeners' default certificate, and ``others``, chosen by SNI.

    With a ``client_ca`` clients may show a certificate of it, and must if ``client_required``.
    """

    others: tuple[CertificateFiles, ...] = ()
    client_ca: str | None = None
    client_required: bool = False


class Listener(msgspec.Struct, frozen=True):
    """A Twisted server endpoint string; ``insecure`` means plain HTTP there, ``admin`` that no key is asked for."""

    endpoint: str
    insecure: bool = False
    admin: bool = False


class Provider(msgspec.Struct, frozen=True):
    """An OpenAI-compatible API; ``headers`` go with every request to it, ``ca_file`` replaces the system's CAs,
    ``legacy_tls`` allows old cipher suites."""

    name: str
    base_url: str
    api_key: Secret | None
    headers: dict[str, Secret]
    ca_file: str | None
    legacy_tls: bool = False


class Step(msgspec.Struct, frozen=True):
    """One provider and model to try; limits in seconds, ``number`` counts from 1 within its route.

    ``cooldown`` is how long it rests after failures in a row, 0 for never; ``retries`` how often it is repeated.
    """

    number: int
    provider: Provider
    model: str
    timeout: float
    connect_timeout: float
    idle_timeout: float
    cooldown: float
    retries: int
    conflict_resolution: Literal["tools", "format"] | None


class Route(msgspec.Struct, frozen=True):
    """What a client names in ``model``; ``deadline`` in seconds, over all steps.

    ``stop_on`` has the statuses, codes and types of refusals that go to the client instead of to the next step.
    """

    name: str
    steps: tuple[Step, ...]
    deadline: float | None
    stop_on: frozenset[str]


class Config(msgspec.Struct, frozen=True):
    """Everything the gateway runs by. ``listeners`` is empty where the file names none: ``port`` on every address
    with TLS, on loopback without. ``max_body`` is for one request, ``max_bodies`` for all under way, in bytes.
    ``max_connections`` in all, ``max_per_address`` if that is limited; ``drain`` in seconds. ``secrets`` are all keys,
    for redaction; ``warnings`` are for the log, in which each request has its client's address if
    ``log_client_address``."""

    port: int
    listeners: tuple[Listener, ...]
    admin: Listener | None
    tls: TlsFiles | None
    callers: tuple[Caller, ...]
    providers: dict[str, Provider]
    routes: dict[str, Route]
    max_body: int
    max_bodies: int
    max_connections: int
    max_per_address: int | None
    drain: float
    secrets: tuple[Secret, ...]
    warnings: tuple[str, ...]
    log_client_address: bool = True
