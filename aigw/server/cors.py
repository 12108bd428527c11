"""Calls from web pages of other origins (CORS). Reference: https://fetch.spec.whatwg.org/#http-cors-protocol

Off unless the configuration names origins. Cookies are never allowed: a page calls with a key, as every client does.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING

from aigw.net.headers import Header

if TYPE_CHECKING:
    from aigw.server.request import Request

_METHODS = b"GET, HEAD, POST, DELETE"
_SECONDS = b"600"  # that a browser may keep the answer to a preflight
_NAMES = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z, \t-]{1,4096}")
_EXPOSED = (
    b"x-request-id, x-aigw-route, x-aigw-attempts, x-aigw-step, x-aigw-provider, x-aigw-model, x-aigw-key, "
    b"x-aigw-skipped, x-aigw-dropped, retry-after, retry-after-ms, x-should-retry, x-upstream-request-id"
)


class CrossOrigin:
    """Which pages may call, and the headers by which their browsers find that out."""

    def __init__(self, origins: Collection[str]) -> None:
        """``origins`` may have ``*``."""
        self._origins = frozenset([each.encode() for each in origins])
        self._is_open = b"*" in self._origins

    def is_preflight(self, request: Request) -> bool:
        """Whether a browser asks on behalf of an allowed page if it may call. It sends no key with that."""
        given = request.given
        return (
            request.method == b"OPTIONS"
            and b"access-control-request-method" in given
            and self._allows(given.get(b"origin"))
        )

    def _allows(self, origin: bytes | None) -> bool:
        return origin is not None and (self._is_open or origin in self._origins)

    def of_a_preflight(self, request: Request) -> list[Header]:
        """The headers of the answer to one."""
        sent = [(b"access-control-allow-methods", _METHODS), (b"access-control-max-age", _SECONDS)]
        asked = request.given.get(b"access-control-request-headers")
        if asked and _NAMES.fullmatch(asked):
            sent.append((b"access-control-allow-headers", asked))
        return [*self._allowed(request, b"Origin, Access-Control-Request-Headers"), *sent]

    def of_an_answer(self, request: Request) -> list[Header]:
        """The headers that every other answer has in addition."""
        sent = self._allowed(request, b"Origin")
        return [*sent, (b"access-control-expose-headers", _EXPOSED)] if len(sent) > 1 else sent

    def _allowed(self, request: Request, vary: bytes) -> list[Header]:
        origin = request.given.get(b"origin")
        if origin is None or not self._allows(origin):
            return [(b"vary", vary)]
        return [(b"vary", vary), (b"access-control-allow-origin", b"*" if self._is_open else origin)]
