"""Who is calling: the credentials of a request to a Caller."""

from __future__ import annotations

from collections.abc import Sequence

from aigw.config import Caller
from aigw.errors import Unauthorized


def authenticate(callers: Sequence[Caller], api_key: bytes | None, authorization: bytes | None) -> Caller:
    """The caller whose key stands in ``X-Api-Key`` or, as a Bearer token, in ``Authorization``. Raises Unauthorized.

    Every key is compared, each in constant time, so the time taken tells neither which caller was near nor how near.
    """
    scheme, _, token = (authorization or b"").partition(b" ")
    offered = [key for key in (api_key, token.strip() if scheme.lower() == b"bearer" else None) if key]
    if not offered:
        raise Unauthorized(
            "No API key was given; send it as 'Authorization: Bearer KEY' or 'X-Api-Key: KEY'.",
            headers={"WWW-Authenticate": "Bearer"},
        )
    found = [caller for caller in callers for key in offered if caller.key.matches(key)]
    if not found:
        raise Unauthorized("The API key is not one of this gateway's.", headers={"WWW-Authenticate": "Bearer"})
    return found[0]
