"""From the keys in a request to its Caller. 10,000 keys cost a request no more than one."""

from __future__ import annotations

import json
import secrets
import string
import time
from collections.abc import Callable, Sequence
from hashlib import sha256

from aigw.access.errors import NotAllowed
from aigw.errors import BadRequest, Unauthorized, WrongKey
from aigw.secret import PREFIX
from aigw.settings.callers import Caller, Proof

PUBLIC, SECRET = 8, 32  # characters

_CHARACTERS = string.ascii_letters + string.digits
_HEADERS = {"WWW-Authenticate": "Bearer"}


class Keys:
    """All keys that the gateway knows, by their SHA-256. ``admins`` have those that only open the pages."""

    def __init__(
        self, callers: Sequence[Caller], admins: Sequence[Caller] = (), now: Callable[[], float] = time.time
    ) -> None:
        """``now`` gives Unix seconds. An admin that is one of the callers may do both."""
        self._now = now
        self._keyed = [(caller.key, caller) for caller in callers if caller.key is not None]  # who has api_key
        self._callers = _by_digest(callers)
        self._admins = _by_digest(admins)

    def authenticate(self, api_key: bytes | None, authorization: bytes | None, azure: bytes | None = None) -> Caller:
        """The caller whose key is in ``X-Api-Key``, ``Api-Key`` or ``Authorization`` (a Bearer token), or in several.

        Raises Unauthorized without a key and for one that is over, WrongKey if a key is wrong, NotAllowed for a key
        that only opens the pages, BadRequest for the keys of two callers.
        """
        # Nearly every request has one key, which is good; all others are looked at again.
        if api_key is None and azure is None and authorization is not None:
            key = authorization[7:] if authorization[:7] == b"Bearer " else None
        else:
            key = (api_key or azure) if authorization is None and not (api_key and azure) else None
        if key:
            for secret, caller in self._keyed:
                if secret.matches(key):
                    return caller
            digest = sha256(key).digest()
            found = self._callers.get(digest)
            if found is not None:
                caller, proof = found
                if proof.until is None and not proof.disabled and proof.digest.matches(digest):
                    return caller
        return self._found(self._callers, self._admins, api_key, authorization, azure, _ADMIN)

    def admin(self, api_key: bytes | None, authorization: bytes | None) -> Caller:
        """The same of who may see the pages. Raises NotAllowed for the key of another caller."""
        return self._found(self._admins, self._callers, api_key, authorization, None, _NO_ADMIN)

    def _found(
        self,
        known: _Known,
        others: _Known,
        api_key: bytes | None,
        authorization: bytes | None,
        azure: bytes | None,
        refusal: str,
    ) -> Caller:
        """The time of this does not depend on the keys that are known: only hashes are looked up and compared."""
        token = None
        if authorization:
            scheme, _, rest = authorization.partition(b" ")
            if scheme.lower() == b"bearer":
                token = rest.strip()
        caller: Caller | None = None
        ends: tuple[Proof, ...] = ()
        wrong, two, refused = 0, False, False
        for key in (api_key, azure, token):
            if not key:
                continue
            digest = sha256(key).digest()
            if digest not in known or not known[digest][1].digest.matches(digest):
                refused = refused or digest in others
                wrong += digest not in others
                continue
            found, proof = known[digest]
            if proof.until is not None or proof.disabled:
                ends = (*ends, proof)
            two = two or (caller is not None and caller is not found)
            caller = found
        if wrong:
            raise wrong_key(wrong)
        if refused:
            raise NotAllowed(refusal)
        if caller is None:
            raise Unauthorized(_NO_KEY if token is not None or not authorization else _NO_BEARER, headers=_HEADERS)
        if two:
            raise BadRequest(
                "X-Api-Key, Api-Key and Authorization hold the keys of two different callers; send one of the headers."
            )
        for proof in ends:
            self._check(proof)
        return caller

    def _check(self, proof: Proof) -> None:
        if proof.disabled or (proof.until is not None and self._now() >= proof.until):
            why = "is disabled" if proof.disabled else "has expired"
            message = f"The API key {why}; ask the operator of this gateway for another one."
            raise Unauthorized(message, headers=_HEADERS)


Recognized = tuple[Keys, bytes, Caller]
"""Whom these keys have found by the last ``Authorization`` of a connection, where that does not depend on the time."""
_Known = dict[bytes, tuple[Caller, Proof]]
_NO_KEY = "The request has no API key; send it as 'Authorization: Bearer KEY' or 'X-Api-Key: KEY'."
_NO_BEARER = (
    "The request has no API key: the header Authorization is not of the form 'Bearer KEY'. Send the key as "
    "'Authorization: Bearer KEY' or 'X-Api-Key: KEY'."
)
_ADMIN = "The admin key opens the status page and the metrics only; send the key of a caller."
_NO_ADMIN = "This API key is for requests; the status page and the metrics need the admin key."


def _by_digest(callers: Sequence[Caller]) -> _Known:
    """The callers by the hash of each of their keys."""
    known: _Known = {}
    for caller in callers:
        proofs = (Proof(caller.key.digest()), *caller.proofs) if caller.key is not None else caller.proofs
        known |= {proof.digest.sha256: (caller, proof) for proof in proofs}
    return known


def new_key(choose: Callable[[str], str] = secrets.choice) -> str:
    """A new key: ``aigw_``, 8 characters that may be shown, and 32 that are secret. Scanners for secrets know the form.

    32 of 62 characters are 190 bits, so that a plain SHA-256 is as good as a slow one.
    """
    return PREFIX + "".join([choose(_CHARACTERS) for _ in range(PUBLIC + SECRET)])


def line_of(name: str, key: str) -> str:
    """The entry of ``keys`` for a new key."""
    return f'- {{name: {json.dumps(name, ensure_ascii=False)}, key_sha256: "{sha256(key.encode()).hexdigest()}"}}'


def wrong_key(tried: int) -> WrongKey:
    """The error for ``tried`` keys that the gateway does not have."""
    error = WrongKey("The API key is wrong; send the key that the operator of this gateway gave you.", headers=_HEADERS)
    error.tried = tried
    return error
