"""The resources that show the state of the gateway, for administrators and monitoring."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple
from urllib.parse import parse_qs

from twisted.internet.defer import Deferred
from twisted.web.server import NOT_DONE_YET

from aigw.access.errors import NotAllowed
from aigw.admin.access_control import AccessCheck, allow_all, allow_local, is_near, with_key
from aigw.admin.explain import Explain
from aigw.admin.live_feed import LiveFeed
from aigw.admin.long_body import LongBody
from aigw.admin.page import Page
from aigw.admin.resource import NO_SNIFFING, AdminNotFound, AdminResource, send
from aigw.admin.session import Cookies, cookie, is_form, is_own_form, no_cookie
from aigw.config.model import Config
from aigw.errors import CrossSite, GatewayError, NotAForm, NotReady, Unauthorized, WrongKey
from aigw.explain.explainer import Explainer
from aigw.net.headers import Header
from aigw.server.request import Request
from aigw.server.resources import ApiResource, HealthResource
from aigw.telemetry.telemetry import Telemetry

CheckReady = Callable[[], None]
HTML = b"text/html; charset=utf-8"
FORM_BYTES = 4096
# Read at the start: during an upgrade the files of the package may be replaced.
_PAGE, _FORM = Page("status.html"), Page("login.html")
_WRONG = '<p class="wrong" role="alert">The API key is wrong.</p>'
_NOT_ALLOWED = '<p class="wrong" role="alert">This API key is for requests. The page needs the admin key.</p>'
_SIGN_OUT = '<form method="post" action="status/logout"><button>Sign out</button></form>'


class AdminState(NamedTuple):
    """The common state of all pages; a reload keeps it."""

    telemetry: Telemetry
    viewers: LiveFeed
    cookies: Cookies


class AdminRoot(AdminNotFound):
    """The root of the listener for administrators."""

    isLeaf = False


class MetricsResource(AdminResource):
    """``GET /metrics``, for Prometheus."""

    def __init__(self, config: Config, check_access: AccessCheck, telemetry: Telemetry) -> None:
        super().__init__(config, check_access)
        self._telemetry = telemetry

    def render(self, request: Request) -> Deferred[None]:
        """In the format that the scraper asks for."""

        def made(answer: tuple[list[bytes], bytes]) -> Deferred[None]:
            fragments, kind = answer
            request.begin(200, [(b"content-type", kind), NO_SNIFFING], sum(map(len, fragments)))
            return LongBody(request, fragments).written

        accept = (request.header(b"accept") or b"").decode("latin-1")
        return self._telemetry.scrape(accept).addCallback(made)


class Ready(AdminResource):
    """``GET /ready``: whether new requests should be sent here, for load balancers. It needs no key."""

    def __init__(self, config: Config, check_access: AccessCheck, check: CheckReady) -> None:
        """``check`` raises a GatewayError if the gateway is not ready."""
        super().__init__(config, check_access)
        self._check = check

    def render(self, request: Request) -> bytes:
        """Whether it is ready; on this machine also the process id, because several may share a socket, and the reason.

        Raises what ``check`` raises; for other machines NotReady.
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
    """``GET /status``: the page, or for a browser without key or cookie the form for signing in."""

    isLeaf = False

    def identify(self, request: Request) -> None:
        """A browser is let in as far as the form."""
        if b"text/html" not in (request.header(b"accept") or b""):
            self.check_access(request)

    def render(self, request: Request) -> int:
        """The page, which loads its data separately."""
        try:
            self.check_access(request)
        except WrongKey as error:
            taken_back = (
                b"set-cookie",
                no_cookie(request.isSecure()).encode(),
            )  # else each reload of the page counts as a wrong key
            request.channel.site.refused_keys.delay(request, error, lambda: show_form(request, "", taken_back))
            return NOT_DONE_YET
        except Unauthorized:
            return show_form(request)
        signed_in = request.header(b"cookie") and request.caller
        page = _PAGE.html("sign-out", _SIGN_OUT) if signed_in else _PAGE.html()
        return send(request, HTML, page, *_PAGE.headers)


