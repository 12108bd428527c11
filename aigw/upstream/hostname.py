"""Whether a certificate is for a host, by RFC 9525. The check is at least as strict as that of curl.

Only the subject alternative name counts, never the common name. An address matches only an address, a name only a name.
A malformed entry matches nothing, and the other entries are still checked.
"""

from __future__ import annotations

import ipaddress

from cryptography import x509

Reference = str | ipaddress.IPv4Address | ipaddress.IPv6Address


def reference_of(host: str) -> Reference:
    """The name or address that a certificate for ``host`` must have. Raises ValueError."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    name = host.lower().removesuffix(".")
    if not name or not name.isascii() or "*" in name:
        raise ValueError("a host is an IP address or a name in ASCII (xn--...)")
    if name.rpartition(".")[2].isdecimal():
        # The resolver reads 127.1 and 0x7f.1 as addresses, but no certificate can name them in that form.
        raise ValueError("the host ends in a number, but is not a complete IP address")
    return name


def why_not_for(certificate: x509.Certificate, reference: Reference) -> str | None:
    """Why the certificate is not for this host; None if it is. Callers must treat an exception as a refusal."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return "the certificate has no host name (no subject alternative name)"
    if isinstance(reference, str):
        found = names.get_values_for_type(x509.DNSName)
        good = any(_matches(pattern, reference) for pattern in found)
    else:
        good = any(address == reference for address in names.get_values_for_type(x509.IPAddress))
    return None if good else "the certificate is not for this host"


def _matches(pattern: str, name: str) -> bool:
    """RFC 9525, section 6.3: a wildcard is the whole left-most label and matches one label.

    At least two labels follow it: ``*.com`` matches nothing.
    """
    pattern = pattern.lower().removesuffix(".")
    wildcard, _, parent = pattern.partition(".")
    if wildcard != "*":
        return "*" not in pattern and pattern == name
    label, _, parent_of_name = name.partition(".")
    return "*" not in parent and "." in parent and label != "" and parent == parent_of_name
