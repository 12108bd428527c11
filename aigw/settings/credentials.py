"""How keys, their commands and headers are written, and which of them are probably mistakes."""

from __future__ import annotations

import datetime
import re
from typing import Annotated

from aigw.secret import Secret
from aigw.settings.quoting import HIDDEN, Expanded, did_you_mean, quoted, variables_in
from aigw.settings.schema import Written

_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_OURS = frozenset(
    "host content-length content-type transfer-encoding connection accept accept-encoding cookie te trailer upgrade "
    "keep-alive expect proxy-authorization x-request-id traceparent".split()
)
AUTH = ("bearer", "x-api-key", "api-key", "none")
MOST_WORDS = 100
_PLACEHOLDER = re.compile(r"[.*_-]+")
_SCHEME = re.compile(r"(bearer|basic|token) +\S", re.IGNORECASE)
_ELSEWHERE = re.compile(r"os\.environ/\w+|env[:/]\w+|%[A-Za-z_]\w*%|\{\{.*\}\}|\$\w+|<.*>", re.IGNORECASE)


def header_value(value: object) -> Secret:
    """Printable ASCII, as a header may hold. Raises ValueError as ``Written`` describes; so do the functions below."""
    if value is None or value == "":
        raise ValueError("is empty; write the key, or better ${NAME}")
    if isinstance(value, list | dict):
        raise ValueError(f"is a {'list' if isinstance(value, list) else 'mapping'}; write one string, in quotes")
    if not isinstance(value, str):
        raise ValueError("is not a string; write it in quotes")
    if not value.isascii() or not value.isprintable() or value != value.strip():
        raise ValueError(
            "cannot be sent in a header; write printable ASCII characters, without a space at the start or the end"
        )
    return Secret(str(value), variables_in(value))


def key(value: object) -> Secret:
    """A key, which is sent as ``Authorization: Bearer KEY``."""
    made = header_value(value)
    if _PLACEHOLDER.fullmatch(str(value)):
        raise ValueError(
            "has no letter and no digit, so it cannot be a key; write ${NAME} with the variable that holds the key"
        )
    return made


def advice_on_key(value: object) -> str | None:
    """A warning about a key that can be sent, but is probably a mistake."""
    text = str(value)
    if text[0] == text[-1] and text[0] in "'\"" and len(text) > 1:
        return f"begins and ends with a quote ({text[0]}), which is sent as part of the key; remove the quotes"
    if match := _SCHEME.match(text):
        return f"begins with {match[1]!r}, which the gateway adds itself; write only the key"
    return advice_on_header(value)


def advice_on_header(value: object) -> str | None:
    """A warning about the value of a header, which may have a scheme and quotes."""
    last = str(value).rpartition(" ")[2]
    if _ELSEWHERE.fullmatch(last):
        return "seems to name a variable in the syntax of another program, and is sent unchanged; write ${NAME}"
    if last.endswith("..."):
        return "ends in dots, like the example of a key; write the whole key"
    return None


def query_value(value: object) -> Secret:
    """A value in a query, not percent-encoded; YAML reads a day such as ``2024-10-21`` as a date."""
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        value = value.isoformat()
    if not isinstance(value, str):
        raise ValueError("is not a string; write it in quotes")
    if not value.isprintable() or value != value.strip():
        raise ValueError("cannot be sent in a query; write printable characters, without a space at the start or end")
    return Secret(str(value))


def header_name(value: object) -> str:
    """A header that may be configured for a provider: a token (RFC 9110) that the gateway does not set itself."""
    if not isinstance(value, str) or not _HEADER.fullmatch(value):
        raise ValueError("is not a header name; write letters, digits and hyphens")
    if value.lower() in _OURS:
        raise ValueError("is a header that the gateway sets itself; remove it")
    return str(value)


def auth(value: object) -> str:
    """The way in which a key is sent: one of AUTH, or ``header:NAME``."""
    text = str(value) if isinstance(value, str) else ""
    kind, colon, name = text.partition(":")
    if colon and kind == "header":
        try:
            return f"header:{header_name(name)}"
        except ValueError as error:
            raise ValueError(f"names no header for a key: {quoted(name)!r} {error}") from None
    if text not in AUTH:
        raise ValueError(
            f"is not a way to send a key; write {', '.join(AUTH)} or header:NAME{did_you_mean(text, AUTH)}"
        )
    return text


def command(value: object) -> tuple[str, ...]:
    """A program and its arguments. No shell reads them."""
    right = "write [program, argument, ...], each in quotes"
    if not isinstance(value, list) or not value:
        raise ValueError(f"is not a command; {right} (no shell reads it)")
    for each in value:
        if not isinstance(each, str) or "\0" in each or each != each.encode(errors="replace").decode():
            raise ValueError(f"has an entry that is not a string; {right}")
    if not value[0].strip() or len(value) > MOST_WORDS:
        raise ValueError(f"has no program, or more than {MOST_WORDS} entries; {right}")
    return tuple(str(each) for each in value)


def advice_on_command(value: object) -> str | None:
    """A warning about an argument that may be a key."""
    arguments = value if isinstance(value, list) else []
    if any(isinstance(each, Expanded) and quoted(str(each)) == HIDDEN for each in arguments):
        return (
            "has an argument from a variable that may be a key, and every user of this machine can see the arguments "
            "of a process; let the command read the key itself"
        )
    return None


KEY = Written(key, advice_on_key, secret=True)

Key = Annotated[Secret, KEY]
"""See key."""
Auth = Annotated[str, Written(auth)]
"""See auth."""
Command = Annotated[tuple[str, ...], Written(command, advice_on_command, secret=True, is_file=True)]
"""See command. A program with a slash in it is a path, relative to the folder of the configuration file."""
HeaderName = Annotated[str, Written(header_name)]
"""See header_name."""
HeaderValue = Annotated[Secret, Written(header_value, advice_on_header, secret=True)]
"""See header_value."""
QueryValue = Annotated[
    Secret, Written(query_value, lambda value: advice_on_header(value) if value else None, secret=True)
]
"""See query_value."""
