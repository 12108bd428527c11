"""How keys and headers are written: what cannot be one, and what is most likely written by mistake."""

from __future__ import annotations

import re
from typing import Annotated, Any

from aigw.config.schema import Written
from aigw.secret import Secret

_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_OURS = frozenset(
    "host content-length content-type transfer-encoding connection accept accept-encoding cookie te trailer upgrade "
    "keep-alive expect proxy-authorization x-request-id traceparent".split()
)
_PLACEHOLDER = re.compile(r"[.*_-]+")
_SCHEME = re.compile(r"(bearer|basic|token) +\S", re.IGNORECASE)
_ELSEWHERE = re.compile(r"os\.environ/\w+|env[:/]\w+|%[A-Za-z_]\w*%|\{\{.*\}\}|\$\w+|<.*>", re.IGNORECASE)


def header_value(value: Any) -> Secret:
    """Printable ASCII, as a header may hold. Raises ValueError, as ``Written`` has it; so do the others."""
    if value is None or value == "":
        raise ValueError("is empty; write the key, or better ${NAME}")
    if isinstance(value, list | dict):
        raise ValueError(f"is a {'list' if isinstance(value, list) else 'mapping'}; write one string, in quotes")
    if not isinstance(value, str):
        raise ValueError("is not a string; put it in quotes")
    if not value.isascii() or not value.isprintable() or value != value.strip():
        raise ValueError(
            "cannot be sent in a header: it is empty, begins or ends with white space, "
            "or holds a control or non-ASCII character"
        )
    return Secret(str(value))


def key(value: Any) -> Secret:
    """A key, which is sent as ``Authorization: Bearer KEY``."""
    made = header_value(value)
    if _PLACEHOLDER.fullmatch(value):
        raise ValueError("has neither a letter nor a digit, so it is no key; write the key, or better ${NAME}")
    return made


def advice_on_key(value: Any) -> str | None:
    """What should be known of a key that can be sent, but that is hardly what is meant."""
    if value[0] == value[-1] and value[0] in "'\"" and len(value) > 1:
        return f"has quotes ({value[0]}) around it that are sent as part of the key; take them away"
    if match := _SCHEME.match(value):
        return f"begins with {match[1]!r}, which is sent before a key and is no part of it; write only the key"
    return advice_on_header(value)


def advice_on_header(value: Any) -> str | None:
    """The same of the value of a header, in which a scheme and quotes are all right."""
    last = value.rpartition(" ")[2]
    if _ELSEWHERE.fullmatch(last):
        return "looks like the name of a variable as other programs write it, and is sent as it is; write ${NAME}"
    if last.endswith("..."):
        return "ends in dots, as an example of a key does; write the whole key"
    return None


def header_name(value: Any) -> str:
    """A header that may be configured for a provider: a token (RFC 9110), and none that the gateway sets itself."""
    if not isinstance(value, str) or not _HEADER.fullmatch(value):
        raise ValueError("is not a header name")
    if value.lower() in _OURS:
        raise ValueError("is a header that the gateway sets itself; leave it out")
    return str(value)


KEY = Written(key, advice_on_key, secret=True)

Key = Annotated[Secret, KEY]
"""See key."""
HeaderName = Annotated[str, Written(header_name)]
"""See header_name."""
HeaderValue = Annotated[Secret, Written(header_value, advice_on_header, secret=True)]
"""See header_value."""
