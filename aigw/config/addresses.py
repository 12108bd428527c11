"""How addresses are written: the base URL of a provider, and the endpoints of the listeners."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from aigw.config.schema import Written

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
PRIVATE_DOMAINS = ("internal", "local", "lan", "localhost")


def base_url(value: object) -> str:
    """A provider's ``http(s)://host[:port][/path]``, without a slash at its end.

    Raises ValueError with the mistake, which follows the value in the message.
    """
    right = "write http(s)://host[:port]/path"
    if not isinstance(value, str):
        raise ValueError(f"is not a URL; {right}")
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
    if "?" in value or "#" in value:
        raise ValueError(f"contains a query (?) or a fragment (#); {right}, and put keys in api_key or headers")
    # In lower case, because the scheme is compared later to decide on TLS.
    parts = parts._replace(scheme=parts.scheme.lower())
    _refuse_endpoint(parts)
    if parts.scheme == "https" and "_" in (parts.hostname or ""):
        raise ValueError(
            "has an underscore in its host name, which no certificate may have (RFC 5280, RFC 1123); "
            "write a host name without an underscore, or an IP address"
        )
    return parts.geturl().rstrip("/")


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
ListenAddress = Annotated[str, Written(endpoint)]
"""See endpoint."""
