"""A head that was parsed and judged once: what all requests have in common whose heads are the same bytes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from aigw.connections.request_head import RequestHead
from aigw.errors import GatewayError
from aigw.net import headers
from aigw.protocols.envelope import SMALL
from aigw.server.api import EndpointResource
from aigw.server.resources import ApiResource
from aigw.settings.callers import Caller
from aigw.straight.path import StraightPath
from aigw.straight.plan import Plan

if TYPE_CHECKING:
    from aigw.server.channel import Channel

MOST_OF_A_HEAD = 8 * 1024  # bytes that are kept
DIGITS = len(str(SMALL))  # of the length of a body
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,%d})\r\n" % DIGITS, re.IGNORECASE)


class RepeatedHead:
    """A head that was parsed: all but the digits of its Content-Length.

    ``headers`` are those for a provider, ``lines`` all headers of the requests of ``plan``, the last one.
    """

    __slots__ = (
        *("address", "after", "before", "caller", "facts", "given", "headers", "kind", "lines", "offered_id"),
        *("path", "plan", "resource", "tree"),
    )

    def __init__(
        self,
        head: RequestHead,
        before: bytes,
        after: bytes,
        resource: EndpointResource,
        path: StraightPath,
        caller: Caller,
    ) -> None:
        self.given = given = head.headers
        self.offered_id = given.get(b"x-request-id")
        self.kind = given.get(b"content-type", b"")
        self.facts = head.method, head.target, head.target, head.version
        self.before = before
        self.after = after
        self.resource = resource
        self.path = path
        self.caller = caller
        self.headers = headers.for_provider(given, path.endpoint.takes, path.endpoint.client_headers)
        self.plan: Plan | None = None
        self.lines = b""
        self.tree: ApiResource | None = None
        self.address: str | None = None


def learned(channel: Channel, head: RequestHead, data: bytes, size: int) -> RepeatedHead | None:
    """What is known of ``head``, the first ``size`` bytes of ``data``; None if its requests take the long way."""
    tree = channel.site.resource
    resource, given = tree.known.get(head.target), head.headers
    found = _LENGTH.search(data, 0, size)
    if (
        not isinstance(resource, EndpointResource)
        or resource.straight is None
        or found is None
        or size > MOST_OF_A_HEAD
        or head.method != b"POST"
        or not head.persistent
        or b"expect" in given
        or b"content-encoding" in given
    ):
        return None
    try:
        caller = tree.keys.authenticate(given.get(b"x-api-key"), given.get(b"authorization"), given.get(b"api-key"))
    except GatewayError:
        return None
    if caller.expires is not None:
        return None
    before, after = data[: found.start(1)], data[found.end(1) : size]
    known = RepeatedHead(head, before, after, resource, resource.straight, caller)
    known.tree = tree
    known.address = channel.client_address if resource.config.log_client_address else None
    return known
