"""Which HTTP proxy leads to a provider: how one is written, the variables of the environment, and NO_PROXY.

All of it is decided when the configuration is loaded: ``Provider.proxy`` is the proxy that is used, or None.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit

import msgspec

from aigw.config.no_proxy import NoProxy, address_of, in_ascii, is_this_machine
from aigw.secret import Secret
from aigw.settings.mistakes import Mistake
from aigw.settings.schema import Written

if TYPE_CHECKING:
    from aigw.config.model import Provider  # that file imports this one

DEFAULT_PORTS = {"http": 80, "https": 443}
SHORTEST_HIDDEN = 8  # characters; hiding a shorter text would hide too much of the log

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/?#\[\]]+)(?::([0-9]{1,5}))?/?")
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_.])?")
_RIGHT = "write http://host:port or http://user:password@host:port"


class Proxy(msgspec.Struct, frozen=True):
    """An HTTP proxy. ``secure``: over TLS. ``authorization`` is the value of Proxy-Authorization.

    ``secrets`` are the texts that no log may show. ``source`` is the variable that names the proxy, or empty.
    """

    host: str
    port: int
    authorization: Secret | None = None
    secrets: tuple[Secret, ...] = ()
    source: str = ""
    secure: bool = False

    def __str__(self) -> str:
        """Its URL without the user name and the password, and the variable that names it."""
        url = f"http{'s' if self.secure else ''}://{in_url(self.host)}:{self.port}"
        return f"{url} ({self.source})" if self.source else url


def described(proxy: Proxy | None) -> str:
    """The proxy of a provider, for an operator."""
    return str(proxy) if proxy else "none"


def by_proxy(providers: Iterable[Provider]) -> dict[str, list[str]]:
    """The names of the providers that have a proxy, by the proxy."""
    found: dict[str, list[str]] = {}
    for provider in providers:
        if provider.proxy is not None:
            found.setdefault(described(provider.proxy), []).append(provider.name)
    return found


def in_url(host: str) -> str:
    """A host for a URL: an IPv6 address gets brackets."""
    return f"[{host}]" if ":" in host else host


# How it is written


def proxy(value: object) -> Proxy | None:
    """``http(s)://[user:password@]host[:port]``, ``env`` or ``none``. Raises ValueError as ``Written`` describes."""
    if isinstance(value, Proxy) or value in ("env", "none"):  # env: no variable names a proxy
        return value if isinstance(value, Proxy) else None
    if not isinstance(value, str) or "://" not in value:
        raise ValueError(f"is not a proxy; {_RIGHT}, env or none")
    return _read(value)


def _read(value: str, source: str = "") -> Proxy:
    """The proxy of a URL. The user name and the password may be percent-encoded, and must not be but for ``%``."""
    before, found, behind = value.strip().partition("://")
    scheme, rest = (before.lower(), behind) if found else ("http", before)  # without a scheme only in a variable
    user_and_password, has_user, host_and_port = rest.rpartition("@")
    match = _HOST.fullmatch(host_and_port)
    if scheme.startswith("socks"):
        raise ValueError(f"is a SOCKS proxy, which the gateway cannot use; {_RIGHT} of an HTTP proxy")
    host = _host(match[1]) if match else None
    port = int(match[2] or DEFAULT_PORTS.get(scheme, 0)) if match else 0
    if scheme not in DEFAULT_PORTS or host is None or not 0 < port < 65536:
        raise ValueError(f"is not the URL of an HTTP proxy; {_RIGHT}")
    secure = scheme == "https"
    written_user, _, written_password = user_and_password.partition(":")
    user, password = unquote_to_bytes(written_user), unquote_to_bytes(written_password)
    if b":" in user:
        raise ValueError("has a colon in the user name, which no proxy can read (RFC 7617); write another user name")
    if not has_user or not (user or password):
        return Proxy(host, port, source=source, secure=secure)
    token = base64.b64encode(user + b":" + password).decode()
    written = written_password or written_user  # a token may be the user name alone
    texts = dict.fromkeys([token, written, unquote(written)])
    secrets = tuple(Secret(text) for text in texts if len(text) >= SHORTEST_HIDDEN)
    return Proxy(host, port, Secret(f"Basic {token}"), secrets, source, secure)


def _host(written: str) -> str | None:
    """A host name in ASCII, or an address without brackets; None if it is neither."""
    if written.startswith("["):
        address = address_of(written[1:-1])
        return str(address) if address else None
    host = in_ascii(written)
    if address := address_of(host):
        return str(address)
    return host if _NAME.fullmatch(host) and not host.rstrip(".").rpartition(".")[2].isdecimal() else None


