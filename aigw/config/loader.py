"""From one YAML file to frozen Structs; all mistakes are reported at once.

``conf/config.yaml`` documents each setting, ``model`` defines it. ``load`` reads the file and resolves it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import yaml

from aigw.config.advice import advice_on, advice_on_instances
from aigw.config.cross_checks import bodies_crossed, crossed, limits_crossed
from aigw.config.file_mode import check_file_mode, holds_literal_key, is_secret
from aigw.config.keys_file import KeysReader
from aigw.config.model import Config, Listener
from aigw.config.prices import prices_of, unknown_providers, unpriced_budgets, with_unknown
from aigw.config.proxies import with_proxies
from aigw.config.reader import Reader
from aigw.config.targets import choices_crossed, with_choices
from aigw.config.yaml_tree import expand, no_file, parse, read
from aigw.errors import ConfigError
from aigw.secret import Secret
from aigw.settings.addresses import admin_endpoint
from aigw.settings.endpoint_names import defaults_crossed, unserved
from aigw.settings.mistakes import Mistake, line_of, not_following, worded
from aigw.settings.mistakes import Path as TreePath
from aigw.settings.mistakes import shown as path_of
from aigw.settings.patterns import names_crossed
from aigw.settings.quoting import Expanded
from aigw.settings.schema import Shape, shape_of
from aigw.settings.tls_files import TlsFiles

_LOCATED = ("cert_file", "key_file", "base_url", "ca_file", "key_command", "client_cert", "client_key")
PLACES = ("config.yaml", "/etc/ai-gateway/config.yaml")
MAX_FILE = 1024 * 1024


def find(path: str | None) -> Path:
    """The file to read: ``path``, else the first of ``PLACES`` that exists. Raises ConfigError."""
    for place in [path] if path else PLACES:
        try:
            mode = os.stat(place).st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "not a file name"
            raise ConfigError([f"{place}: cannot be read: {reason}; name another file with -c FILE"]) from None
        if stat.S_ISREG(mode):
            return Path(place)
        if path:
            raise ConfigError([no_file(place, mode)])
    more = "" if path else ", or write one with: aigw init"
    raise ConfigError([f"there is no configuration file {path or ' or '.join(PLACES)}; name one with -c FILE{more}"])


def load(path: Path, environ: Mapping[str, str], shown: str = "") -> Config:
    """Read, check and resolve ``path``, which messages call ``shown``. Raises ConfigError with every mistake in it."""
    shown = shown or str(path)
    text, mode = read(path, shown, MAX_FILE)
    document = parse(text)
    if document.tree is None:
        empty = [f"{shown}: the file is empty; write api_key, providers and routes"]
        raise ConfigError(worded(document.mistakes, shown) or empty)
    refused, warnings = check_file_mode(path, mode, holds_literal_key(document.tree))
    mistakes = [*document.mistakes, *map(Mistake, refused)]
    folder = path.absolute().parent
    return build(document.tree, environ, folder, mistakes, warnings, shown, document.root)


def usage_file(path: Path, environ: Mapping[str, str]) -> str:
    """The file of ``usage`` in the configuration at ``path``; nothing else in it need be right. Raises ConfigError."""
    try:
        tree = parse(path.read_bytes()[:MAX_FILE].decode()).tree
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read: {getattr(error, 'strerror', 'it is not UTF-8')}"]) from None
    named = tree.get("usage") if isinstance(tree, dict) else None
    file, unset = expand(named.get("file") if isinstance(named, dict) else None, environ)
    if not isinstance(file, str) or not file.strip() or "\0" in file or unset:
        reason = unset[0].text if unset else "the configuration names no file of usage; write usage: {file: FILE}"
        raise ConfigError([f"{path}: usage.file: {reason}"])
    return str(path.absolute().parent / file)


def build(
    tree: object,
    environ: Mapping[str, str],
    folder: Path,
    mistakes: Sequence[Mistake] = (),
    warnings: Sequence[str] = (),
    file: str = "",
    root: yaml.Node | None = None,
) -> Config:
    """A parsed tree to a Config; relative file names in it are relative to ``folder``. Raises ConfigError.

    ``file`` and ``root``, the tree's nodes with their lines, are for the messages.
    """
    tree, unset = expand(tree, environ)
    tls, tls_mistakes = _tls_from(environ)
    reader = Reader(whole_file(), folder)
    unneeded: list[Mistake] = []
    if isinstance(tree, dict):
        tree, unusable, unneeded = with_proxies(_whole(tree), environ)
        later = [*crossed(tree, tls is not None), *unusable, *choices_crossed(tree), *names_crossed(tree)]
        if "port" not in tree and environ.get("PORT"):
            tree = {**tree, "port": Expanded.of(environ["PORT"], "${PORT}")}
        if "state" not in tree and environ.get("STATE_DIRECTORY"):  # which systemd sets
            tree = {**tree, "state": Expanded.of(environ["STATE_DIRECTORY"].partition(":")[0], "${STATE_DIRECTORY}")}
    else:
        later = []
    made = reader.read(tree)
    if made is not None:
        made = msgspec.structs.replace(made, routes={name: with_choices(each) for name, each in made.routes.items()})
        later += [*limits_crossed(made.max_body, made.max_bodies), *defaults_crossed(made.routes)]
        later += [*unserved(made.routes), *bodies_crossed(made.routes)]
    keys = KeysReader(made, environ)
    prices, price_mistakes, price_warnings = prices_of(tree, folder)
    found = [*mistakes, *unset, *not_following(unset, [*reader.mistakes, *later, *keys.mistakes]), *tls_mistakes]
    if found or keys.mistakes_in_file or price_mistakes:
        raise ConfigError([*worded(found, file, root), *keys.mistakes_in_file, *price_mistakes])
    advice = worded([*advice_on(made), *reader.warnings, *unneeded, *keys.warnings], file, root)
    advice += [*price_warnings, *unknown_providers(prices, made.providers, str(made.prices))]
    made = keys.complete(msgspec.structs.replace(made, price_list=with_unknown(prices, made.unknown_price)))
    if unpriced := [Mistake(text, ("prices",)) for text in unpriced_budgets(made)]:
        raise ConfigError(worded(unpriced, file, root))
    advice += worded(advice_on_instances(made, environ), file, root)
    return _completed(
        made,
        tls,
        [*warnings, *advice],
        keys.warnings_in_file,
        _places(tree, file, root) if root and isinstance(tree, dict) else {},
    )


@lru_cache(1)
def whole_file() -> Shape:
    """The shape of a whole file."""
    return shape_of(Config)


def _whole(tree: dict[Any, Any]) -> dict[Any, Any]:
    """The tree with a mapping for each listener and each ``keepalive`` that is written in its short form."""
    if isinstance(listed := tree.get("listen"), list):
        listed = [{"endpoint": entry} if isinstance(entry, str) else entry for entry in listed]
        tree = {**tree, "listen": listed}
    if tree.get("admin") is not None:
        tree = {**tree, "admin": admin_endpoint(tree["admin"])}
    if isinstance(routes := tree.get("routes"), list):
        tree = {**tree, "routes": [_whole_route(route) for route in routes]}
    return tree


def _whole_route(route: Any) -> Any:
    every = route.get("keepalive") if isinstance(route, dict) else None
    return route if every is None or isinstance(every, dict) else {**route, "keepalive": {"every": every}}


def _places(tree: dict[Any, Any], file: str, root: yaml.Node) -> dict[str, str]:
    """File and line of each setting with a file, host or address, by its path, for mistakes that are found later."""
    paths: list[TreePath] = [(name,) for name in ("port", "listen", "admin", "tls") if name in tree]
    paths += [("listen", index) for index in range(len(tree.get("listen") or ()))]
    tls = tree.get("tls") or {}
    paths += [("tls", name) for name in tls]
    paths += [("usage", "file")] if tree.get("usage") else []
    paths += [("state",)] if tree.get("state") else []
    listed = [(("tls", "certificates"), tls.get("certificates") or ()), (("providers",), tree["providers"])]
    for path, entries in listed:
        paths += [(*path, index) for index in range(len(entries))]
        for index, entry in enumerate(entries):
            paths += [(*path, index, name) for name in _LOCATED if name in entry]
    return {path_of(path): f"{file}, line {line_of(root, path)}" for path in paths}


def _completed(
    made: Config, tls: TlsFiles | None, warnings: Iterable[str], of_keys: Iterable[str], places: dict[str, str]
) -> Config:
    """``made`` with the values that depend on several settings."""
    return msgspec.structs.replace(
        made,
        admin=made.admin and Listener(made.admin.endpoint, insecure=True, admin=True),
        tls=made.tls or tls,
        secrets=_secrets(made),
        warnings=tuple(warnings),
        warnings_of_keys_file=tuple(of_keys),
        places=places,
    )


def _secrets(made: Config) -> tuple[Secret, ...]:
    """All keys that are known, the longest first, because one may begin with another."""
    providers = made.providers.values()
    pairs = [pair for each in providers for sent in (each.headers, each.query) for pair in sent.items()]
    sent = [value for name, value in pairs if is_secret(name, value)]
    keys: list[Secret] = [each.key for each in made.callers if each.key]
    keys += [*([made.admin_key] if made.admin_key else []), *made.literal_keys]
    keys += [key for each in providers for key in each.keys if key]
    keys += [*sent, *(token for value in sent if (token := value.token()))]
    keys += [value.in_url() for each in providers for name, value in each.query.items() if is_secret(name, value)]
    keys += made.store.secrets if made.store is not None else ()
    keys += dict.fromkeys(secret for each in providers if each.proxy for secret in each.proxy.secrets)
    return tuple(sorted(dict.fromkeys(keys), key=len, reverse=True))


def with_callers(config: Config, environ: Mapping[str, str]) -> Config:
    """A configuration with its keys_file read afresh. Raises ConfigError."""
    keys = KeysReader(config, environ)
    if keys.mistakes_in_file:
        raise ConfigError(keys.mistakes_in_file)
    made = keys.complete(config)
    if unpriced := list(unpriced_budgets(made)):
        raise ConfigError(unpriced)
    return msgspec.structs.replace(made, secrets=_secrets(made), warnings_of_keys_file=tuple(keys.warnings_in_file))


def _tls_from(environ: Mapping[str, str]) -> tuple[TlsFiles | None, list[Mistake]]:
    """Where the file has no ``tls``: TLS_CERT_FILE and TLS_KEY_FILE, else systemd's credentials, else none."""
    cert, key = environ.get("TLS_CERT_FILE"), environ.get("TLS_KEY_FILE")
    credentials = Path(environ.get("CREDENTIALS_DIRECTORY") or "/nonexistent")
    if bool(cert) != bool(key):
        text = "only one of the environment variables TLS_CERT_FILE and TLS_KEY_FILE is set; set both or neither"
        return None, [Mistake(text)]
    if cert and key:
        return TlsFiles(os.path.abspath(cert), os.path.abspath(key)), []
    if (credentials / "tls.crt").exists():
        return TlsFiles(str(credentials / "tls.crt"), str(credentials / "tls.key")), []
    return None, []
