"""The cookie of a browser that has shown the key: when it ends, signed with that key.

Whoever changes the key ends every cookie; a restart, or another instance with the same key, ends none.
"""

from __future__ import annotations

from collections.abc import Iterable

from aigw.config import Caller

SECONDS = 12 * 3600
SECURE, PLAIN = "__Host-aigw", "aigw"  # the first is refused by browsers unless Secure, of this host and of every path


def cookie(caller: Caller, now: float, secure: bool) -> str:
    """What ``Set-Cookie`` says; ``now`` in Unix seconds, ``secure`` where the browser came over TLS."""
    expires = int(now) + SECONDS
    return _attributes(f"{expires}.{caller.key.signature(_text(expires))}", SECONDS, secure)


def no_cookie(secure: bool) -> str:
    """What ``Set-Cookie`` says to take it back."""
    return _attributes("", 0, secure)


def signed_in(callers: Iterable[Caller], sent: str, now: float, secure: bool) -> Caller | None:
    """The caller whose cookie stands in a ``Cookie`` header, if its time is not over."""
    name = SECURE if secure else PLAIN
    pairs = [each.strip().partition("=") for each in sent.split(";")]
    for value in [value for key, _, value in pairs if key == name][:4]:
        expires, _, signature = value.partition(".")
        if not (expires.isascii() and expires.isdecimal() and len(expires) < 12 and now < int(expires)):
            continue
        for caller in callers:
            if caller.key.signs(_text(int(expires)), signature):
                return caller
    return None


def _text(expires: int) -> bytes:
    return b"aigw status cookie 1 %d" % expires


def _attributes(value: str, seconds: int, secure: bool) -> str:
    name, more = (SECURE, "; Secure") if secure else (PLAIN, "")
    return f"{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{more}"
