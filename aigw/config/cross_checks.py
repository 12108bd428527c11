"""Mistakes in the combination of settings: settings that exclude each other, plain HTTP beyond loopback."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from aigw.config.model import KEY_SETTINGS, Route
from aigw.settings.addresses import is_on_loopback
from aigw.settings.mistakes import Mistake


def crossed(tree: object, tls: bool) -> Iterator[Mistake]:
    """Found in the tree as written, to be reported with all others. ``tls``: the environment has a certificate."""
    if not isinstance(tree, dict):
        return
    if "api_key" not in tree and tree.get("keys") is None and tree.get("keys_file") is None:
        yield Mistake("is required and missing; write it, or keys, or keys_file", ("api_key",))
    for name in ("api_key", "admin_key"):
        if tree.get(name, "") is None:
            yield Mistake("the value is empty; write the key, or better ${NAME}, or remove it", (name,))
    if "port" in tree and tree.get("listen") is not None:
        yield Mistake("cannot be used together with listen, which has its own ports; keep one of the two", ("port",))
    written = tree.get("tls")
    if isinstance(written, dict) and written.get("client_certificate") is not None and not written.get("client_ca"):
        text = "needs client_ca, the CA of the clients' certificates; write both or neither"
        yield Mistake(text, ("tls", "client_certificate"))
    listed = tree.get("providers")
    for index, provider in enumerate(listed if isinstance(listed, list) else ()):
        if isinstance(provider, dict):
            yield from _in_provider(provider, ("providers", index))
    admin = tree.get("admin")
    if isinstance(admin, dict) and not _is_insecure(admin) and not is_on_loopback(str(admin.get("endpoint"))):
        text = "this listener needs no key and is beyond loopback; to allow that, write {endpoint: ..., insecure: true}"
        yield Mistake(text, ("admin",))
    endpoints: dict[str, str] = {str(admin.get("endpoint")): "admin"} if isinstance(admin, dict) else {}
    listed = tree.get("listen")
    for index, listener in enumerate(listed if isinstance(listed, list) else ()):
        if not isinstance(listener, dict):
            continue
        endpoint = str(listener.get("endpoint"))
        if endpoint in endpoints and not re.match(r"tcp6?:0\b", endpoint):  # which is a port of its own each time
            yield Mistake(f"has the same endpoint as {endpoints[endpoint]}; keep one of the two", ("listen", index))
        endpoints.setdefault(endpoint, f"listen[{index}]")
        plain = not tls and not tree.get("tls") and not _is_insecure(listener)
        if plain and not is_on_loopback(endpoint):
            text = "plain HTTP beyond loopback is not allowed; configure tls, or write {endpoint: ..., insecure: true}"
            yield Mistake(text, ("listen", index))


def _in_provider(written: Mapping[object, object], path: tuple[str | int, ...]) -> Iterator[Mistake]:
    keys = [name for name in KEY_SETTINGS if written.get(name) is not None]
    for name in keys[1:]:
        yield Mistake(f"cannot be used together with {keys[0]}; keep one of the two", (*path, name))
    if keys and written.get("auth") == "none":
        yield Mistake(f"is none, so no key is sent; remove {keys[0]}, or write how the key is sent", (*path, "auth"))
    for one, other in (("client_cert", "client_key"), ("client_key", "client_cert")):
        if written.get(one) is not None and written.get(other) is None:
            what = "key" if other == "client_key" else "certificate"
            yield Mistake(f"needs {other}, the file with its {what}; write both or neither", (*path, one))


def limits_crossed(body: int, bodies: int) -> Iterator[Mistake]:
    """A mistake if the limit of one body is larger than the limit of all bodies together."""
    if bodies < body:
        text = "is less than limits.body, the limit of one request; raise limits.bodies or lower limits.body"
        yield Mistake(text, ("limits", "bodies"))


def bodies_crossed(routes: Mapping[str, Route]) -> Iterator[Mistake]:
    """A mistake for each member that is renamed to itself."""
    for index, route in enumerate(routes.values()):
        for step in route.steps:
            for old in [old for old, new in step.rename.items() if old == new]:
                path = ("routes", index, "steps", step.number - 1, "rename", old)
                yield Mistake("is renamed to itself; write another name, or remove it", path)


def _is_insecure(listener: Mapping[object, object]) -> bool:
    return str(listener.get("insecure")).lower() == "true"
