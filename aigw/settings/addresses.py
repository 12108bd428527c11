"""How addresses are written: the base URL of a provider, its paths and its query, and the endpoints of listeners."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Annotated
from urllib.parse import SplitResult, quote, unquote, urlsplit

from aigw.settings.quoting import did_you_mean, quoted
from aigw.settings.schema import Written

# Paths that the gateway appends to a base URL. /models is left out: some providers have it at the end of their URL.
ENDPOINTS = (
    "/chat/completions",
    "/completions",
    "/embeddings",
    "/responses",
    "/responses/compact",
    "/responses/input_tokens",
    "/messages",
    "/messages/count_tokens",
    "/moderations",
    "/rerank",
    "/audio/speech",
    "/audio/transcriptions",
    "/audio/translations",
    "/images/generations",
    "/images/edits",
    "/images/variations",
    "/api/chat",
    "/api/generate",
)
_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_SOCKET = re.compile(r"http\+unix:(?://)?(/[^:]*)(?::(/.*)?)?", re.IGNORECASE)  # the socket's name as it is
_SOCKET_ENCODED = re.compile(r"http\+unix://([^/:@]+)(/.*)?", re.IGNORECASE)  # ... or percent-encoded, as in Python
_SOCKET_URL = "http+unix://"
_MOST_OF_A_SOCKET = 107  # bytes of a name, as Linux allows
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
MODEL = "{model}"
PRIVATE_DOMAINS = ("internal", "local", "lan", "localhost")


def base_url(value: object) -> str:
    """A provider's ``http(s)://host[:port][/path]``, without a slash at its end. For a Unix socket see _socket_url.

    Raises ValueError with the mistake, which follows the value in the message.
    """
    right = "write http(s)://host[:port]/path"
    if not isinstance(value, str):
        raise ValueError(f"is not a URL; {right}")
    if "?" in value:
        raise ValueError("contains a query (?); write the URL without it, and `query: {NAME: VALUE}` on the provider")
    if "{" in value or "}" in value:
        raise ValueError("contains a brace; write the URL without it, and a path with {model} in `paths`")
    if re.match(r"(https?\+)?unix:", value, re.IGNORECASE):
        return _socket_url(value)
    try:
        parts = urlsplit(value)
        good = (
            parts.scheme in ("http", "https")
            and parts.hostname
            and parts.port != 0
            and value.isprintable()
            and " " not in value
        )
    except ValueError:
        good = False
    if not good:
        raise ValueError(f"is not a provider's URL; {right}")
    if "@" in parts.netloc:
        raise ValueError("contains a user name or a password; put the key in api_key")
    if "#" in value:
        raise ValueError(f"contains a fragment (#); {right}")
    # In lower case, because the scheme is compared later to decide on TLS.
    parts = parts._replace(scheme=parts.scheme.lower())
    _refuse_endpoint(parts)
    return parts.geturl().rstrip("/")


def _socket_url(value: str) -> str:
    """``http+unix://%2Frun%2Fx.sock/v1`` for HTTP over the Unix socket ``/run/x.sock``.

    The name of the socket may also be written as it is, with a colon behind it: ``http+unix:///run/x.sock:/v1``.
    """
    right = "write http+unix:///run/NAME.sock:/v1 or http+unix://%2Frun%2FNAME.sock/v1"
    encoded, plain = _SOCKET_ENCODED.fullmatch(value), _SOCKET.fullmatch(value)
    name = unquote(encoded[1]) if encoded else plain[1] if plain else ""
    path = (encoded[2] if encoded else plain[2] if plain else "") or ""
    no_colon = plain is not None and re.search(r"\.sock(et)?/", name)  # between the socket and a path
    wrong = not name.startswith("/") or name.endswith("/") or "#" in value or no_colon
    if wrong or not f"{name}{value}".isprintable():
        raise ValueError(f"is not the URL of a Unix socket; {right}")
    if len(name.encode()) > _MOST_OF_A_SOCKET:
        raise ValueError(f"names a Unix socket of more than {_MOST_OF_A_SOCKET} bytes; use a shorter path")
    path = quote(path.rstrip("/"), safe="/%!$&'()*+,;=:@")
    _refuse_endpoint(urlsplit(f"http://localhost{path}"))
    return f"{_SOCKET_URL}{quote(name, safe='')}{path}"


def socket_of(url: str) -> str | None:
    """The file of the Unix socket in a ``base_url``; None if that is no Unix socket."""
    return unquote(url.split("/", 3)[2]) if url.startswith(_SOCKET_URL) else None


def provider_path(value: object) -> str:
    """The path of an endpoint at a provider, which may contain ``{model}``. Raises ValueError as base_url does."""
    right = "write a path below base_url such as openai/deployments/{model}/embeddings, or with / first one of the host"
    if not isinstance(value, str) or not value:
        raise ValueError(f"is not a path; {right}")
    if "://" in value:
        raise ValueError("is a whole URL; write only the path, and the host in base_url")
    if "?" in value or "#" in value:
        raise ValueError("contains a query (?) or a fragment (#); write only the path, and `query: {NAME: VALUE}`")
    for name in _PLACEHOLDER.findall(value):
        if name != "model":
            shown = quoted(name)
            raise ValueError(f"has the unknown placeholder {{{shown}}}; write {MODEL}{did_you_mean(name, ['model'])}")
    if re.search(r"[{}]", _PLACEHOLDER.sub("", value)):
        raise ValueError(f"has a brace that is not part of {MODEL}; write it as %7B or %7D")
    if not re.fullmatch("[!-~]+", value) or re.search(r"%(?![0-9A-Fa-f]{2})|[\\\"<>^`|]", value):
        raise ValueError("has characters that cannot be in a URL; percent-encode them")
    return str(value)


def path_at(paths: Mapping[str, str], endpoint: str) -> str:
    """The path of an endpoint at a provider with these ``paths``.

    What is below an endpoint, such as ``messages/count_tokens``, is below its path.
    """
    above = [each for each in paths if is_at_or_below(endpoint, each)]
    longest = max(above, key=len, default=None)
    return endpoint if longest is None else paths[longest] + endpoint[len(longest) :]


def joined(url: str, path: str) -> str:
    """The URL of a path below ``url``, a base_url; with a slash first, of a path of its host."""
    return "/".join(url.split("/", 3)[:3]) + path if path.startswith("/") else f"{url}/{path}"


def neighbours(base_url: str) -> list[str]:
    """Other URLs on the same host where the API may be, the most likely first."""
    url = base_url.rstrip("/")
    found = [url.removesuffix("/models")] if url.endswith("/models") else []
    if url.endswith("/v1"):
        found.append(url.removesuffix("/v1"))
    else:
        found.append(f"{found[0] if found else url}/v1")
    origin = "/".join(url.split("/", 3)[:3])
    found += [f"{origin}/{path}" for path in ("v1", "api/v1", "openai/v1")]
    return [each for each in dict.fromkeys(found) if each not in (url, base_url)]


def is_at_or_below(path: str, above: str) -> bool:
    """Whether ``path`` is ``above``, or is below it."""
    return path == above or path.startswith(f"{above}/")


def query_name(value: object) -> str:
    """The name of a part of a query, not percent-encoded."""
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError("is not a name in a query; write printable characters, in quotes if YAML would read a number")
    return str(value)


def _refuse_endpoint(parts: SplitResult) -> None:
    path = parts.path.rstrip("/")
    ends = [each for each in ENDPOINTS if path.lower().endswith(each)]
    if not ends:
        return
    longest = max(ends, key=len)
    rest = path[: -len(longest)]
    if longest.startswith("/api/"):  # the API of Ollama
        raise ValueError(
            f"ends in {longest}, which is not a path of the OpenAI API; write a URL that ends in {rest}/v1"
        )
    end = f"write a URL that ends in {rest}" if rest else "write the URL without a path"
    raise ValueError(f"ends in {longest}, which the gateway appends itself; {end}")


def endpoint(value: object) -> str:
    """A Twisted server endpoint string, of a kind that the gateway can serve with its own TLS."""
    text = value if isinstance(value, str) else ""
    known = text.partition(":")[0] in ("tcp", "tcp6", "unix", "systemd")
    if not known or text != text.encode(errors="replace").decode():
        raise ValueError("is not an endpoint; write tcp:PORT:interface=ADDRESS, tcp6:..., unix:PATH or systemd:...")
    return str(text)


def admin_endpoint(value: object) -> object:
    """``admin`` as a mapping, which may be written as a string or as a port on loopback."""
    if isinstance(value, int | str) and not isinstance(value, bool):
        written = str(value).strip()
        return {"endpoint": f"tcp:{written}:interface=127.0.0.1" if _is_port(written) else value}
    return value


def _is_port(written: str) -> bool:
    return re.fullmatch("[0-9]{1,5}", written) is not None and 0 < int(written) < 65536


def origin(value: object) -> str:
    """The origin of a web page as a browser sends it (RFC 6454), or ``*`` for every page."""
    if value == "*":
        return "*"
    if not isinstance(value, str) or not _ORIGIN.fullmatch(value):
        raise ValueError("is not the origin of a page; write https://host or https://host:port without a path, or *")
    return value.lower()


def is_on_loopback(endpoint: str) -> bool:
    """Whether only this machine can reach a listener at ``endpoint``."""
    if endpoint.startswith("unix:"):
        return True
    addresses = re.findall(r":interface=((?:\\.|[^:\\])*)", endpoint)
    try:
        return bool(addresses) and all(ipaddress.ip_address(re.sub(r"\\(.)", r"\1", a)).is_loopback for a in addresses)
    except ValueError:
        return False


def is_private_host(host: str) -> bool:
    """Whether ``host`` seems to be in the private network, by its name or address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = host.lower().rstrip(".")
        return "." not in name or name.rpartition(".")[2] in PRIVATE_DOMAINS
    return not (getattr(address, "ipv4_mapped", None) or address).is_global


Origin = Annotated[str, Written(origin)]
"""See origin."""
Url = Annotated[str, Written(base_url)]
"""See base_url."""
ProviderPath = Annotated[str, Written(provider_path)]
"""See provider_path."""
QueryName = Annotated[str, Written(query_name)]
"""See query_name."""
ListenAddress = Annotated[str, Written(endpoint)]
"""See endpoint."""
