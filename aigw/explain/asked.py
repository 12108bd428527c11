"""Reads the request that is to be explained."""

from __future__ import annotations

import msgspec

from aigw.errors import BadRequest
from aigw.key_forms import shortened
from aigw.protocols import envelope
from aigw.protocols.endpoint import JSON, Endpoint
from aigw.protocols.endpoints import ENDPOINTS
from aigw.protocols.skip import Steps
from aigw.protocols.walk import Walk

CHAT = "/v1/chat/completions"
_WRAPPED = frozenset(["path", "headers", "body"])
_headers = msgspec.json.Decoder(dict[str, str])
_path = msgspec.json.Decoder(str)


class Asked(msgspec.Struct, frozen=True):
    """A request that is to be explained. ``headers`` are those of the client, by their names in lower case."""

    endpoint: Endpoint
    headers: dict[bytes, bytes]
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        """The value of a header, by its lower-case name."""
        return self.headers.get(name)


def read(data: bytes) -> Steps[Asked]:
    """The request in ``data``: the body of one to chat/completions, or ``body``, ``path`` and ``headers`` in an object.

    Raises BadRequest.
    """
    right = 'write the body of a request, or {"path": "/v1/responses", "headers": {}, "body": {}}'
    try:
        members = envelope.split_small(data)
        if members is None:
            members = yield from Walk(data).members()
    except ValueError as error:
        raise BadRequest(f"The request is not a JSON object: {error}; {right}.") from None
    if "body" not in members:
        return Asked(_endpoint(CHAT), {}, data)
    if unknown := next((name for name in members if name not in _WRAPPED), None):
        raise BadRequest(f"The member {shortened(unknown, 64)!r} beside 'body' is unknown; {right}.")
    try:
        path = _path.decode(members["path"]) if "path" in members else CHAT
        given = _headers.decode(members["headers"]) if "headers" in members else {}
    except (ValueError, RecursionError):
        raise BadRequest(f"'path' must be a string, and 'headers' names with strings; {right}.") from None
    sent = {name.lower().encode(errors="replace"): value.encode(errors="replace") for name, value in given.items()}
    return Asked(_endpoint(path), sent, bytes(members["body"]))


def _endpoint(path: str) -> Endpoint:
    plain = path.partition("?")[0].rstrip("/")
    by_path = {name: each for each in ENDPOINTS.values() for name in (each.path, f"/v1/{each.path}", *each.aliases)}
    found = by_path.get(plain)
    if found is None:
        there = ", ".join(f"/v1/{each}" for each in ENDPOINTS)
        raise BadRequest(f"'path' is not the path of an endpoint with a body; write one of {there}.")
    if JSON not in found.takes:
        raise BadRequest(
            f"Requests to {plain} are forms, which cannot be explained; write the path of another endpoint."
        )
    return found
