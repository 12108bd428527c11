"""Who is calling: the credentials of a request to a Caller."""

from __future__ import annotations

from collections.abc import Sequence

from aigw.config.model import Caller
from aigw.errors import BadRequest, Unauthorized, WrongKey

_HEADERS = {"WWW-Authenticate": "Bearer"}


def authenticate(callers: Sequence[Caller], api_key: bytes | None, authorization: bytes | None) -> Caller:
    """The caller whose key stands in ``X-Api-Key`` or, as a Bearer token, in ``Authorization``, or in both.

    Every key is compared, each in constant time, so the time taken tells neither which caller was near nor how near.
    Raises Unauthorized where there is none, WrongKey where one is wrong, BadRequest where they are two callers'.
    """
    scheme, _, token = (authorization or b"").partition(b" ")
    offered = [key for key in (api_key, token.strip() if scheme.lower() == b"bearer" else None) if key]
    if not offered:
        raise Unauthorized(
            "No API key was given; send it as 'Authorization: Bearer KEY' or 'X-Api-Key: KEY'.", headers=_HEADERS
        )
    found = [caller for key in offered for caller in callers if caller.key.matches(key)]
    if len(found) < len(offered):
        raise wrong_key(len(offered) - len(found))
    if found[0] is not found[-1]:
        raise BadRequest("X-Api-Key and Authorization have the keys of two callers; send one of the two headers.")
    return found[0]


def wrong_key(tried: int) -> WrongKey:
    """The error for as many keys that are none of ours."""
    error = WrongKey("The API key is not one of this gateway's.", headers=_HEADERS)
    error.tried = tried
    return error
