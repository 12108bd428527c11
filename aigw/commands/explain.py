"""``--explain``: what the gateway would do with a request, from the configuration alone."""

from __future__ import annotations

import sys
from collections.abc import Callable

from aigw.config.model import Config
from aigw.errors import BadRequest
from aigw.explain.explainer import Explainer
from aigw.explain.text import as_json, as_text
from aigw.protocols.walk import whole
from aigw.routing.router import Router


def explain(config: Config, path: str, write: Callable[[str], object], json: bool) -> int:
    """Explain the request in the file; ``-`` is stdin. Gives the exit status: 1 if the client gets an error at once."""
    try:
        if path == "-":
            data = sys.stdin.buffer.read(config.max_body + 1) if sys.stdin else b""  # it may be closed
        else:
            with open(path, "rb") as file:
                data = file.read(config.max_body + 1)
        if len(data) > config.max_body:
            raise BadRequest(f"The request has over {config.max_body} bytes, the limit of limits.body.")
        explainer = Explainer(config, Router(config))
        found = whole(explainer.explain(data))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a file name"
        print(f"aigw: {path}: the request cannot be read: {reason}", file=sys.stderr)
        return 1
    except BadRequest as error:
        print(f"aigw: {path}: {error.message}", file=sys.stderr)
        return 1
    write(as_json(found, explainer.keys).decode().rstrip() if json else as_text(found, explainer.keys).rstrip())
    return 1 if found.error is not None else 0
