"""Which refusal the client gets unchanged: at once because of ``stop_on``, or after all steps by ``when_refused``."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from aigw.errors import KEY_REFUSED, UpstreamFailure, UpstreamRefused
from aigw.proxy.relay import Responder
from aigw.secret import KeySearch
from aigw.upstream.attempt import Attempt

# Statuses of refusals that are about the request: it would be refused again, and its sender can correct it.
ABOUT_THE_REQUEST = frozenset([400, 404, 409, 413, 415, 422])


def stops(failure: UpstreamFailure, stop_on: AbstractSet[str], keys: KeySearch) -> bool:
    """Whether the client gets this failure now and no other step is tried (F5)."""
    if not stop_on or not isinstance(failure, UpstreamRefused) or not 400 <= (failure.status or 0) <= 599:
        return False
    return not stop_on.isdisjoint([str(failure.status), *failure.words]) and _can_be_passed_on(failure, keys)


def of_all_steps(
    failures: Iterable[UpstreamFailure], refusals: Iterable[tuple[Attempt, UpstreamRefused]], keys: KeySearch
) -> tuple[Attempt, UpstreamRefused] | None:
    """The refusal that the client gets if each attempt was refused because of the request, or each with a 429 (F7).

    ``refusals`` has the last refusal of each step, in the order of the attempts.
    """
    statuses = {failure.status if isinstance(failure, UpstreamRefused) else None for failure in failures}
    if not statuses <= ABOUT_THE_REQUEST and statuses != {429}:
        return None
    return next((each for each in refusals if _can_be_passed_on(each[1], keys)), None)


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
