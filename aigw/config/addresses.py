"""How addresses are written: a provider's base URL, and where the gateway listens."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any
from urllib.parse import SplitResult, urlsplit

from aigw.config.schema import Written

# What the gateway appends to a base URL. /models is not among them: some providers have it at the end of theirs.
ENDPOINTS = (
    "/chat/completions",
    "/completions",
    "/embeddings",
    "/responses",
    "/responses/compact",
    "/responses/input_tokens",
    "/messages",
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
PRIVATE_DOMAINS = ("internal", "local", "lan", "localhost")


def base_url(value: Any) -> str:
    """A provider's ``http(s)://host[:port][/path]``, without a slash at its end.

    Raises ValueError with what is wrong, to be read behind the value.
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
        raise ValueError("holds credentials; put the key in api_key")
    if "?" in value or "#" in value:
        raise ValueError(f"holds a query or a fragment; {right}, and keys in api_key or headers")
    # Lower case, as whoever decides on TLS compares it.
    parts = parts._replace(scheme=parts.scheme.lower())
    _refuse_endpoint(parts)
    if parts.scheme == "https" and "_" in (parts.hostname or ""):
        raise ValueError(
            "has an underscore in its host, and no certificate may name such a host (RFC 5280, RFC 1123); "
            "give the host a name without an underscore, or its address"
        )
    return parts.geturl().rstrip("/")


def _refuse_endpoint(parts: SplitResult) -> None:
    path = parts.path.rstrip("/")
    ends = [each for each in ENDPOINTS if path.lower().endswith(each)]
    if not ends:
        return
    longest = max(ends, key=len)
    rest = path[: -len(longest)]
    if longest.startswith("/api/"):  # of Ollama's own API
        raise ValueError(f"ends in {longest}, which is not of the OpenAI API; end it in {rest}/v1 instead")
    end = f"end it in {rest}" if rest else "leave the path out"
    raise ValueError(f"ends in {longest}, which the gateway appends itself; {end}")


def endpoint(value: Any) -> str:
    """A Twisted server endpoint string, of one of the kinds that the gateway can put its own TLS on."""
    known = isinstance(value, str) and value.partition(":")[0] in ("tcp", "tcp6", "unix", "systemd")
    if not known or value != value.encode(errors="replace").decode():
        raise ValueError("is not served; write tcp:PORT:interface=ADDRESS, tcp6:..., unix:PATH or systemd:...")
    return str(value)


def admin_endpoint(value: Any) -> Any:
    """``admin`` as the mapping that it is short for: a port is one on loopback."""
    if isinstance(value, int | str) and not isinstance(value, bool):
        written = str(value).strip()
        return {"endpoint": f"tcp:{written}:interface=127.0.0.1" if _is_port(written) else value}
    return value


def _is_port(written: str) -> bool:
    return re.fullmatch("[0-9]{1,5}", written) is not None and 0 < int(written) < 65536


def is_on_loopback(endpoint: str) -> bool:
    """Whether nobody beyond this machine can reach a listener at ``endpoint``."""
    if endpoint.startswith("unix:"):
        return True
    addresses = re.findall(r":interface=((?:\\.|[^:\\])*)", endpoint)
    try:
        return bool(addresses) and all(ipaddress.ip_address(re.sub(r"\\(.)", r"\1", a)).is_loopback for a in addresses)
    except ValueError:
        return False


def is_private_host(host: str) -> bool:
    """Whether what is sent to ``host`` stays in one's own network, as far as its name or address shows."""
    try:
        address: Any = ipaddress.ip_address(host)
    except ValueError:
        name = host.lower().rstrip(".")
        return "." not in name or name.rpartition(".")[2] in PRIVATE_DOMAINS
    return not (getattr(address, "ipv4_mapped", None) or address).is_global


Url = Annotated[str, Written(base_url)]
"""See base_url."""
ListenAddress = Annotated[str, Written(endpoint)]
"""See endpoint."""
