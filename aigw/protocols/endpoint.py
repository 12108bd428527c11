"""An endpoint of the API, and a request to one: RawRequest before the body is read, Call after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import msgspec

from aigw.errors import GatewayError
from aigw.protocols import sse
from aigw.protocols.envelope import Parts
from aigw.protocols.multipart import Upload
from aigw.protocols.scanner import StreamScanner
from aigw.protocols.shaping import Difference
from aigw.protocols.skip import Steps
from aigw.protocols.walk import Members
from aigw.settings.bodies import BodyChanges
from aigw.settings.callers import Caller

JSON, FORM = b"application/json", b"multipart/form-data"


class RawRequest(msgspec.Struct, frozen=True, eq=False):
    """A request whose body has not been read. ``headers`` are the lines that may be sent to a provider."""

    endpoint: Endpoint
    body: bytes | bytearray
    headers: dict[bytes, bytes] = {}
    request_id: str = ""
    caller: Caller | None = None
    content_type: bytes = b""
    tail: bytes = b""


class Call(msgspec.Struct, frozen=True, eq=False):
    """One request, read once: the body's top-level members as raw bytes, and the headers that may be sent on.

    ``model`` is empty if the request has none. A ``large`` one is sent on in pieces; ``size`` is that of the body, in
    bytes. ``form`` is the body of a request that is not JSON. A stream has ``results`` results, each with an event at
    its end. ``tail`` follows the URL of the endpoint: a path below it, a query. ``response_id`` is the response that
    the request is about; ``method`` is then its method.
    """

    endpoint: Endpoint
    model: str
    stream: bool
    members: Members
    headers: dict[bytes, bytes] = {}
    request_id: str = ""
    caller: Caller | None = None
    large: bool = False
    size: int = 0
    form: Upload | None = None
    results: int = 1
    tail: bytes = b""
    method: str = "POST"
    response_id: str = ""


class CheckAnswer(Protocol):
    """See Endpoint."""

    def __call__(self, body: bytes, label: bytes = b"") -> tuple[str, str | None] | None:
        """``label`` is the answer's Content-Type, in lower case."""


class Endpoint(msgspec.Struct, frozen=True, eq=False):
    """Everything that differs between endpoints; nothing else in the gateway asks which endpoint it is.

    ``path`` is the part after ``/v1/``; ``aliases`` are other whole paths of it. ``read`` makes a Call, at once or in
    short steps; both raise BadRequest. ``takes`` are the media types of a body that the provider gets under their name.
    ``rewrite`` takes a Call, the step's model as JSON and the step's ``changes``. It gives the body for the step and
    what is different in it. With ``may_lack_model`` a route can be the default.
    ``check_answer`` gives None for a whole 2xx body that is an answer; else the reason, and the provider's own reason
    if it gave one. ``flows`` is there if an answer is passed on as it arrives: it takes the Content-Type and the first
    bytes, and gives whether they begin such an answer, or None if more bytes are needed. ``scanner`` makes the scanner
    of one streamed answer; ``scanner_without_usage`` makes one for a stream that the gateway asked for its usage, and
    is there if the endpoint has ``stream_options``. ``error_body`` formats the gateway's errors; it takes the error and
    the id of the request. ``keepalive`` shows the client of a stream that the gateway runs, and is not output. Client
    headers whose names begin with ``client_headers`` are sent to the provider, and so is the query if ``passes_query``.
    A refusal with one of the statuses in ``stop_on`` is the answer. ``acts_on_refusals``: clients read a provider's own
    words and shorten the request. A route that has no other setting then passes refusals on, and returns the refusal of
    a request that is too long.
    ``state_in`` gives the id of the stored response that a Call needs, or an empty text; it raises BadRequest.
    ``id_in`` gives the id of an answer by its beginning. ``stored`` is the endpoint of the answers that a provider
    stores; their paths are below this one. ``spends`` is what a request takes of the limits of its caller.
    """

    path: str
    read: Callable[[RawRequest], Call | Steps[Call]]
    rewrite: Callable[[Call, msgspec.Raw, BodyChanges | None], tuple[bytes | Parts, Difference]]
    check_answer: CheckAnswer
    scanner: Callable[[], StreamScanner]
    error_body: Callable[[GatewayError, str], bytes]
    scanner_without_usage: Callable[[], StreamScanner] | None = None
    aliases: tuple[str, ...] = ()
    takes: tuple[bytes, ...] = (JSON,)
    may_lack_model: bool = False
    flows: Callable[[bytes, bytes], bool | None] | None = None
    keepalive: bytes = sse.KEEP_ALIVE
    client_headers: bytes | None = None
    passes_query: bool = False
    stop_on: frozenset[str] = frozenset()
    acts_on_refusals: bool = False
    state_in: Callable[[Call], str] | None = None
    id_in: Callable[[bytes], str] | None = None
    stored: Endpoint | None = None
    spends: Literal["tokens", "requests", "nothing"] = "tokens"
