"""The cookie of a browser that has sent the key: its end and its id, signed with a key made from the caller's key.

A change of the key ends every cookie; a restart, or another instance with the same key, ends none. A process remembers
the cookies that were signed out there, as long as it runs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator

from aigw.settings.callers import Caller

SECONDS = 12 * 3600
SECURE, PLAIN = "__Host-aigw", "aigw"  # browsers accept the first only with Secure, for this host and for every path
MOST_SIGNED_OUT = 1000

_VALUE = re.compile(r"(?a:(\d{1,11}))\.([0-9a-f]{32})\.([0-9a-f]{64})")  # end, id, signature
_FORM = b"application/x-www-form-urlencoded"


class Cookies:
    """Checks cookies; a reload keeps it. Times are Unix seconds."""

    def __init__(self) -> None:
        self._signed_out: dict[str, int] = {}  # id, and end
        self._none_before = 0.0  # cookies that were given until then are invalid

    def verify(self, callers: Iterable[Caller], sent: str, now: float, secure: bool) -> tuple[Caller | None, int]:
        """The caller whose cookie is in a ``Cookie`` header, and without a valid one the number of forged cookies.

        An expired or signed-out cookie is not valid and not forged. All cookies are checked, because a site below the
        same domain can add any number: 16 KiB hold at most 150 of this form.
        """
        forged = 0
        for caller, expires, which in _signers(callers, sent, now, secure):
            if caller is None:
                forged += 1
            elif which not in self._signed_out and expires - SECONDS > self._none_before:
                return caller, 0
        return None, forged

    def sign_out(self, callers: Iterable[Caller], sent: str, now: float, secure: bool) -> bool:
        """Make the cookies in a ``Cookie`` header invalid; gives whether there were any."""
        found = False
        for caller, expires, which in _signers(callers, sent, now, secure):
            if caller is not None:
                found = True
                self._signed_out[which] = expires
        if len(self._signed_out) > MOST_SIGNED_OUT:
            self._signed_out = {which: ends for which, ends in self._signed_out.items() if ends > now}
        if len(self._signed_out) > MOST_SIGNED_OUT:  # so that no signed-out cookie becomes valid again
            self._signed_out, self._none_before = {}, now
        return found


def cookie(caller: Caller, now: float, secure: bool) -> str:
    """The value of ``Set-Cookie``; ``now`` in Unix seconds, ``secure`` if the browser uses TLS."""
    assert caller.key is not None  # of an admin
    expires, which = int(now) + SECONDS, os.urandom(16).hex()
    return _attributes(f"{expires}.{which}.{caller.key.signature(_text(expires, which))}", SECONDS, secure)


def no_cookie(secure: bool) -> str:
    """The value of ``Set-Cookie`` that deletes the cookie."""
    return _attributes("", 0, secure)


def is_own_form(origin: bytes | None, fetch_site: bytes | None, host: bytes | None) -> bool:
    """Whether a page of this gateway sent the form, or a client without these headers, which is not a browser.

    ``Sec-Fetch-Site`` is right even if a proxy changes ``Host``; browsers leave it out in plain HTTP beyond this
    machine. https://www.w3.org/TR/fetch-metadata/
    """
    if fetch_site is not None:
        return fetch_site in (b"same-origin", b"none")
    scheme, _, name = (origin or b"").lower().partition(b"://")
    return origin is None or (scheme in (b"http", b"https") and name == (host or b"").lower())


def is_form(content_type: bytes | None) -> bool:
    """Whether a body has the type of our forms."""
    return (content_type or b"").partition(b";")[0].strip().lower() == _FORM


def _signers(
    callers: Iterable[Caller], sent: str, now: float, secure: bool
) -> Iterator[tuple[Caller | None, int, str]]:
    """The signer (None if forged), the end and the id of each cookie of the gateway that has not expired."""
    name = SECURE if secure else PLAIN
    for key, _, value in [each.strip().partition("=") for each in sent.split(";")]:
        parts = _VALUE.fullmatch(value) if key == name else None
        if parts is None or int(parts[1]) <= now:
            continue
        expires, which, signature = int(parts[1]), parts[2], parts[3]
        signers = [each for each in callers if each.key and each.key.signs(_text(expires, which), signature)]
        yield signers[0] if signers else None, expires, which


def _text(expires: int, which: str) -> bytes:
    return f"{expires}.{which}".encode()


def _attributes(value: str, seconds: int, secure: bool) -> str:
    name, more = (SECURE, "; Secure") if secure else (PLAIN, "")
    return f"{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{more}"
