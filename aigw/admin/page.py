"""The pages for browsers: files of the package, and headers that restrict what a browser may do with them.

https://www.w3.org/TR/CSP3/: no resources of other sites, and only the script and style of the file itself, by their
hashes.
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from aigw.net.headers import Header

_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


class Page:
    """One file; ``headers`` are sent with it."""

    def __init__(self, name: str) -> None:
        self._text = files("aigw.admin").joinpath(name).read_text("utf-8")
        inline: dict[str, list[str]] = {"script": [], "style": []}
        for kind, text in _INLINE.findall(self._text):
            inline[kind].append(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'")
        policy = [
            "default-src 'none'",
            *(f"{kind}-src {' '.join(hashes)}" for kind, hashes in inline.items() if hashes),
            "connect-src 'self'",
            "img-src data:",
            "form-action 'self'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
        ]
        self.headers: list[Header] = [
            (b"content-security-policy", "; ".join(policy).encode()),
            (b"referrer-policy", b"same-origin"),  # with no-referrer a browser sends our own forms with Origin: null
            (b"cross-origin-opener-policy", b"same-origin"),
            (b"cross-origin-resource-policy", b"same-origin"),
            (b"x-frame-options", b"DENY"),
        ]

    def html(self, place: str = "", text: str = "") -> bytes:
        """The page, with ``text`` (HTML) in place of the comment ``place``."""
        return self._text.replace(f"<!--{place}-->", text, 1).encode() if place else self._text.encode()
