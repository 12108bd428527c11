"""The bodies of requests that are under way: how much memory all of them together may take."""

from __future__ import annotations

from aigw.errors import GatewayError, Overloaded

RETRY_SECONDS = 1


class Bodies:
    """The sum of the bodies that are being read, or kept until a provider has answered.

    ``limit`` is in bytes and may be assigned at any time; what is under way stays.
    """

    limit = 512 * 1024 * 1024

    def __init__(self) -> None:
        self.under_way = 0

    def take(self, size: int) -> None:
        """Count so many bytes more. Raises Overloaded, and counts none, where that would be over the limit."""
        if self.under_way + size > self.limit:
            raise Overloaded(
                "The requests under way are as large as limits.bodies allows. Try again soon.",
                code="too_many_bodies",
                headers={"Retry-After": str(RETRY_SECONDS)},
            )
        self.under_way += size

    def give_back(self, size: int) -> None:
        """So many bytes are let go of."""
        self.under_way -= size


def without_frames(error: GatewayError) -> GatewayError:
    """The error, to be kept: with its traceback it would keep the frames that it came through, and all that is in them.

    One of those is the request, which keeps the error: the body would stay until the cyclic collector comes by.
    """
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return error
