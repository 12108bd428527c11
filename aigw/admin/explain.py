"""``POST /explain``: what the gateway would do with a request, on the listener for administrators."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from aigw.admin.access_control import AccessCheck
from aigw.admin.resource import AdminResource, send
from aigw.config.model import Config
from aigw.explain.explained import Explained
from aigw.explain.explainer import Explainer
from aigw.explain.text import as_json, as_text
from aigw.server.request import Request

EXPLAINED_BYTES = 1024 * 1024
TEXT = b"text/plain; charset=utf-8"


class Explain(AdminResource):
    """``POST /explain``: what the gateway would do with the request in the body, see ``explain``."""

    methods = (b"POST",)
    max_body = EXPLAINED_BYTES

    def __init__(self, config: Config, check_access: AccessCheck, explainer: Explainer) -> None:
        super().__init__(config, check_access)
        self._explainer = explainer

    def render(self, request: Request) -> Deferred[None]:
        """Text, or JSON for a client that accepts it. Fails with BadRequest."""

        def made(found: Explained) -> None:
            if b"json" in (request.header(b"accept") or b""):
                send(request, b"application/json", as_json(found, self._explainer.keys))
            else:
                send(request, TEXT, as_text(found, self._explainer.keys).encode())

        return request.site.slices.run(self._explainer.explain(bytes(request.body))).addCallback(made)
