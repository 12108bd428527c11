"""Which values of a configuration file are keys, and which users may read the file."""

from __future__ import annotations

import re
import stat
from pathlib import Path

from aigw.config.proxies import has_literal_password

_VARIABLE = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}")
_KEY_HEADER = re.compile(r"auth|key|token|secret", re.IGNORECASE)
_NO_KEY_HEADER = re.compile(
    r"http-referer|referer|x-title|user-agent|openai-beta|(?:.*[-_])?version|apiversion", re.IGNORECASE
)


def is_secret(header: str, value: object) -> bool:
    """Whether the value of a header, or of a name in a query, is treated as a key.

    A short value is not: it would hide too much of the log.
    """
    if _NO_KEY_HEADER.fullmatch(header):
        return False
    return _KEY_HEADER.search(header) is not None or len(value if hasattr(value, "__len__") else "") >= 8


def holds_literal_key(tree: object) -> bool:
    """Whether a parsed configuration, its variables not yet replaced, has a key in it."""

    def literal(value: object) -> bool:
        return isinstance(value, str) and bool(_VARIABLE.sub("", value).strip())

    def literal_header(name: str, value: object) -> bool:
        return is_secret(name, value) and _VARIABLE.search(str(value)) is None

    if not isinstance(tree, dict):
        return False
    providers = _mappings(tree.get("providers"))
    sent = [pairs for p in providers for name in ("headers", "query") if isinstance(pairs := p.get(name), dict)]
    headers = [item for pairs in sent for item in pairs.items()]
    return (
        any(literal(tree.get(name)) for name in ("api_key", "admin_key"))
        or any(literal(each.get("key")) for each in _mappings(tree.get("keys")))
        or any(literal(p.get("api_key")) for p in providers)
        or any(literal(key) for p in providers if isinstance(keys := p.get("api_keys"), list) for key in keys)
        or any(literal_header(str(name), value) for name, value in headers)
        or any(has_literal_password(each.get("proxy"), _VARIABLE) for each in (tree, *providers))
    )


def _mappings(value: object) -> list[dict[object, object]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def check_file_mode(path: Path, mode: int, literal: bool) -> tuple[list[str], list[str]]:
    """Mistakes and warnings about other users who may read the file."""
    others, group = mode & stat.S_IROTH, mode & stat.S_IRGRP
    if literal and others:
        return [f"{path}: holds a key and is readable by every user; run: chmod 600 {path}"], []
    if others or group:
        who = "every user" if others else "its group"
        return [], [f"{path} is readable by {who}; to prevent that, run: chmod 600 {path}"]
    return [], []
