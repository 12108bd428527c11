"""The answer to data that is not a valid request, after which the connection closes."""

from __future__ import annotations

from aigw.connections.request_head import answer_to_no_request
from aigw.errors import GatewayError
from aigw.net import headers
from aigw.server.request import Request
from aigw.server.resources import ApiResource


def answer(error: GatewayError, request: Request | None, resource: ApiResource) -> bytes:
    """The whole answer. ``request`` is there if its head was valid and its body is not; it has ended then.

    Without it ``resource`` gives the form of the error.
    """
    if request is None:
        return answer_to_no_request(error, "", True, resource.error_body)
    more = headers.lines(request.resource.headers(request))
    request.error = error
    request.answered(error.status)
    with_body = request.method != b"HEAD"  # RFC 9110, 9.3.2
    return answer_to_no_request(error, request.request_id, with_body, request.resource.error_body, more)