def has_literal_password(value: object, variable: re.Pattern[str]) -> bool:
    """Whether a proxy as written in the file has a password, or a user name alone, that is no ``variable``."""
    user_and_password, has_user, _ = str(value).partition("://")[2].rpartition("@")
    user, _, password = user_and_password.partition(":")
    return bool(has_user and variable.sub("", password or user))


ProxyUrl = Annotated[Proxy | None, Written(proxy, secret=True)]
"""See proxy."""


# Which one is used


def with_proxies(
    tree: dict[Any, Any], environ: Mapping[str, str]
) -> tuple[dict[Any, Any], list[Mistake], list[Mistake]]:
    """``tree`` with the proxy that each provider uses: that of the environment for ``env``, none on this machine.

    Also mistakes in the variables, and warnings. What is wrong in the tree itself stays for its reader.
    """
    providers = tree.get("providers")
    variables = _Variables(environ)
    at_top = tree.get("proxy")
    own = [each.get("proxy") for each in providers if isinstance(each, dict)] if isinstance(providers, list) else []
    if not isinstance(providers, list) or not (variables.any or at_top is not None or any(each for each in own)):
        return tree, [], []
    mistakes: dict[str, Mistake] = {}
    warnings: list[Mistake] = []

    def resolved(provider: Any, index: int) -> Any:
        where = _where(provider.get("base_url")) if isinstance(provider, dict) else None
        if where is None:
            return provider
        scheme, host, port = where
        own = provider.get("proxy")
        written = next((each for each in (own, at_top) if each is not None), "env")
        if scheme not in DEFAULT_PORTS or is_this_machine(host):
            if own is None:
                return {**provider, "proxy": "none"}
            if not _is_proxy(own):
                return provider
            text = "has no effect: the provider is on this machine, which is never called through a proxy; remove it"
            warnings.append(Mistake(text, ("providers", index, "proxy")))
            return {**provider, "proxy": "none"}
        if written != "env":
            return provider
        try:
            return {**provider, "proxy": variables.proxy_for(scheme, host, port) or "none"}
        except _BadVariable as bad:
            mistakes[bad.variable] = Mistake(f"the value of {bad.variable} in the environment {bad}")
            return provider

    found = [resolved(each, index) for index, each in enumerate(providers)]
    return {**tree, "providers": found}, list(mistakes.values()), warnings


def _is_proxy(written: object) -> bool:
    try:
        return proxy(written) is not None
    except ValueError:
        return False


def _where(base_url: object) -> tuple[str, str, int] | None:
    """Scheme, host and port of a provider; None if its URL is wrong, which the reader reports."""
    try:
        parts = urlsplit(str(base_url))
        if parts.scheme not in DEFAULT_PORTS:  # the URL of a Unix socket has no host
            return parts.scheme, "", 0
        return parts.scheme, in_ascii(parts.hostname or ""), parts.port or DEFAULT_PORTS[parts.scheme]
    except ValueError:
        return None


class _BadVariable(ValueError):
    def __init__(self, variable: str, text: str) -> None:
        super().__init__(f"{text}; or write proxy: none")
        self.variable = variable


class _Variables:
    """The proxies of the environment, by the names that curl, Go and Python read too."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._named = {scheme: self._value(f"{scheme}_proxy") for scheme in ("http", "https", "all")}
        self.any = any(value for _, value in self._named.values())
        self._none_for = NoProxy(self._value("no_proxy")[1] if self.any else "")

    def _value(self, name: str) -> tuple[str, str]:
        """The variable that counts, and its value: the name in lower case, even if it is empty, before upper case."""
        # A web server that starts a CGI script puts a client's header ``Proxy`` into HTTP_PROXY (CVE-2016-5385).
        names = (name,) if name == "http_proxy" and "REQUEST_METHOD" in self._environ else (name, name.upper())
        for each in names:
            if (value := self._environ.get(each)) is not None:
                return each, value.strip()
        return name, ""

    def proxy_for(self, scheme: str, host: str, port: int) -> Proxy | None:
        """The proxy for a provider. Raises _BadVariable."""
        variable, value = self._named[scheme] if self._named[scheme][1] else self._named["all"]
        if not value or self._none_for.has(host, port):
            return None
        try:
            return _read(value, variable)
        except ValueError as error:
            raise _BadVariable(variable, str(error)) from None
