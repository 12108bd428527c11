"""A call as the gateway reads it, at once, however long that takes."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from aigw.protocols.endpoint import Call, Endpoint, RawRequest
from aigw.protocols.envelope import Pieces
from aigw.protocols.skip import Steps
from aigw.protocols.walk import whole
from aigw.settings.bodies import BodyChanges, ConflictResolution
from aigw.settings.callers import Caller


def begin_to_read(endpoint: Endpoint, body: bytes | bytearray) -> Call | Steps[Call]:
    """A Call, or the steps in which the body becomes one."""
    return endpoint.read(RawRequest(endpoint, body))


def read_call(
    endpoint: Endpoint,
    body: bytes | bytearray,
    headers: Mapping[bytes, bytes] | None = None,
    request_id: str = "",
    caller: Caller | None = None,
) -> Call:
    """A Call. Raises BadRequest."""
    found = endpoint.read(RawRequest(endpoint, body, dict(headers or {}), request_id, caller))
    return found if isinstance(found, Call) else whole(found)


def rewrite(call: Call, model: msgspec.Raw, conflict_resolution: ConflictResolution | None) -> bytes | Pieces:
    """The body for a step."""
    changes = conflict_resolution and BodyChanges(conflict_resolution=conflict_resolution)
    return call.endpoint.rewrite(call, model, changes)[0]
