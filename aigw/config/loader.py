"""The configuration: one YAML file to frozen Structs, every mistake reported at once.

``conf/config.yaml`` documents each setting, ``schema`` says what may stand in the file. ``load`` reads it and
resolves it: limits that a step leaves out come from its route, then from the top; names become objects.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from aigw.config.cross_checks import crossed
from aigw.config.file_mode import holds_literal_key, is_secret, judge_permissions
from aigw.config.schema import CertificateEntry, FileEntry, RouteEntry, StepEntry
from aigw.config.values import admin_endpoint, decode
from aigw.config.yaml_tree import expand, mistakes_in, parse
from aigw.errors import ConfigError
from aigw.secret import Secret

PLACES = ("config.yaml", "/etc/ai-gateway/config.yaml")
MAX_FILE = 1024 * 1024
SHORT_KEY = 8
GUESSED_KEY = 20
BODIES = 512 * 1024 * 1024


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
    for redaction; ``warnings`` are for the log."""

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


def find(path: str | None) -> Path:
    """The file to read: ``path``, else the first of ``PLACES`` that exists. Raises ConfigError."""
    for place in [path] if path else PLACES:
        if os.path.isfile(place):
            return Path(place)
    raise ConfigError([f"no configuration file: looked for {path or ' and '.join(PLACES)}; name one with -c FILE"])


