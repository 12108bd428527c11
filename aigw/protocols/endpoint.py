"""An endpoint of the API, and a request to one: RawRequest before the body is read, Call after."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from aigw.config.model import Caller
from aigw.errors import GatewayError
from aigw.protocols.envelope import Pieces
from aigw.protocols.scanner import StreamScanner
from aigw.protocols.skip import Steps
from aigw.protocols.walk import Members


class RawRequest(msgspec.Struct, frozen=True, eq=False):
    """A request whose body has not been read. ``headers`` are the lines that may be sent to a provider."""

    endpoint: Endpoint
    body: bytes | bytearray
    headers: dict[bytes, bytes] = {}
    request_id: str = ""
    caller: Caller | None = None


class Call(msgspec.Struct, frozen=True, eq=False):
    """One request, read once: the body's top-level members as raw bytes, and the headers that may be sent on.

    A ``large`` one is sent on in pieces.
    """

    endpoint: Endpoint
    model: str
    stream: bool
    members: Members
    headers: dict[bytes, bytes] = {}
    request_id: str = ""
    caller: Caller | None = None
    large: bool = False


class Endpoint(msgspec.Struct, frozen=True, eq=False):
    """Everything that differs between endpoints; nothing else in the gateway asks which endpoint it is.

    ``path`` is the part after ``/v1/``. ``read`` makes a Call, at once or in short steps; both raise BadRequest.
    ``rewrite`` takes a Call, the step's model as JSON and the step's ``conflict_resolution``. It gives the body for the
    step and the names of the members that it dropped.
    ``check_answer`` gives None for a whole 2xx body that is an answer; else the reason, and the provider's own reason
    if it gave one. ``scanner`` makes the scanner of one streamed answer. ``error_body`` formats the gateway's errors.
    """

    path: str
    read: Callable[[RawRequest], Call | Steps[Call]]
    rewrite: Callable[[Call, msgspec.Raw, str | None], tuple[bytes | Pieces, tuple[str, ...]]]
    check_answer: Callable[[bytes], tuple[str, str | None] | None]
    scanner: Callable[[], StreamScanner]
    error_body: Callable[[GatewayError], bytes]
