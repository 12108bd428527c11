"""The limit on the memory that the bodies of all running requests take together."""

from __future__ import annotations

from aigw.errors import GatewayError, Overloaded

RETRY_SECONDS = 1


class Bodies:
    """The sum of the bodies that are being read, or kept until a provider has answered.

    ``limit`` is in bytes and may be assigned at any time; running requests stay.
    """

    limit = 512 * 1024 * 1024

    def __init__(self) -> None:
        self.under_way = 0

    def take(self, size: int) -> None:
        """Count ``size`` bytes more. Raises Overloaded, and counts none, if that is over the limit."""
        if self.under_way + size > self.limit:
            raise Overloaded(
                "The bodies of the running requests have reached the limit limits.bodies. Try again soon.",
                code="too_many_bodies",
                headers={"Retry-After": str(RETRY_SECONDS)},
            )
        self.under_way += size

    def give_back(self, size: int) -> None:
        """Count ``size`` bytes less."""
        self.under_way -= size


def without_frames(error: GatewayError) -> GatewayError:
    """The error without its traceback, which would keep the frames and all of their objects.

    One of these objects is the request, which keeps the error: a cycle that would keep the body in memory.
    """
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return error
