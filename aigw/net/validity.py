"""When the certificates of the listeners are valid, and whether the chain of each is complete."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import msgspec
from OpenSSL import SSL, crypto

_CODES = SSL.X509VerificationCodes
_NO_ISSUER = {
    _CODES.ERR_UNABLE_TO_GET_ISSUER_CERT,
    _CODES.ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY,
    _CODES.ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE,
}


class _Period(msgspec.Struct, frozen=True):
    """The validity of one certificate, in Unix seconds; ``which`` is its file and subject."""

    begins: float
    ends: float
    which: str


class Validity:
    """The validity of all certificates that the listeners send, with those of their CAs."""

    def __init__(self, chains: Iterable[tuple[str, Sequence[crypto.X509]]]) -> None:
        """``chains`` are the files, and the certificates in each."""
        periods = [_period(file, each) for file, chain in chains for each in chain]
        self._first = min(periods, key=lambda period: period.ends)
        self._last = max(periods, key=lambda period: period.begins)
        self.expires = self._first.ends

    def days_left(self) -> float:
        """The days until the first of them expires; negative after that."""
        return (self._first.ends - time.time()) / 86400

    def days_to_wait(self) -> float:
        """The days until the last of them becomes valid; 0 or less after that."""
        return (self._last.begins - time.time()) / 86400

    def is_good(self) -> bool:
        """Whether all of them are valid now."""
        return self.days_left() > 0 >= self.days_to_wait()

    def problem(self, soon: float) -> str | None:
        """A problem for the operator, or None: one has expired, expires within ``soon`` days, or is not valid yet."""
        left, wait = self.days_left(), self.days_to_wait()
        if left <= 0:
            return f"has expired, so /ready answers 503; renew it and reload ({self._first.which})"
        if wait > 0:
            when = f"for {wait:.1f} days"
            return (
                f"is not valid yet, {when}, so /ready answers 503; check the clock of this machine ({self._last.which})"
            )
        if left < soon:
            return f"expires in {left:.1f} days: renew it and reload ({self._first.which})"
        return None


def _period(file: str, certificate: crypto.X509) -> _Period:
    shown = certificate.to_cryptography()
    begins, ends = shown.not_valid_before_utc.timestamp(), shown.not_valid_after_utc.timestamp()
    return _Period(begins, ends, f"{file}: {shown.subject.rfc4514_string()[:100] or 'without a subject'}")


class Authorities:
    """The CAs of this system, and some more."""

    def __init__(self, more: Iterable[crypto.X509] = ()) -> None:
        """Loads the CAs of the system, which takes milliseconds."""
        self._context = SSL.Context(SSL.TLS_METHOD)  # kept, for the store is freed with it
        self._context.set_default_verify_paths()
        store = self._context.get_cert_store()
        assert store is not None, "a new context has a store"
        for each in more:
            store.add_cert(each)
        self._store = store

    def missing_issuer(self, chain: Sequence[crypto.X509]) -> str | None:
        """The name of the issuer of the first certificate, if it is neither in the chain nor one of these CAs.

        A server sends its chain without the root. Whether an unknown issuer is a root cannot be found out.
        """
        try:
            crypto.X509StoreContext(self._store, chain[0], list(chain[1:])).verify_certificate()
        except crypto.X509StoreContextError as error:
            code, depth, *_ = error.errors
            if depth == 0 and code in _NO_ISSUER:
                return chain[0].to_cryptography().issuer.rfc4514_string()[:100] or "without a name"
        return None
