"""The OpenAI wire: read a call, rewrite it for a step, say what an answer or an event means, and how errors look.

``ENDPOINTS`` is the one place that says what differs between endpoints. Reference: https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from aigw.errors import BadRequest, GatewayError, StreamBroken
from aigw.protocols import envelope, sse
from aigw.protocols.envelope import Pieces, carries
from aigw.protocols.skip import Steps
from aigw.protocols.walk import Members, TooMuch, Walk, mistake_in_messages, whole

TOOL_MEMBERS = ("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call")


class Meaning(enum.Enum):
    """What one event of a stream says."""

    NOTHING = "a comment, a ping, a role, an empty delta"
    OUTPUT = "part of the answer, or something that is not understood"
    DONE = "the end, without output of its own"
    ERROR = "a failure"


class Endpoint(msgspec.Struct, frozen=True, eq=False):
    """What differs between endpoints.

    ``path`` is behind ``/v1/``; ``answer`` is the member that a plain answer carries; ``meaning`` judges one streamed
    object; ``complete`` finds what says, beside ``[DONE]``, that a stream came to its end.
    """

    path: str
    answer: str
    meaning: Callable[[dict[str, Any]], Meaning]
    complete: Callable[[bytes], bool]


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


_encode = msgspec.json.encode


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


def mistake_in_answer(endpoint: Endpoint, body: bytes) -> tuple[str, Any] | None:
    """Why a whole 2xx body is no answer, with the error object that it holds if any; None where it is one."""
    if not body.strip():
        return "answered 2xx with an empty body", None
    try:
        error = envelope.error_without(endpoint.answer, body.removeprefix(b"\xef\xbb\xbf"))
    except ValueError:
        return "answered 2xx with a body that is not a JSON object", None
    return None if error is None else ("answered 2xx with an error", _object(error))


def meaning_of(endpoint: Endpoint, event: bytes) -> tuple[Meaning, Any]:
    """What one whole event says, and the error object that it holds if any. When in doubt it is output."""
    name, data = sse.fields(event)
    if data is None or not data.strip():
        return (Meaning.ERROR if name == "error" else Meaning.NOTHING), None
    if data.strip() == b"[DONE]":
        return Meaning.DONE, None
    said = _object(data)
    if name == "error":
        return Meaning.ERROR, said.get("error", said) if isinstance(said, dict) else said
    if not isinstance(said, dict):
        return Meaning.OUTPUT, None
    if name in _PINGS or said.get("type") in _PINGS:
        return Meaning.NOTHING, None
    if said.get("error") or said.get("type") in ("error", "response.failed"):
        response = said.get("response")
        return Meaning.ERROR, said.get("error") or (response.get("error") if isinstance(response, dict) else said)
    return endpoint.meaning(said), None


def _object(data: bytes | msgspec.Raw) -> Any:
    try:
        return json.loads(bytes(data)) if len(data) <= 2 * envelope.MOST_OF_AN_ERROR else None
    except (ValueError, RecursionError):
        return None


def _chat_meaning(said: dict[str, Any]) -> Meaning:
    """Chat and legacy completions: output is a delta with content of any kind, or a ``finish_reason``."""
    choices = said.get("choices")
    if not isinstance(choices, list):
        return Meaning.OUTPUT
    for choice in choices:
        if not isinstance(choice, dict):
            return Meaning.OUTPUT
        delta = choice.get("delta")
        rest = [value for key, value in choice.items() if key not in _ABOUT_A_CHOICE]
        if any(rest) or (isinstance(delta, dict) and any(value for key, value in delta.items() if key != "role")):
            return Meaning.OUTPUT
        if delta is not None and not isinstance(delta, dict):
            return Meaning.OUTPUT
    return Meaning.NOTHING


_ABOUT_A_CHOICE = frozenset(
    ["index", "delta", "logprobs", "content_filter_results", "content_filter_offsets", "native_finish_reason"]
)


def _responses_meaning(said: dict[str, Any]) -> Meaning:
    """The responses API: everything is output but the announcements that come before it."""
    return Meaning.NOTHING if said.get("type") in _ANNOUNCEMENTS else Meaning.OUTPUT


# Tuples: what stands in an event's ``type`` may be unhashable.
_PINGS = ("ping", "keepalive")
_ANNOUNCEMENTS = (
    "response.created",
    "response.queued",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
)

# An unescaped quote cannot stand inside a JSON string, nor a line end: neither pattern is met by what a model writes.
# Each begins with what is found fast: as alternatives of one pattern they cost 25 times as much.
_DONE = re.compile(rb"data:[ \t]*\[DONE\][ \t]*(?:[\r\n]|\Z)")
_FINISH = re.compile(rb'"finish_reason"\s*:\s*"[^"]+"')
_RESPONSE_END = re.compile(rb'"type"\s*:\s*"response\.(?:completed|incomplete|failed)"')


def _finished(data: bytes) -> bool:
    """Whether a ``finish_reason`` is given. Most events say there is none: counting takes half the time."""
    named = data.count(b'"finish_reason"')
    return named > data.count(b'"finish_reason":null') and _FINISH.search(data) is not None


def _response_ended(data: bytes) -> bool:
    return _RESPONSE_END.search(data) is not None


ENDPOINTS: dict[str, Endpoint] = {
    endpoint.path: endpoint
    for endpoint in [
        Endpoint("chat/completions", "choices", _chat_meaning, _finished),
        Endpoint("completions", "choices", _chat_meaning, _finished),
        Endpoint("embeddings", "data", _chat_meaning, _finished),
        Endpoint("responses", "output", _responses_meaning, _response_ended),
    ]
}


def is_complete(endpoint: Endpoint, data: bytes) -> bool:
    """Whether whole events say that the stream came to its end: in the endpoint's words, or by ``[DONE]``."""
    if b"[DONE]" in data:
        starts = [match.start() for match in _DONE.finditer(data)]
        if any(start == 0 or data[start - 1] in b"\r\n" for start in starts):
            return True
    return endpoint.complete(data)


def message_in(said: Any) -> str | None:
    """The message of an error object, or of one that is a mere string, as text that can be encoded."""
    message = said.get("message") if isinstance(said, dict) else said
    return message.encode(errors="replace").decode() if isinstance(message, str) else None


def error_body(error: GatewayError) -> bytes:
    """The OpenAI error shape."""
    shape = {"message": error.message, "type": error.type, "param": error.param, "code": error.code, **error.details}
    return _encode({"error": shape})


def error_event(broken: StreamBroken) -> bytes:
    """The one event that ends a stream which broke behind the commit point; it makes the OpenAI clients raise."""
    shape = {"message": broken.message, "type": "upstream_error", "param": None, "code": broken.code}
    return b"data: %s\n\n" % _encode({"error": shape})


def model(name: str, created: int) -> Mapping[str, Any]:
    """A route as ``GET /v1/models/{id}`` shows it; ``created`` in Unix seconds."""
    return {"id": name, "object": "model", "created": created, "owned_by": "ai-gateway"}
