"""The cookie of a browser that has shown the key: when it ends and which it is, signed with a key made of the caller's.

Whoever changes the key ends every cookie; a restart, or another instance with the same key, ends none. What was signed
out is remembered by the process that it was signed out of, as long as it runs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator

from aigw.config.model import Caller

SECONDS = 12 * 3600
SECURE, PLAIN = "__Host-aigw", "aigw"  # the first is refused by browsers unless Secure, of this host and of every path
MOST_SIGNED_OUT = 1000

_VALUE = re.compile(r"(?a:(\d{1,11}))\.([0-9a-f]{32})\.([0-9a-f]{64})")  # when it ends, which it is, signature
_FORM = b"application/x-www-form-urlencoded"


class Cookies:
    """Which cookies are good; outlives every reload. Times are Unix seconds."""

    def __init__(self) -> None:
        self._signed_out: dict[str, int] = {}  # which, and when they would end
        self._none_before = 0.0  # no cookie that was given by then is good

    def judge(self, callers: Iterable[Caller], sent: str, now: float, secure: bool) -> tuple[Caller | None, int]:
        """The caller whose cookie stands in a ``Cookie`` header, and if there is none the number of forged ones.

        A cookie that is over or signed out proves nothing and is not forged. All are looked at, for a site below the
        same domain can add any number: 16 KiB have room for 150 that cost a look.
        """
        forged = 0
        for caller, expires, which in _signers(callers, sent, now, secure):
            if caller is None:
                forged += 1
            elif which not in self._signed_out and expires - SECONDS > self._none_before:
                return caller, 0
        return None, forged

    def sign_out(self, callers: Iterable[Caller], sent: str, now: float, secure: bool) -> bool:
        """From now on the cookies in a ``Cookie`` header are not good any more; whether there were any."""
        found = False
        for caller, expires, which in _signers(callers, sent, now, secure):
            if caller is not None:
                found = True
                self._signed_out[which] = expires
        if len(self._signed_out) > MOST_SIGNED_OUT:
            self._signed_out = {which: ends for which, ends in self._signed_out.items() if ends > now}
        if len(self._signed_out) > MOST_SIGNED_OUT:  # rather all than that one comes back
            self._signed_out, self._none_before = {}, now
        return found


def cookie(caller: Caller, now: float, secure: bool) -> str:
    """What ``Set-Cookie`` says; ``now`` in Unix seconds, ``secure`` where the browser came over TLS."""
    expires, which = int(now) + SECONDS, os.urandom(16).hex()
    return _attributes(f"{expires}.{which}.{caller.key.signature(_text(expires, which))}", SECONDS, secure)


def no_cookie(secure: bool) -> str:
    """What ``Set-Cookie`` says to take it back."""
    return _attributes("", 0, secure)


def is_own_form(origin: bytes | None, fetch_site: bytes | None, host: bytes | None) -> bool:
    """Whether a form was sent by a page of ours, or by no browser: each of them says where a form comes from.

    ``Sec-Fetch-Site`` is the browser's own word, and right behind a proxy that changes ``Host``; browsers leave it
    out in plain HTTP beyond this machine. https://www.w3.org/TR/fetch-metadata/
    """
    if fetch_site is not None:
        return fetch_site in (b"same-origin", b"none")
    scheme, _, name = (origin or b"").lower().partition(b"://")
    return origin is None or (scheme in (b"http", b"https") and name == (host or b"").lower())


def is_form(content_type: bytes | None) -> bool:
    """Whether a body is a form's, of the kind that ours is."""
    return (content_type or b"").partition(b";")[0].strip().lower() == _FORM


def _signers(
    callers: Iterable[Caller], sent: str, now: float, secure: bool
) -> Iterator[tuple[Caller | None, int, str]]:
    """Of each cookie of ours whose time is not over: who has signed it, when it ends, which it is."""
    name = SECURE if secure else PLAIN
    for key, _, value in [each.strip().partition("=") for each in sent.split(";")]:
        parts = _VALUE.fullmatch(value) if key == name else None
        if parts is None or int(parts[1]) <= now:
            continue
        expires, which, signature = int(parts[1]), parts[2], parts[3]
        signers = [caller for caller in callers if caller.key.signs(_text(expires, which), signature)]
        yield signers[0] if signers else None, expires, which


def _text(expires: int, which: str) -> bytes:
    return f"{expires}.{which}".encode()


def _attributes(value: str, seconds: int, secure: bool) -> str:
    name, more = (SECURE, "; Secure") if secure else (PLAIN, "")
    return f"{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{more}"
