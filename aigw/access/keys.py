"""From the keys in a request to its Caller."""

from __future__ import annotations

from collections.abc import Sequence

from aigw.config.model import Caller
from aigw.errors import BadRequest, Unauthorized, WrongKey

_HEADERS = {"WWW-Authenticate": "Bearer"}


def authenticate(
    callers: Sequence[Caller], api_key: bytes | None, authorization: bytes | None, azure: bytes | None = None
) -> Caller:
    """The caller whose key is in ``X-Api-Key``, in ``Api-Key`` or, as a Bearer token, in ``Authorization``, or in more.

    Every key is compared, each in constant time, so the time of the answer does not depend on the keys.
    Raises Unauthorized without a key, WrongKey if a key is wrong, BadRequest for the keys of two callers.
    """
    scheme, _, token = (authorization or b"").partition(b" ")
    offered = [key for key in (api_key, azure, token.strip() if scheme.lower() == b"bearer" else None) if key]
    if not offered:
        raise Unauthorized(
            "The request has no API key; send it as 'Authorization: Bearer KEY' or 'X-Api-Key: KEY'.", headers=_HEADERS
        )
    found = [caller for key in offered for caller in callers if caller.key.matches(key)]
    if len(found) < len(offered):
        raise wrong_key(len(offered) - len(found))
    if len(found) > 1 and any([each is not found[0] for each in found]):
        raise BadRequest(
            "X-Api-Key, Api-Key and Authorization hold the keys of two different callers; send one of the headers."
        )
    return found[0]


def wrong_key(tried: int) -> WrongKey:
    """The error for ``tried`` keys that the gateway does not have."""
    error = WrongKey("The API key is wrong; send the key that the operator of this gateway gave you.", headers=_HEADERS)
    error.tried = tried
    return error
