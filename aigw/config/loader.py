"""The configuration: one YAML file to frozen Structs, every mistake reported at once.

``conf/config.yaml`` documents each setting, ``schema`` says what may stand in the file. ``load`` reads it and
resolves it: limits that a step leaves out come from its route, then from the top; names become objects.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from aigw.config.cross_checks import crossed
from aigw.config.file_mode import holds_literal_key, is_secret, judge_permissions
from aigw.config.model import Caller, CertificateFiles, Config, Listener, Provider, Route, Step, TlsFiles
from aigw.config.schema import CertificateEntry, FileEntry, RouteEntry, StepEntry
from aigw.config.validation import mistakes_in
from aigw.config.values import admin_endpoint, decode
from aigw.config.yaml_tree import expand, parse
from aigw.errors import ConfigError

PLACES = ("config.yaml", "/etc/ai-gateway/config.yaml")
MAX_FILE = 1024 * 1024
SHORT_KEY = 8
GUESSED_KEY = 20
BODIES = 512 * 1024 * 1024


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
        log_client_address=entry.log.client_address,
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
