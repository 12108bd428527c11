"""The resources that show what the gateway does, for administrators and their machines."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from aigw.access.keys import authenticate
from aigw.admin.access_control import AccessCheck, allow_local, everybody, is_near, with_key
from aigw.admin.live_feed import LiveFeed
from aigw.admin.page import Page
from aigw.admin.session import Cookies, cookie, is_form, is_own_form, no_cookie
from aigw.config.model import Config
from aigw.errors import CrossSite, GatewayError, NotAForm, NotReady, PathNotFound, Unauthorized, WrongKey
from aigw.net.headers import Header
from aigw.server.request import Request
from aigw.server.resources import ApiResource, HealthResource
from aigw.telemetry.telemetry import Telemetry

CheckReady = Callable[[], None]
HTML = b"text/html; charset=utf-8"
FORM_BYTES = 4096
# Read at the start: a reload needs no file of the package, which an upgrade may be replacing.
_PAGE, _FORM = Page("status.html"), Page("login.html")
_WRONG = '<p class="wrong" role="alert">That key is not one of this gateway\u2019s.</p>'
_SIGN_OUT = '<form method="post" action="status/logout"><button>Sign out</button></form>'


class AdminState(NamedTuple):
    """What all pages share; it outlives every reload."""

    watch: Telemetry
    viewers: LiveFeed
    cookies: Cookies


class AdminResource(ApiResource):
    """Something to look at, behind a gate."""

    def __init__(self, config: Config, gate: AccessCheck) -> None:
        super().__init__(config)
        self.gate = gate

    def identify(self, request: Request) -> None:
        """Raises what the gate does."""
        self.gate(request)

    def getChild(self, path: bytes, request: Any) -> Resource:
        """Anything below that is not a resource of its own is unknown."""
        return AdminNotFound(self.config, self.gate)

    def headers(self, request: Request) -> list[Header]:
        """What is shown is of this moment."""
        return [*super().headers(request), (b"cache-control", b"no-store")]


class AdminNotFound(AdminResource):
    """Every path where there is nothing to see."""

    methods = ()

    def wrong_path(self, request: Request) -> GatewayError:
        """What there is."""
        return PathNotFound("Unknown path; there are /status, /status.json, /metrics, /ready and /health.")


class AdminRoot(AdminNotFound):
    """All that is on the listener for administrators."""

    isLeaf = False


class MetricsResource(AdminResource):
    """``GET /metrics``, for Prometheus."""

    def __init__(self, config: Config, gate: AccessCheck, watch: Telemetry) -> None:
        super().__init__(config, gate)
        self._watch = watch

    def render(self, request: Any) -> Any:
        """In the format that the scraper asks for."""

        def made(answer: tuple[bytes, bytes]) -> None:
            body, kind = answer
            send(request, kind, body)

        accept = (request.header(b"accept") or b"").decode("latin-1")
        return self._watch.scrape(accept).addCallback(made)


class Ready(AdminResource):
    """``GET /ready``: whether new requests should be sent here, for whoever balances the load, and from anywhere."""

    def __init__(self, config: Config, gate: AccessCheck, check: CheckReady) -> None:
        """``check`` raises a GatewayError if they should not."""
        super().__init__(config, gate)
        self._check = check

    def render(self, request: Any) -> bytes:
        """Whether it is; on this machine also which process says so, for several may share a socket, and why not.

        Raises what ``check`` does, elsewhere NotReady.
        """
        near = is_near(request.channel.transport)
        try:
            self._check()
        except GatewayError as error:
            if not near:
                raise NotReady("The gateway is not ready.") from None
            error.details["pid"] = os.getpid()
            raise
        return b'{"status": "ready", "pid": %d}' % os.getpid() if near else b'{"status": "ready"}'


class Status(AdminResource):
    """``GET /status``: the page, or for a browser without key or cookie the form that asks for one."""

    isLeaf = False

    def identify(self, request: Request) -> None:
        """A browser is let in as far as the form."""
        if b"text/html" not in (request.header(b"accept") or b""):
            self.gate(request)

    def render(self, request: Any) -> int:
        """The page never changes; what it shows comes behind it."""
        try:
            self.gate(request)
        except WrongKey as error:
            taken_back = (b"set-cookie", no_cookie(request.isSecure()).encode())  # or each look counts as a try
            request.channel.site.refused_keys.delay(request, error, lambda: self.ask(request, "", taken_back))
            return NOT_DONE_YET
        except Unauthorized:
            return self.ask(request)
        signed_in = request.header(b"cookie") and request.caller
        page = _PAGE.html("sign-out", _SIGN_OUT) if signed_in else _PAGE.html()
        return send(request, HTML, page, *_PAGE.headers)

    def ask(self, request: Any, wrong: str = "", *headers: Header) -> int:
        """The form."""
        return send(request, HTML, _FORM.html("wrong", wrong), *_FORM.headers, *headers)


class Form(AdminResource):
    """What a browser sends from a page of ours, and nobody else's page has it send."""

    methods = (b"POST",)
    max_body = FORM_BYTES

    def __init__(self, config: Config) -> None:
        super().__init__(config, everybody)

    def admit(self, request: Request) -> None:
        """Judge the request by its head. Raises CrossSite, NotAForm."""
        super().admit(request)
        if not is_own_form(request.header(b"origin"), request.header(b"sec-fetch-site"), request.header(b"host")):
            raise CrossSite("A page of another site has sent this form; open /status here and use the form there.")
        if not is_form(request.header(b"content-type")):
            raise NotAForm("The body is to be of the type application/x-www-form-urlencoded.")


