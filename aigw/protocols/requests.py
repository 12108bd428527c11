"""Makes a Call from a request's body, and the body for a step from a Call."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
from msgspec.structs import replace

from aigw.errors import BadRequest
from aigw.protocols import envelope
from aigw.protocols.endpoint import Call, Endpoint, RawRequest
from aigw.protocols.envelope import Parts, Pieces, carries
from aigw.protocols.shaping import UNCHANGED, Difference, asked_for_usage, shaped, without
from aigw.protocols.skip import Steps, T
from aigw.protocols.walk import Members, TooMuch, Walk, mistake_in_messages
from aigw.settings.bodies import BodyChanges

Rewritten = tuple[bytes | Parts, Difference]

_MAGIC = {b"\x28\xb5\x2f\xfd": "zstd", b"\x1f\x8b\x08": "gzip"}  # compressed data begins so, and JSON does not
_text = msgspec.json.Decoder(str)
_text_or_null: msgspec.json.Decoder[str | None] = msgspec.json.Decoder(str | None)
_flag: msgspec.json.Decoder[bool | None] = msgspec.json.Decoder(bool | None)
_STATE = ("previous_response_id", "conversation", "store", "background")
_OFF = (b"null", b"false")
_NULL = msgspec.Raw(b"null")
TOOL_MEMBERS = ("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call")


def read_json(raw: RawRequest) -> Call | Steps[Call]:
    """Read a JSON object with a ``model``. Raises BadRequest with the name of the wrong member."""
    return _read(raw, _call)


def read_chat(raw: RawRequest) -> Call | Steps[Call]:
    """Read a JSON object with ``model`` and ``messages``. Raises BadRequest."""
    return _read(raw, _call, with_messages=True)


def read_unstreamed(raw: RawRequest) -> Call | Steps[Call]:
    """See read_json, for an endpoint without streams: ``stream: true`` of a client has no effect in the gateway."""
    return _read(raw, _unstreamed)


def read_messages_unstreamed(raw: RawRequest) -> Call | Steps[Call]:
    """See read_unstreamed, with ``messages``, for an endpoint that counts their tokens."""
    return _read(raw, _unstreamed, with_messages=True)


def read_speech(raw: RawRequest) -> Call | Steps[Call]:
    """The same where ``stream_format`` asks for a stream of events, and ``stream`` means nothing."""
    return _read(raw, _speech)


def read_images(raw: RawRequest) -> Call | Steps[Call]:
    """The same where a stream has an event for each of ``n`` images."""
    return _read(raw, _images)


MakeCall = Callable[[RawRequest, Members, int], Call]


def _read(raw: RawRequest, make: MakeCall, with_messages: bool = False) -> Call | Steps[Call]:
    size = len(raw.body)
    try:
        members = envelope.split_small(raw.body) if size <= envelope.SMALL else None
    except ValueError as error:
        raise _refused(error, raw.body) from None
    if members is None:
        return _read_in_steps(raw, make, with_messages)
    call = make(raw, members, size)
    if with_messages and ("messages" not in members or mistake_in_messages(members) is not None):
        raise _wrong_messages(members, mistake_in_messages)
    return call


def _read_in_steps(raw: RawRequest, make: MakeCall, with_messages: bool) -> Steps[Call]:
    walk = Walk(raw.body)
    try:
        members = yield from walk.members(with_messages)
    except ValueError as error:
        raise _refused(error, raw.body) from None
    call = make(raw, members, len(raw.body))
    if with_messages and ("messages" not in members or walk.mistake is not None):
        raise _wrong_messages(members, lambda _: walk.mistake)
    return call


def _call(raw: RawRequest, members: Members, size: int, streams: bool = True, results: int = 1) -> Call:
    if raw.endpoint.may_lack_model and bytes(members.get("model", envelope.ABSENT)) in (b"", b"null"):
        model = ""
    else:
        model = _member(members, "model", _text, "a non-empty string")
        if not model:
            raise BadRequest("'model' must be a non-empty string.", param="model")
    if not envelope.OTHER_CASES.isdisjoint(members):
        name = next(each for each in members if each in envelope.OTHER_CASES)
        raise BadRequest(f"{name!r} must be written {name.casefold()!r}, in lower case.", param=name)
    stream = "stream" in members and _member(members, "stream", _flag, "true or false") is True
    streams, large, headers = stream and streams, size > envelope.SMALL, raw.headers
    # by place: names would take twice as long
    return Call(
        raw.endpoint, model, streams, members, headers, raw.request_id, raw.caller, large, size, None, results, raw.tail
    )


def _unstreamed(raw: RawRequest, members: Members, size: int) -> Call:
    return _call(raw, members, size, streams=False)


def _speech(raw: RawRequest, members: Members, size: int) -> Call:
    call = _call(raw, members, size, streams=False)
    return replace(call, stream=bytes(members.get("stream_format", envelope.ABSENT)) == b'"sse"')


def _images(raw: RawRequest, members: Members, size: int) -> Call:
    return _call(raw, members, size, results=_results(members))


def _results(members: Members) -> int:
    written = members.get("n", envelope.ABSENT)
    return count(bytes(written)) if len(written) < 4 else 1


def count(written: bytes) -> int:
    """The number that a request's ``n`` is, 1 where it is none."""
    return int(written) if written.isdigit() and len(written) < 4 and int(written) else 1


def _wrong_messages(members: Members, find_mistake: Callable[[Members], str | None]) -> BadRequest:
    if "messages" not in members:
        return BadRequest("'messages' is missing; it must be a non-empty array of objects.", param="messages")
    item = find_mistake(members)
    right = "a non-empty array of objects, each with a non-empty string 'role'"
    return BadRequest(f"'{item}' is wrong: 'messages' must be {right}.", param=item)


