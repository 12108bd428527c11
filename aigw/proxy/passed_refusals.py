"""Which refusal the client gets as the provider sent it: at once by ``stop_on``, in the end by ``when_refused``."""

from __future__ import annotations

from collections.abc import Iterable

from aigw.config.model import Route
from aigw.errors import UpstreamFailure, UpstreamRefused
from aigw.protocols.context_overflow import is_context_overflow
from aigw.protocols.endpoint import Endpoint
from aigw.protocols.refusals import KEY_REFUSED
from aigw.proxy.relay import Responder
from aigw.secret import KeySearch
from aigw.upstream.attempt import Attempt

# Statuses of refusals that are about the request: the same one would be refused again, and its sender can mend it.
ABOUT_THE_REQUEST = frozenset([400, 404, 409, 413, 415, 422])


def stops(failure: UpstreamFailure, route: Route, endpoint: Endpoint, keys: KeySearch) -> bool:
    """Whether the client gets this failure now, in place of the next step's answer (F5, F8)."""
    if not isinstance(failure, UpstreamRefused) or not 400 <= (failure.status or 0) <= 599:
        return False
    is_listed = not (route.stop_on | endpoint.stop_on).isdisjoint([str(failure.status), *failure.words])
    returned = route.on_context_overflow or ("return" if endpoint.acts_on_refusals else "next")
    return (is_listed or (returned == "return" and _is_overflow(failure))) and _can_be_passed_on(failure, keys)


def of_all_steps(
    failures: Iterable[UpstreamFailure],
    refusals: Iterable[tuple[Attempt, UpstreamRefused]],
    route: Route,
    endpoint: Endpoint,
    keys: KeySearch,
) -> tuple[Attempt, UpstreamRefused] | None:
    """The refusal that the client gets for all steps, if it gets one.

    F7: every attempt ended in a refusal about the request, or each in a 429. F8: clients that act on refusals get the
    one of a request that is too long, whatever else failed. ``refusals`` has the last one of each step, the first
    step's first.
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


def pass_on(refusal: UpstreamRefused, client: Responder, keys: KeySearch) -> int:
    """Send it to the client as the provider sent it; gives the size of its body."""
    body = refusal.body or b""
    client.begin(refusal.status or 502, keys.without(refusal.headers), len(body))
    client.write(body)
    return len(body)


def _is_overflow(refusal: UpstreamRefused) -> bool:
    return is_context_overflow(refusal.status, refusal.words, refusal.detail)


def _can_be_passed_on(refusal: UpstreamRefused, keys: KeySearch) -> bool:
    """A provider's 401 is about our key, never about the client's (F6); a body must be there, and hold no key."""
    if refusal.status in KEY_REFUSED or refusal.body is None:
        return False
    return not keys.are_in_any_form(refusal.body)
