"""A request's body to a Call, and a Call to the body for a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from aigw.errors import BadRequest
from aigw.protocols import envelope
from aigw.protocols.endpoint import Call, RawRequest
from aigw.protocols.envelope import Pieces, carries
from aigw.protocols.skip import Steps
from aigw.protocols.walk import Members, TooMuch, Walk, mistake_in_messages

_MAGIC = {b"\x28\xb5\x2f\xfd": "zstd", b"\x1f\x8b\x08": "gzip"}  # how compressed data begins, and no JSON
TOOL_MEMBERS = ("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call")


def read_json(raw: RawRequest) -> Call | Steps[Call]:
    """A JSON object with a ``model``. Raises BadRequest, naming the member that is wrong."""
    return _read(raw, with_messages=False)


def read_chat(raw: RawRequest) -> Call | Steps[Call]:
    """The same with ``messages``."""
    return _read(raw, with_messages=True)


def _read(raw: RawRequest, with_messages: bool) -> Call | Steps[Call]:
    try:
        members = envelope.split_small(raw.body)
    except ValueError as error:
        raise _refused(error, raw.body) from None
    if members is None:
        return _read_in_steps(raw, with_messages)
    return _call(raw, members, mistake_in_messages if with_messages else None, large=False)


def _read_in_steps(raw: RawRequest, with_messages: bool) -> Steps[Call]:
    walk = Walk(raw.body)
    try:
        members = yield from walk.members(with_messages)
    except ValueError as error:
        raise _refused(error, raw.body) from None
    find_mistake = (lambda _: walk.mistake) if with_messages else None
    return _call(raw, members, find_mistake, len(raw.body) > envelope.SMALL)


def _call(
    raw: RawRequest, members: Members, mistake_in_messages: Callable[[Members], str | None] | None, large: bool
) -> Call:
    model = _member(members, "model", str, "a non-empty string")
    if not model:
        raise BadRequest("'model' must be a non-empty string.", param="model")
    if not envelope.OTHER_CASES.isdisjoint(members):
        name = next(each for each in members if each in envelope.OTHER_CASES)
        raise BadRequest(f"{name!r} must be written {name.casefold()!r}, in lower case.", param=name)
    stream = "stream" in members and _member(members, "stream", bool | None, "true or false") is True
    if mistake_in_messages is not None:
        if "messages" not in members:
            raise BadRequest("'messages' is missing; it must be a non-empty array of objects.", param="messages")
        item = mistake_in_messages(members)
        if item is not None:
            right = "a non-empty array of objects, each with a non-empty string 'role'"
            raise BadRequest(f"'{item}' is wrong: 'messages' must be {right}.", param=item)
    return Call(raw.endpoint, model, stream, members, tuple(raw.headers), raw.request_id, raw.caller, large)


def _refused(error: ValueError, body: bytes | bytearray) -> BadRequest:
    if isinstance(error, TooMuch):
        return BadRequest(f"The body {error}.")
    if len(body) <= envelope.SMALL and (not body or body.isspace()):
        return BadRequest("The body is empty; it must be a JSON object.")
    for magic, coding in _MAGIC.items():
        if body.startswith(magic):
            right = f"send it with 'Content-Encoding: {coding}', or uncompressed"
            return BadRequest(f"The body begins as {coding} data does, and no Content-Encoding says so; {right}.")
    return BadRequest(f"The body is not a JSON object: {error}.")


def _member(members: Members, name: str, expected: Any, right: str) -> Any:
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
