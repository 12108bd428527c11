"""The error for an unknown path: with the path that the client probably needs, or all paths."""

from __future__ import annotations

from aigw.errors import PathNotFound
from aigw.key_forms import shortened
from aigw.protocols.endpoints import ENDPOINTS

_SERVED = ", ".join(f"POST /v1/{path}" for path in ENDPOINTS) + " and GET /v1/models"
_LISTED = [f"/v1/{path}" for path in (*ENDPOINTS, "models")]
# Parts of the API that keep something at one provider, or are no requests with an answer.
_NOT_SERVED = frozenset(
    "files uploads batches realtime assistants threads vector_stores fine_tuning evals containers conversations videos "
    "chatkit graders organization skills".split()
)


def unknown_path(path: bytes) -> PathNotFound:
    """The error for a path that the gateway does not have."""
    text = shortened(path.decode("latin-1"), 200)
    plain = "/" + "/".join(part for part in text.split("/") if part)  # without repeated and trailing slashes
    name = plain.removeprefix("/v1").partition("/")[2].partition("/")[0]
    shown = repr(shortened(text, 64))
    if name in _NOT_SERVED:
        message = f"This gateway does not serve {name} yet, so it has no path {shown}. It has the paths {_SERVED}."
        return PathNotFound(message, code="not_served")
    return PathNotFound(f"The path {shown} is unknown. {_hint(text, plain)}")


def _hint(text: str, plain: str) -> str:
    once = plain
    while once.startswith("/v1/v1/") or once == "/v1/v1":
        once = once[3:]
    if once != plain:
        twice = f"It has /v1 twice: remove one from the base URL, so that the path is {once}."
        is_served = once in _LISTED or once.startswith("/v1/models/")
        return twice if is_served else f"{twice} This gateway has the paths {_SERVED}."
    for served in _LISTED:
        if text != served and plain.casefold() == served:
            return f"Did you mean {served}?"
    for served in sorted(_LISTED, key=len, reverse=True):
        if plain.endswith(served.removeprefix("/v1")):
            if not plain.startswith("/v1/"):
                return f"All paths of the API begin with /v1: use {served}, with a base URL that ends in /v1."
            if any([plain.startswith(f"{other}/") for other in _LISTED]):
                return f"The base URL must end in /v1, without the endpoint: use {served}."
    return f"This gateway has the paths {_SERVED}."