def load(path: Path, environ: Mapping[str, str]) -> Config:
    """Read, check and resolve ``path``. Raises ConfigError with every mistake in it."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(MAX_FILE + 1)
        text = data.decode()
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: is not UTF-8"]) from None
    if len(data) > MAX_FILE:
        raise ConfigError([f"{path}: is over {MAX_FILE} bytes; that is no configuration file"])
    tree, mistakes = parse(text)
    if tree is None:
        raise ConfigError(mistakes or [f"{path}: is empty; api_key, providers and routes are required"])
    refused, warnings = judge_permissions(path, mode, holds_literal_key(tree))
    return build(tree, environ, path.absolute().parent, mistakes + refused, warnings)


def build(
    tree: Any, environ: Mapping[str, str], folder: Path, mistakes: Sequence[str] = (), warnings: Sequence[str] = ()
) -> Config:
    """A parsed tree to a Config; relative file names in it are relative to ``folder``. Raises ConfigError."""
    tree, unset = expand(tree, environ)
    if isinstance(tree, dict) and isinstance(tree.get("listen"), list):
        listen = [{"endpoint": entry} if isinstance(entry, str) else entry for entry in tree["listen"]]
        tree = {**tree, "listen": listen}
    if isinstance(tree, dict) and tree.get("admin") is not None:
        tree = {**tree, "admin": admin_endpoint(tree["admin"])}
    if isinstance(tree, dict) and "port" in tree and tree.get("listen") is not None:
        mistakes = [*mistakes, "port: stands beside listen, which says the ports; keep one of the two"]
    if isinstance(tree, dict) and "port" not in tree:
        tree = {**tree, "port": environ.get("PORT") or 8080}
    tls, tls_mistakes = _tls_from(environ)
    found = [*mistakes_in(tree, FileEntry, decode), *crossed(tree, tls is not None)]
    found = [*mistakes, *unset, *_not_of(unset, found), *tls_mistakes]
    if found:
        raise ConfigError(list(dict.fromkeys(found)))
    entry = msgspec.convert(tree, FileEntry, strict=False, dec_hook=decode)
    if entry.limits.bodies is not None and entry.limits.bodies < entry.limits.body:
        raise ConfigError(
            ["limits.bodies: is less than limits.body, the size of one request; raise the one or lower the other"]
        )
    return _resolve(entry, tls, folder, warnings)


def _resolve(entry: FileEntry, tls: TlsFiles | None, folder: Path, warnings: Sequence[str]) -> Config:

    def files(entry: CertificateEntry) -> tuple[str, str]:
        return str(folder / entry.cert_file), str(folder / entry.key_file)

    if entry.tls:
        own, client_ca = entry.tls, entry.tls.client_ca
        tls = TlsFiles(
            *files(own),
            others=tuple(CertificateFiles(*files(each)) for each in own.certificates),
            client_ca=client_ca and str(folder / client_ca),
            client_required=client_ca is not None and own.client_certificate != "optional",
        )
    # str() and float(): the schema's types are only for reading, and neither OpenSSL nor msgspec takes a subclass.
    providers = {
        str(p.name): Provider(
            name=str(p.name),
            base_url=str(p.base_url),
            api_key=p.api_key,
            headers={str(name): value for name, value in p.headers.items()},
            ca_file=p.ca_file and str(folder / p.ca_file),
            legacy_tls=p.tls.legacy,
        )
        for p in entry.providers
    }

    def inherited(*values: float | None) -> float:
        return next(value for value in values if value is not None)

    def step(number: int, route: RouteEntry, step: StepEntry) -> Step:
        return Step(
            number=number,
            provider=providers[step.provider],
            model=str(step.model),
            timeout=float(step.timeout or route.timeout or entry.default_timeout),
            connect_timeout=float(step.connect_timeout or route.connect_timeout or entry.connect_timeout),
            idle_timeout=float(step.idle_timeout or route.idle_timeout or entry.idle_timeout),
            cooldown=float(inherited(step.cooldown, route.cooldown, entry.cooldown)),
            retries=int(step.retries),
            conflict_resolution=step.conflict_resolution,
        )

    def route(entry: RouteEntry) -> Route:
        steps = tuple(step(number, entry, s) for number, s in enumerate(entry.steps, 1))
        return Route(
            str(entry.name), steps, entry.deadline and float(entry.deadline), frozenset(map(str, entry.stop_on or ()))
        )

    routes = {str(r.name): route(r) for r in entry.routes}
    keys = [entry.api_key, *(p.api_key for p in entry.providers if p.api_key)]
    sent = [value for p in entry.providers for name, value in p.headers.items() if is_secret(name, value)]
    keys += [*sent, *(token for value in sent if (token := value.token()))]
    return Config(
        port=int(entry.port),
        listeners=tuple(Listener(str(each.endpoint), each.insecure) for each in entry.listen or ()),
        admin=Listener(str(entry.admin.endpoint), insecure=True, admin=True) if entry.admin else None,
        tls=tls,
        callers=(Caller("default", entry.api_key),),
        providers=providers,
        routes=routes,
        max_body=int(entry.limits.body),
        max_bodies=int(entry.limits.bodies or max(BODIES, entry.limits.body)),
        max_connections=int(entry.limits.connections),
        max_per_address=int(entry.limits.connections_per_address) or None,
        drain=float(entry.drain),
        secrets=tuple(sorted(keys, key=len, reverse=True)),  # one may begin with another
        warnings=(*warnings, *_short_keys(entry)),
    )


def _short_keys(entry: FileEntry) -> Iterator[str]:
    if len(entry.api_key) < GUESSED_KEY:
        yield f"api_key has under {GUESSED_KEY} characters, easy to guess: take a longer one (openssl rand -hex 32)"
    named = {"api_key": entry.api_key, **{f"providers[{i}].api_key": p.api_key for i, p in enumerate(entry.providers)}}
    for path, key in named.items():
        if key and len(key) < SHORT_KEY:
            yield f"{path} has under {SHORT_KEY} characters: they are blacked out wherever the log has them"


def _not_of(unset: Sequence[str], found: Sequence[str]) -> list[str]:
    """What was ``found`` less that which only follows from a value that is ``unset``: one mistake, one line."""
    paths = [mistake.split(": ")[0] for mistake in unset]

    def follows(mistake: str) -> bool:
        path = mistake.split(": ")[0]
        return any(path == each or path.startswith(f"{each}.") or each.startswith(f"{path}.") for each in paths)

    return [mistake for mistake in found if not follows(mistake)]


def _tls_from(environ: Mapping[str, str]) -> tuple[TlsFiles | None, list[str]]:
    """Where the file has no ``tls``: TLS_CERT_FILE and TLS_KEY_FILE, else systemd's credentials, else none."""
    cert, key = environ.get("TLS_CERT_FILE"), environ.get("TLS_KEY_FILE")
    credentials = Path(environ.get("CREDENTIALS_DIRECTORY") or "/nonexistent")
    if bool(cert) != bool(key):
        return None, ["TLS_CERT_FILE and TLS_KEY_FILE: only one of the two is set; set both or neither"]
    if cert and key:
        return TlsFiles(os.path.abspath(cert), os.path.abspath(key)), []
    if (credentials / "tls.crt").exists():
        return TlsFiles(str(credentials / "tls.crt"), str(credentials / "tls.key")), []
    return None, []