class SignIn(Form):
    """``POST /status/login``: from the key, which stands in a form, to the cookie."""

    def __init__(self, config: Config, status: Status) -> None:
        super().__init__(config)
        self._status = status

    def render(self, request: Any) -> int:
        """Back to the page, or once more the form."""
        keys = parse_qs(request.body.decode("latin-1")).get("key", [""])
        try:
            caller = authenticate(self.config.callers, keys[0].strip().encode("latin-1", "replace"), None)
        except WrongKey as error:
            request.channel.site.refused_keys.delay(request, error, lambda: self._status.ask(request, _WRONG))
            return NOT_DONE_YET
        except Unauthorized:
            return self._status.ask(request, _WRONG)
        return to_the_page(request, cookie(caller, time.time(), request.isSecure()))


class SignOut(Form):
    """``POST /status/logout``: the browser forgets its cookie, and so do we: a copy of it opens nothing any more."""

    def __init__(self, config: Config, state: AdminState) -> None:
        super().__init__(config)
        self._state = state

    def render(self, request: Any) -> int:
        """Back to the form; the pages that are live ask anew, for this cookie may have opened some."""
        sent = (request.header(b"cookie") or b"").decode("latin-1")
        if self._state.cookies.sign_out(self.config.callers, sent, time.time(), request.isSecure()):
            self._state.viewers.ask_again()
        return to_the_page(request, no_cookie(request.isSecure()))


class StatusJson(AdminResource):
    """``GET /status.json``: what the page shows."""

    def __init__(self, config: Config, gate: AccessCheck, watch: Telemetry) -> None:
        super().__init__(config, gate)
        self._watch = watch

    def render(self, request: Any) -> Any:
        """As of this moment."""
        return self._watch.status()


class Events(AdminResource):
    """``GET /status/events``: the same, again whenever it has changed."""

    methods = (b"GET",)

    def __init__(self, config: Config, gate: AccessCheck, state: AdminState) -> None:
        super().__init__(config, gate)
        self._state = state

    def render(self, request: Any) -> int:
        """Raises Overloaded."""
        self._state.viewers.admit(request)
        return NOT_DONE_YET


def to_the_page(request: Any, set_cookie: str) -> int:
    """Have the browser ask for the page, with another cookie."""
    request.begin(303, [(b"location", b"../status"), (b"set-cookie", set_cookie.encode())], 0)
    request.write(b"")
    request.end()
    return NOT_DONE_YET


def send(request: Any, kind: bytes, body: bytes, *headers: Header) -> int:
    """Answer with something that is no JSON."""
    own = [(b"content-type", kind), (b"x-content-type-options", b"nosniff"), *headers]
    request.begin(200, own, len(body))
    request.write(body)
    request.end()
    return NOT_DONE_YET


def show(
    root: ApiResource, config: Config, state: AdminState, check_ready: CheckReady, gate: AccessCheck | None = None
) -> None:
    """Put the resources below ``root``, where a key is asked for, but for ``/ready``, unless ``gate`` is given."""
    ask = gate or with_key(config.callers, state.cookies)
    status = Status(config, ask)
    root.putChild(b"status", status)
    status.putChild(b"events", Events(config, ask, state))
    if gate is None:
        status.putChild(b"login", SignIn(config, status))
        status.putChild(b"logout", SignOut(config, state))
    root.putChild(b"status.json", StatusJson(config, ask, state.watch))
    root.putChild(b"ready", Ready(config, gate or everybody, check_ready))
    root.putChild(b"metrics", MetricsResource(config, ask, state.watch))


def tree(config: Config, state: AdminState, check_ready: CheckReady) -> ApiResource:
    """What the listener for administrators has: all of this without a key, and nothing of the API."""
    root = AdminRoot(config, allow_local)
    root.putChild(b"health", HealthResource(config))
    show(root, config, state, check_ready, allow_local)
    return root