class Form(AdminResource):
    """A form from a page of this gateway; forms from other sites are refused."""

    methods = (b"POST",)
    max_body = FORM_BYTES

    def __init__(self, config: Config) -> None:
        super().__init__(config, allow_all)

    def admit(self, request: Request) -> None:
        """Check the request by its head. Raises CrossSite, NotAForm."""
        super().admit(request)
        if not is_own_form(request.header(b"origin"), request.header(b"sec-fetch-site"), request.header(b"host")):
            raise CrossSite("A page of another site sent this form; open /status on this gateway and use its form.")
        if not is_form(request.header(b"content-type")):
            raise NotAForm("The body has the wrong type; send it as application/x-www-form-urlencoded.")


class SignIn(Form):
    """``POST /status/login``: gives the cookie for the key in the form."""

    def render(self, request: Request) -> int:
        """Back to the page, or once more the form."""
        keys = parse_qs(request.body.decode("latin-1")).get("key", [""])
        try:
            caller = request.site.resource.keys.admin(keys[0].strip().encode("latin-1", "replace"), None)
        except WrongKey as error:
            request.channel.site.refused_keys.delay(request, error, lambda: show_form(request, _WRONG))
            return NOT_DONE_YET
        except NotAllowed:
            return show_form(request, _NOT_ALLOWED)
        except Unauthorized:
            return show_form(request, _WRONG)
        return to_the_page(request, cookie(caller, time.time(), request.isSecure()))


class SignOut(Form):
    """``POST /status/logout``: deletes the cookie in the browser and makes its copies invalid."""

    def __init__(self, config: Config, state: AdminState) -> None:
        super().__init__(config)
        self._state = state

    def render(self, request: Request) -> int:
        """A redirect to the form. Open pages connect again, because this cookie may have opened some."""
        sent = (request.header(b"cookie") or b"").decode("latin-1")
        if self._state.cookies.sign_out(self.config.admins, sent, time.time(), request.isSecure()):
            self._state.viewers.ask_again()
        return to_the_page(request, no_cookie(request.isSecure()))


class StatusJson(AdminResource):
    """``GET /status.json``: the data of the page."""

    def __init__(self, config: Config, check_access: AccessCheck, telemetry: Telemetry) -> None:
        super().__init__(config, check_access)
        self._telemetry = telemetry

    def render(self, request: Request) -> Deferred[None]:
        """The present status."""
        return request.site.slices.run(self._telemetry.status()).addCallback(partial(request.answer, 200))


class Events(AdminResource):
    """``GET /status/events``: the same data, sent again when it has changed."""

    methods = (b"GET",)

    def __init__(self, config: Config, check_access: AccessCheck, state: AdminState) -> None:
        super().__init__(config, check_access)
        self._state = state

    def render(self, request: Request) -> int:
        """Raises Overloaded."""
        self._state.viewers.admit(request)
        return NOT_DONE_YET


def show_form(request: Request, wrong: str = "", *headers: Header) -> int:
    """Answer with the form for signing in."""
    return send(request, HTML, _FORM.html("wrong", wrong), *_FORM.headers, *headers)


def to_the_page(request: Request, set_cookie: str) -> int:
    """Redirect the browser to the page, with another cookie."""
    request.begin(303, [(b"location", b"../status"), (b"set-cookie", set_cookie.encode())], 0)
    request.write(b"")
    request.end()
    return NOT_DONE_YET


def add_resources(
    root: ApiResource,
    config: Config,
    state: AdminState,
    check_ready: CheckReady,
    check_access: AccessCheck | None = None,
) -> None:
    """Put the resources below ``root``. Without ``check_access`` they need a key, except ``/ready``."""
    ask = check_access or with_key(config.admins, state.cookies)
    status = Status(config, ask)
    root.putChild(b"status", status)
    status.putChild(b"events", Events(config, ask, state))
    if check_access is None:
        status.putChild(b"login", SignIn(config))
        status.putChild(b"logout", SignOut(config, state))
    root.putChild(b"status.json", StatusJson(config, ask, state.telemetry))
    root.putChild(b"ready", Ready(config, check_access or allow_all, check_ready))
    root.putChild(b"metrics", MetricsResource(config, ask, state.telemetry))


def tree(config: Config, state: AdminState, check_ready: CheckReady, explainer: Explainer) -> ApiResource:
    """The tree of the listener for administrators: these resources without a key, and no API.

    An explanation has the addresses of providers, so it is not on the other listeners, where every client has a key.
    """
    root = AdminRoot(config, allow_local)
    root.putChild(b"health", HealthResource(config))
    root.putChild(b"explain", Explain(config, allow_local, explainer))
    add_resources(root, config, state, check_ready, allow_local)
    return root
