"""What the resources for administrators have in common."""

from __future__ import annotations

from twisted.web.server import NOT_DONE_YET

from aigw.admin.access_control import AccessCheck
from aigw.config.model import Config
from aigw.errors import GatewayError, PathNotFound
from aigw.net.headers import Header
from aigw.server.request import Request
from aigw.server.resources import ApiResource

NO_SNIFFING: Header = (b"x-content-type-options", b"nosniff")


class AdminResource(ApiResource):
    """A resource of the status pages, with the check of who may see it."""

    def __init__(self, config: Config, check_access: AccessCheck) -> None:
        super().__init__(config)
        self.check_access = check_access

    def identify(self, request: Request) -> None:
        """Raises what the gate does."""
        self.check_access(request)

    def getChild(self, path: bytes, request: Request) -> AdminResource:
        """Anything below that is not a resource of its own is unknown."""
        return AdminNotFound(self.config, self.check_access)

    def headers(self, request: Request) -> list[Header]:
        """The pages show the present state, so they are not cached."""
        return [*super().headers(request), (b"cache-control", b"no-store")]


class AdminNotFound(AdminResource):
    """Every unknown path."""

    methods = ()

    def wrong_path(self, request: Request) -> GatewayError:
        """What there is."""
        return PathNotFound("Unknown path; there are /status, /status.json, /metrics, /explain, /ready and /health.")


def send(request: Request, kind: bytes, body: bytes, *headers: Header) -> int:
    """Answer with a body that is not JSON."""
    own = [(b"content-type", kind), NO_SNIFFING, *headers]
    request.begin(200, own, len(body))
    request.write(body)
    request.end()
    return NOT_DONE_YET
