"""Mistakes that no single value shows: names that stand twice or lead nowhere, plain HTTP beyond loopback."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Any

from aigw.config.quoting import quoted


def crossed(tree: Any, tls: bool) -> Iterator[str]:
    """Mistakes that no single value shows, found in the tree as written, so that they come with all the others."""
    if not isinstance(tree, dict):
        return
    names = {str(provider["name"]) for _, provider in _mappings(tree, "providers") if "name" in provider}
    known = ", ".join(map(quoted, sorted(names)))
    for kind in ("providers", "routes"):
        seen: dict[str, str] = {}
        for path, entry in _mappings(tree, kind):
            name = str(entry.get("name"))
            if "name" in entry and seen.setdefault(name, path) != path:
                yield f"{path}.name: is the name of {seen[name]} too; names are unique"
    for path, provider in _mappings(tree, "providers"):
        written = provider.get("headers")
        headers = [str(name).lower() for name in written] if isinstance(written, dict) else []
        for name in sorted(name for name in set(headers) if headers.count(name) > 1):
            yield f"{path}.headers.{quoted(name)}: stands twice in different case; keep one"
    for route_path, route in _mappings(tree, "routes"):
        for path, step in _mappings(route, "steps", route_path):
            if "provider" in step and str(step["provider"]) not in names:
                yield f"{path}.provider: no provider is named {quoted(str(step['provider']))!r}; there are: {known}"
    written = tree.get("tls")
    if isinstance(written, dict) and "client_certificate" in written and not written.get("client_ca"):
        yield "tls.client_certificate: stands without client_ca, which says whose certificates are good"
    admin = tree.get("admin")
    if isinstance(admin, dict) and admin.get("insecure") is not True and not _is_local(str(admin.get("endpoint"))):
        yield "admin: no key is asked for there, and it is beyond loopback: write {endpoint: ..., insecure: true}"
    endpoints: dict[str, str] = {str(admin.get("endpoint")): "admin"} if isinstance(admin, dict) else {}
    for path, listener in _mappings(tree, "listen"):
        endpoint = str(listener.get("endpoint"))
        if endpoint in endpoints and not re.match(r"tcp6?:0\b", endpoint):  # which is a port of its own each time
            yield f"{path}: is the endpoint of {endpoints[endpoint]} too; keep one"
        endpoints.setdefault(endpoint, path)
        plain = not tls and not tree.get("tls") and listener.get("insecure") is not True
        if plain and not _is_local(str(listener.get("endpoint"))):
            yield f"{path}: plain HTTP beyond loopback: configure tls, or write {{endpoint: ..., insecure: true}}"


def _mappings(tree: Mapping[str, Any], name: str, path: str = "") -> list[tuple[str, dict[str, Any]]]:
    entries = tree.get(name)
    prefix = f"{path}.{name}" if path else name
    if not isinstance(entries, list):
        return []
    return [(f"{prefix}[{index}]", entry) for index, entry in enumerate(entries) if isinstance(entry, dict)]


def _is_local(endpoint: str) -> bool:
    if endpoint.startswith("unix:"):
        return True
    addresses = re.findall(r":interface=((?:\\.|[^:\\])*)", endpoint)
    try:
        return bool(addresses) and all(ipaddress.ip_address(re.sub(r"\\(.)", r"\1", a)).is_loopback for a in addresses)
    except ValueError:
        return False
