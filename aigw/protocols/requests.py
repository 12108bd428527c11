"""A request's body to a Call, and a Call to the body for a step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from aigw.errors import BadRequest
from aigw.protocols import envelope
from aigw.protocols.endpoints import ENDPOINTS, Endpoint
from aigw.protocols.envelope import Pieces, carries
from aigw.protocols.skip import Steps
from aigw.protocols.walk import Members, TooMuch, Walk, mistake_in_messages, whole

TOOL_MEMBERS = ("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call")


class Call(msgspec.Struct, frozen=True, eq=False):
    """One request, read once: the body's top-level members as raw bytes, and the headers that may go on.

    ``large``: it goes on in pieces.
    """

    endpoint: Endpoint
    model: str
    stream: bool
    members: Members
    headers: tuple[tuple[bytes, bytes], ...] = ()
    request_id: str = ""
    caller: str = ""
    large: bool = False


def read_call(
    endpoint: Endpoint,
    body: bytes | bytearray,
    headers: Iterable[tuple[bytes, bytes]] = (),
    request_id: str = "",
    caller: str = "",
) -> Call:
    """A request body to a Call, however long it takes. Raises BadRequest, naming the member that is wrong."""
    made = begin_to_read(endpoint, body, headers, request_id, caller)
    return made if isinstance(made, Call) else whole(made)


def begin_to_read(
    endpoint: Endpoint,
    body: bytes | bytearray,
    headers: Iterable[tuple[bytes, bytes]] = (),
    request_id: str = "",
    caller: str = "",
) -> Call | Steps[Call]:
    """A Call, or the short steps in which a large body becomes one. Both raise BadRequest."""
    try:
        members = envelope.split_small(body)
    except ValueError as error:
        raise _refused(error, body) from None
    if members is None:
        return _read_in_steps(endpoint, body, headers, request_id, caller)
    return _call(endpoint, members, headers, request_id, caller)


def _read_in_steps(
    endpoint: Endpoint, body: bytes | bytearray, headers: Iterable[tuple[bytes, bytes]], request_id: str, caller: str
) -> Steps[Call]:
    walk = Walk(body)
    try:
        members = yield from walk.members(endpoint is ENDPOINTS["chat/completions"])
    except ValueError as error:
        raise _refused(error, body) from None
    return _call(endpoint, members, headers, request_id, caller, walk, len(body) > envelope.SMALL)


def _call(
    endpoint: Endpoint,
    members: Members,
    headers: Iterable[tuple[bytes, bytes]],
    request_id: str,
    caller: str,
    walk: Walk | None = None,
    large: bool = False,
) -> Call:
    model = _read(members, "model", str, "a non-empty string")
    if not model:
        raise BadRequest("'model' must be a non-empty string.", param="model")
    if not envelope.OTHER_CASES.isdisjoint(members):
        name = next(each for each in members if each in envelope.OTHER_CASES)
        raise BadRequest(f"{name!r} must be written {name.casefold()!r}, in lower case.", param=name)
    stream = "stream" in members and _read(members, "stream", bool | None, "true or false") is True
    if endpoint is ENDPOINTS["chat/completions"]:
        if "messages" not in members:
            raise BadRequest("'messages' is missing; it must be a non-empty array of objects.", param="messages")
        item = walk.mistake if walk else mistake_in_messages(members)
        if item is not None:
            right = "a non-empty array of objects, each with a non-empty string 'role'"
            raise BadRequest(f"'{item}' is wrong: 'messages' must be {right}.", param=item)
    return Call(endpoint, model, stream, members, tuple(headers), request_id, caller, large)


def _refused(error: ValueError, body: bytes | bytearray) -> BadRequest:
    if isinstance(error, TooMuch):
        return BadRequest(f"The body {error}.")
    if len(body) <= envelope.SMALL and (not body or body.isspace()):
        return BadRequest("The body is empty; it must be a JSON object.")
    return BadRequest(f"The body is not a JSON object: {error}.")


def _read(members: Members, name: str, expected: Any, right: str) -> Any:
    if name not in members:
        raise BadRequest(f"'{name}' is missing; it must be {right}.", param=name)
    raw = members[name]
    if len(raw) > envelope.MOST_LOOKED_AT:
        raise BadRequest(f"'{name}' takes over {envelope.MOST_LOOKED_AT} bytes; it must be {right}.", param=name)
    try:
        return msgspec.json.decode(raw, type=expected)
    except (ValueError, RecursionError):
        raise BadRequest(f"'{name}' must be {right}.", param=name) from None


def rewrite(call: Call, model: msgspec.Raw, conflict_resolution: str | None) -> bytes | Pieces:
    """The call's body for a step: the step's model, and of tools and ``response_format`` only what it can take."""
    members = {**call.members, "model": model}
    if conflict_resolution and _conflicts(members):
        for name in ("response_format",) if conflict_resolution == "tools" else TOOL_MEMBERS:
            members.pop(name, None)
    return Pieces(members) if call.large else envelope.dumps(members)


def _conflicts(members: Members) -> bool:
    given = [members.get(name, envelope.ABSENT) for name in ("response_format", "tools", "functions")]
    return carries(given[0]) and (carries(given[1]) or carries(given[2]))
