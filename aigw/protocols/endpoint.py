"""What an endpoint of the API is, and what a request to one is, as it came and once it was read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from aigw.config.model import Caller
from aigw.errors import GatewayError
from aigw.protocols.envelope import Parts
from aigw.protocols.multipart import Upload
from aigw.protocols.scanner import StreamScanner
from aigw.protocols.skip import Steps
from aigw.protocols.walk import Members

JSON, FORM = b"application/json", b"multipart/form-data"


class RawRequest(msgspec.Struct, frozen=True, eq=False):
    """A request as it came, its body not read yet. ``headers`` are the lines that may go on to a provider."""

    endpoint: Endpoint
    body: bytes | bytearray
    headers: dict[bytes, bytes] = {}
    request_id: str = ""
    caller: Caller | None = None
    content_type: bytes = b""


class Call(msgspec.Struct, frozen=True, eq=False):
    """One request, read once: the body's top-level members as raw bytes, and the headers that may go on.

    ``model`` is empty where the request leaves it to the gateway. ``large``: it goes on in pieces. ``form`` is the body
    of a request that is no JSON. ``results`` is how many results a stream of them announces, each by an event.
    """

    endpoint: Endpoint
    model: str
    stream: bool
    members: Members
    headers: dict[bytes, bytes] = {}
    request_id: str = ""
    caller: Caller | None = None
    large: bool = False
    form: Upload | None = None
    results: int = 1


class CheckAnswer(Protocol):
    """See Endpoint."""

    def __call__(self, body: bytes, label: bytes = b"") -> tuple[str, str | None] | None:
        """``label`` is the answer's Content-Type, in lower case."""


class Endpoint(msgspec.Struct, frozen=True, eq=False):
    """Everything that differs between endpoints; nothing else in the gateway asks which endpoint it is.

    ``path`` is behind ``/v1/``; ``aliases`` are other paths that lead here, whole. ``read`` makes a Call, at once or in
    short steps; both raise BadRequest. ``takes`` are the types of a body that go on under their name. ``rewrite``
    makes the body for a step, and the names of what it dropped: of a Call, the step's model as JSON, and the step's
    ``conflict_resolution``. ``may_lack_model``: a route can be the default.
    ``check_answer`` gives the reason why a whole 2xx body is no answer, with the provider's own reason if there is one,
    or None. ``flows``, where an answer is passed on as it comes: whether its first bytes, under this Content-Type, show
    such an answer; None if more are needed. ``scanner`` makes what judges one streamed answer. ``error_body`` is how
    the gateway's own errors look.
    """

    path: str
    read: Callable[[RawRequest], Call | Steps[Call]]
    rewrite: Callable[[Call, msgspec.Raw, str | None], tuple[bytes | Parts, tuple[str, ...]]]
    check_answer: CheckAnswer
    scanner: Callable[[], StreamScanner]
    error_body: Callable[[GatewayError], bytes]
    aliases: tuple[str, ...] = ()
    takes: tuple[bytes, ...] = (JSON,)
    may_lack_model: bool = False
    flows: Callable[[bytes, bytes], bool | None] | None = None
