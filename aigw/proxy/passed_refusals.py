"""Which refusal the client gets unchanged: at once because of ``stop_on``, or after all steps by ``when_refused``."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from aigw.config.model import Route
from aigw.errors import UpstreamFailure, UpstreamRefused
from aigw.protocols.context_overflow import is_context_overflow
from aigw.protocols.endpoint import Endpoint
from aigw.protocols.refusals import KEY_REFUSED
from aigw.proxy.responder import Responder
from aigw.secret import KeySearch
from aigw.upstream.attempt import Attempt

# Statuses of refusals that are about the request: it would be refused again, and its sender can correct it.
ABOUT_THE_REQUEST = frozenset([400, 404, 409, 413, 415, 422])


def is_final(failure: UpstreamFailure, route: Route, endpoint: Endpoint, keys: KeySearch) -> bool:
    """Whether the client gets this failure now and no other step is tried (F5, F9)."""
    returned = route.on_context_overflow or ("return" if endpoint.acts_on_refusals else "next")
    return stops(failure, route.stop_on | endpoint.stop_on, keys, returned == "return")


def stops(failure: UpstreamFailure, stop_on: AbstractSet[str], keys: KeySearch, at_overflow: bool = False) -> bool:
    """Whether it is a refusal that is in ``stop_on``, or that of a request that is too long if ``at_overflow``."""
    if not isinstance(failure, UpstreamRefused) or not 400 <= (failure.status or 0) <= 599:
        return False
    is_listed = not stop_on.isdisjoint([str(failure.status), *failure.words])
    return (is_listed or (at_overflow and _is_overflow(failure))) and _can_be_passed_on(failure, keys)


def of_all_steps(
    failures: Iterable[UpstreamFailure],
    refusals: Iterable[tuple[Attempt, UpstreamRefused]],
    route: Route,
    endpoint: Endpoint,
    keys: KeySearch,
) -> tuple[Attempt, UpstreamRefused] | None:
    """The refusal that the client gets for all steps, or None.

    F7: each attempt was refused because of the request, or each with a 429. F9: where clients act on refusals they get
    the refusal of a request that is too long, whatever the other failures are. ``refusals`` has the last refusal of
    each step, in the order of the attempts.
    """
    if (route.when_refused or ("pass_on" if endpoint.acts_on_refusals else "report")) != "pass_on":
        return None
    passable = [each for each in refusals if _can_be_passed_on(each[1], keys)]
    if endpoint.acts_on_refusals:
        for each in passable:
            if _is_overflow(each[1]):
                return each
    statuses = {failure.status if isinstance(failure, UpstreamRefused) else None for failure in failures}
    if not passable or (not statuses <= ABOUT_THE_REQUEST and statuses != {429}):
        return None
    return passable[0]


def _is_overflow(refusal: UpstreamRefused) -> bool:
    return is_context_overflow(refusal.status, refusal.words, refusal.detail)


def pass_on(refusal: UpstreamRefused, client: Responder, keys: KeySearch) -> int:
    """Send it to the client as the provider sent it; gives the size of its body."""
    body = refusal.body or b""
    client.begin(refusal.status or 502, keys.without(refusal.headers), len(body))
    client.write(body)
    return len(body)


def _can_be_passed_on(refusal: UpstreamRefused, keys: KeySearch) -> bool:
    """Whether the refusal is not about the gateway's key (F6), has a body, and contains no key."""
    if refusal.status in KEY_REFUSED or refusal.body is None:
        return False
    return not keys.are_in_any_form(refusal.body)