def _refused(error: ValueError, body: bytes | bytearray) -> BadRequest:
    if isinstance(error, TooMuch):
        return BadRequest(f"The body {error}.")
    if len(body) <= envelope.SMALL and (not body or body.isspace()):
        return BadRequest("The body is empty; it must be a JSON object.")
    for magic, coding in _MAGIC.items():
        if body.startswith(magic):
            right = f"send it with 'Content-Encoding: {coding}', or uncompressed"
            return BadRequest(f"The body is {coding} data, but the request has no Content-Encoding; {right}.")
    return BadRequest(f"The body is not a JSON object: {error}.")


def _member(members: Members, name: str, decoder: msgspec.json.Decoder[T], right: str) -> T:
    if name not in members:
        raise BadRequest(f"'{name}' is missing; it must be {right}.", param=name)
    raw = members[name]
    if len(raw) > envelope.MOST_READ:
        raise BadRequest(f"'{name}' takes over {envelope.MOST_READ} bytes; it must be {right}.", param=name)
    try:
        return decoder.decode(raw)
    except (ValueError, RecursionError):
        raise BadRequest(f"'{name}' must be {right}.", param=name) from None


def dumps(members: Members) -> bytes:
    """The JSON object with these members. There must be at least one."""
    try:
        return msgspec.json.encode(members)
    except UnicodeEncodeError:  # a lone surrogate in a name
        return b"".join(Pieces(members))


def rewrite(call: Call, model: msgspec.Raw, changes: BodyChanges | None) -> Rewritten:
    """The call's body for a step, and what the step changes in it.

    The body has the step's model. Where the step cannot take both tools and ``response_format``, one is dropped.
    """
    members = {**call.members, "model": model}
    difference = UNCHANGED
    if changes is not None:
        members, difference = _changed(call, members, changes)
        if changes.conflict_resolution and _has_tools(members) and _is_format(members.get("response_format")):
            names = ("response_format",) if changes.conflict_resolution == "tools" else TOOL_MEMBERS
            difference = _without(names, members, difference)
    return (Pieces(members) if call.large else dumps(members)), difference


def rewrite_response(call: Call, model: msgspec.Raw, changes: BodyChanges | None) -> Rewritten:
    """See rewrite, for the Responses API, where the format is ``text.format``. The rest of ``text`` is not changed."""
    members = {**call.members, "model": model}
    difference = UNCHANGED
    if changes is not None:
        members, difference = _changed(call, members, changes)
        if changes.conflict_resolution and _has_tools(members) and "text" in members:
            text = _members_of(members["text"])
            if _is_format(text.get("format")) and changes.conflict_resolution == "tools":
                del text["format"]
                members["text"] = msgspec.Raw(dumps(text) if text else b"{}")
                difference = replace(difference, dropped=(*difference.dropped, "text.format"))
            elif _is_format(text.get("format")):
                difference = _without(TOOL_MEMBERS, members, difference)
    return (Pieces(members) if call.large else dumps(members)), difference


def rewrite_nothing(call: Call, model: msgspec.Raw, changes: BodyChanges | None) -> Rewritten:
    """The same of a request without a body."""
    return b"", UNCHANGED


def own_request(endpoint: Endpoint, content: Mapping[str, object], changes: BodyChanges | None) -> bytes:
    """The body of a request of the gateway's own, as a step with these changes sends it."""
    members = {name: msgspec.Raw(msgspec.json.encode(each)) for name, each in content.items()}
    body, _ = endpoint.rewrite(Call(endpoint, "", False, members), members["model"], changes)
    return b"".join(body) if isinstance(body, Parts) else body


def _changed(call: Call, members: Members, changes: BodyChanges) -> tuple[Members, Difference]:
    members, difference = shaped(members, changes)
    if not call.stream:
        return members, difference
    if difference.touches("n"):
        difference = replace(difference, results=_results(members))
    if changes.ask_usage and call.endpoint.scanner_without_usage is not None:
        return asked_for_usage(call.members, members, difference)
    return members, difference


def _without(names: tuple[str, ...], members: Members, difference: Difference) -> Difference:
    """Remove these members, because the step cannot take them beside others."""
    gone = [name for name in names if members.pop(name, None) is not None]
    return without(gone, difference)


def previous_response(call: Call) -> str:
    """The id of the response that the call continues; empty if it continues none. Raises BadRequest."""
    if "previous_response_id" not in call.members:
        return ""
    return _member(call.members, "previous_response_id", _text_or_null, "the id of a response, or null") or ""


def uses_state(members: Members) -> bool:
    """Whether a request begins or continues what its provider keeps, and another provider does not have."""
    return any([bytes(memoryview(members.get(name, _NULL))[:6]) not in _OFF for name in _STATE])


def _has_tools(members: Members) -> bool:
    return any(carries(members.get(name, envelope.ABSENT)) for name in ("tools", "functions"))


class _Format(msgspec.Struct):
    type: object = None


_format = msgspec.json.Decoder(_Format)


def _is_format(raw: msgspec.Raw | None) -> bool:
    """Whether the format can conflict with tools. ``{"type": "text"}`` is the default format and cannot."""
    if raw is None or not carries(raw):
        return False
    if len(raw) > envelope.MOST_READ:
        return True
    try:
        return _format.decode(raw).type != "text"
    except (ValueError, RecursionError):
        return True


def _members_of(raw: msgspec.Raw) -> Members:
    """The members of a small object; empty for any other value, which is sent on unchanged."""
    try:
        return envelope.split_members(bytes(raw)) if len(raw) <= envelope.SMALL else {}
    except ValueError:
        return {}
