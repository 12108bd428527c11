"""The list of models, which are the routes."""

from __future__ import annotations

import time
from collections.abc import Iterable

import msgspec

from aigw.config.model import Config
from aigw.protocols.endpoints import model
from aigw.routing.route_names import Routes, listed
from aigw.routing.router import Router
from aigw.server.cors import CrossOrigin
from aigw.server.request import Request
from aigw.server.resources import ApiResource


class ModelsResource(ApiResource):
    """``GET /v1/models`` and ``/v1/models/{id}``, where an id may contain slashes."""

    leads_on = True

    def __init__(self, config: Config, router: Router, cross_origin: CrossOrigin | None = None) -> None:
        super().__init__(config, cross_origin)
        self._router = router
        self._created = int(time.time())
        self._list = b""  # made at the first request: many routes have a long one

    def render(self, request: Request) -> bytes:
        """The list, or one. Raises RouteNotFound."""
        name = b"/".join(request.postpath).decode(errors="replace")
        routes = self._router.visible[request.caller.routes if request.caller is not None else ()]
        if not name:
            if not isinstance(routes, Routes):  # of a caller that may not use all
                return _list_of(routes.listed(), self._created)
            self._list = self._list or _list_of(listed(routes.routes), self._created)
            return self._list
        routes[name]
        return msgspec.json.encode(model(name, self._created))


def _list_of(names: Iterable[str], created: int) -> bytes:
    return msgspec.json.encode({"object": "list", "data": [model(each, created) for each in names]})
