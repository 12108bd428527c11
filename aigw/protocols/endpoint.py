"""What an endpoint of the API is, and what a request to one is, as it came and once it was read."""

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
    """A request as it came, its body not read yet. ``headers`` are the lines that may go on to a provider."""

    endpoint: Endpoint
    body: bytes | bytearray
    headers: dict[bytes, bytes] = {}
    request_id: str = ""
    caller: Caller | None = None
    tail: bytes = b""


class Call(msgspec.Struct, frozen=True, eq=False):
    """One request, read once: the body's top-level members as raw bytes, and the headers that may go on.

    ``large``: it goes on in pieces. ``tail`` follows the endpoint's URL: what is below it, a query. ``response_id`` is
    the response that the request is about; ``method`` is then its method.
    """

    endpoint: Endpoint
    model: str
    stream: bool
    members: Members
    headers: dict[bytes, bytes] = {}
    request_id: str = ""
    caller: Caller | None = None
    large: bool = False
    tail: bytes = b""
    method: str = "POST"
    response_id: str = ""


class Endpoint(msgspec.Struct, frozen=True, eq=False):
    """Everything that differs between endpoints; nothing else in the gateway asks which endpoint it is.

    ``path`` is behind ``/v1/``. ``read`` makes a Call, at once or in short steps; both raise BadRequest. ``rewrite``
    makes the body for a step, and the names of what it dropped: of a Call, the step's model as JSON, and the step's
    ``conflict_resolution``.
    ``check_answer`` gives the reason why a whole 2xx body is no answer, with the provider's own reason if there is one,
    or None. ``scanner`` makes what judges one streamed answer. ``error_body`` is how the gateway's own errors look.
    ``keepalive`` shows clients of a stream that the gateway is alive, and is no output for them. Client headers whose
    names begin with ``client_headers`` go to the provider, and so does the query if ``passes_query``. A refusal with
    one of the statuses in ``stop_on`` is the answer. Where ``acts_on_refusals`` clients shorten a request if they read
    a provider's own words: a route then passes refusals on, and returns those of a long request, unless it is set.
    ``state_in`` gives the id of a response at a provider on which a Call depends, empty if it depends on none; raises
    BadRequest. ``id_in`` gives the id under which a provider keeps an answer, by what is held of it. ``stored`` is the
    endpoint of such answers, which are below this one by their ids.
    """

    path: str
    read: Callable[[RawRequest], Call | Steps[Call]]
    rewrite: Callable[[Call, msgspec.Raw, str | None], tuple[bytes | Pieces, tuple[str, ...]]]
    check_answer: Callable[[bytes], tuple[str, str | None] | None]
    scanner: Callable[[], StreamScanner]
    error_body: Callable[[GatewayError, str], bytes]
    keepalive: bytes = b": keep-alive\n\n"
    client_headers: bytes | None = None
    passes_query: bool = False
    stop_on: frozenset[str] = frozenset()
    acts_on_refusals: bool = False
    state_in: Callable[[Call], str] | None = None
    id_in: Callable[[bytes], str] | None = None
    stored: Endpoint | None = None
