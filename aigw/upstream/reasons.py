"""Why there is no connection to a provider, or no answer, and what to do. Clients see the texts: none has a host."""

from __future__ import annotations

import enum
import errno
import os
import ssl
from typing import NoReturn

from OpenSSL import SSL
from twisted.internet import error
from twisted.python.failure import Failure

from aigw.errors import UpstreamBroken, UpstreamTimeout, UpstreamUnreachable
from aigw.net.tls import openssl_reasons

BEFORE_TUNNEL = "before the proxy connected to the provider"
BEFORE_PROXY = "while connecting to the proxy"

MOST = 300  # characters
# The beginnings of the texts for a refused certificate
CERTIFICATE_REFUSED = ("TLS: the certificate", "TLS: a CA certificate", "TLS: the names in the certificate")


class Stale(Exception):
    """A reused connection was lost before any byte of the answer, or closed by a 408."""


class NoAnswer(UpstreamBroken):
    """A fresh connection was lost before any byte of the answer."""


class ProxyRefused(UpstreamUnreachable):
    """The proxy answered with ``status``, and the provider did not get the request."""

    outcome = "proxy_refused"


class Trusted(enum.Enum):
    """Which CAs are trusted for a provider. The value is the advice how to trust another one."""

    CA_FILE = "set ca_file to the CA of the provider, which replaces the CAs of the system"
    SYSTEM = "set ca_file to the CA of the provider"
    NOTHING = "this machine has no CA certificates; install ca-certificates, or set ca_file to the CA of the provider"

    @classmethod
    def of_the_system(cls) -> Trusted:
        """SYSTEM where there is a file or a folder of CA certificates, as OpenSSL and pyOpenSSL look for them."""
        file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
        if file or folder:
            files, folders = [file or ""], (folder or "").split(os.pathsep)
        else:
            paths = ssl.get_default_verify_paths()
            files = [*_CA_FILES, paths.openssl_cafile]
            folders = ["/etc/ssl/certs", paths.openssl_capath]
        return cls.SYSTEM if any(map(_has_bytes, files)) or any(map(_has_files, folders)) else cls.NOTHING


_CA_FILES = (  # of Debian, Fedora, openSUSE, OpenELEC, RHEL 7 and macOS
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


def _has_bytes(file: str) -> bool:
    try:
        return os.path.getsize(file) > 0
    except OSError:
        return False


def _has_files(folder: str) -> bool:
    try:
        return bool(folder and os.listdir(folder))
    except OSError:
        return False


class CertificateRefused(SSL.Error):
    """The certificate of a provider is not trusted. The argument has the form of OpenSSL's error queue."""

    def __init__(self, why: str, words: str, advice: str) -> None:
        """``why`` is the gateway's text, ``words`` is OpenSSL's text, ``advice`` is what an operator can do."""
        both = why if words in why else f"{why} ({words})"
        super().__init__([("aigw", "", f"{both}; {advice}")])
        self.why = why


_RENEW = "the provider must renew it, or the clock of this machine is wrong"
_CLOCK = "check the clock of this machine"
_CA = ""  # stands for the advice of Trusted
_PROVIDER = "the provider needs another certificate"
_CODES = SSL.X509VerificationCodes
_UNKNOWN = "has an unknown issuer"

# The reason in the gateway's words, in those of OpenSSL (crypto/x509/x509_txt.c), and the advice.
_REASONS = {
    _CODES.ERR_CERT_HAS_EXPIRED: ("has expired", "certificate has expired", _RENEW),
    _CODES.ERR_CERT_NOT_YET_VALID: ("is not valid yet", "certificate is not yet valid", _CLOCK),
    _CODES.ERR_DEPTH_ZERO_SELF_SIGNED_CERT: ("is self-signed and not trusted", "self-signed certificate", _CA),
    _CODES.ERR_SELF_SIGNED_CERT_IN_CHAIN: (
        "is the root of its chain and not trusted",
        "self-signed certificate in certificate chain",
        _CA,
    ),
    _CODES.ERR_UNABLE_TO_GET_ISSUER_CERT: (_UNKNOWN, "unable to get issuer certificate", _CA),
    _CODES.ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY: (_UNKNOWN, "unable to get local issuer certificate", _CA),
    _CODES.ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE: (_UNKNOWN, "unable to verify the first certificate", _CA),
    _CODES.ERR_CERT_SIGNATURE_FAILURE: ("has a wrong signature", "certificate signature failure", _PROVIDER),
    _CODES.ERR_INVALID_PURPOSE: ("is not for servers (its key usage)", "unsuitable certificate purpose", _PROVIDER),
    _CODES.ERR_PERMITTED_VIOLATION: (
        "has a name that its CA may not give",
        "permitted subtree violation",
        _PROVIDER,
    ),
    _CODES.ERR_EXCLUDED_VIOLATION: ("has a name that its CA may not give", "excluded subtree violation", _PROVIDER),
}
_NAMES = {
    code: name.removeprefix("ERR_").replace("_", " ").lower()
    for name, code in vars(_CODES).items()
    if name.startswith("ERR_")
} | {66: "key too small", 67: "key too small", 68: "signature too weak"}  # openssl/x509_vfy.h; pyOpenSSL names none


def refused_by_openssl(code: int, depth: int, trusted: Trusted) -> CertificateRefused:
    """OpenSSL's result ``code`` for the certificate at ``depth`` of the chain; at 0 is the provider's own."""
    which = "a CA certificate of the chain" if depth else "the certificate"
    if code not in _REASONS:
        name = _NAMES.get(code, f"code {code}")
        return CertificateRefused(f"{which} is refused by OpenSSL: {name}", name, _PROVIDER)
    reason, words, advice = _REASONS[code]
    return CertificateRefused(f"{which} {reason}", words, trusted.value if advice == _CA else advice)


def refused_by_us(problem: str) -> CertificateRefused:
    """A ``problem`` with the names in the certificate; OpenSSL has accepted the rest of it."""
    return CertificateRefused(problem, "hostname mismatch", "set base_url to a host that the certificate names")


# Handshakes that failed before the certificate was checked, by a part of OpenSSL's text
_NO_TLS = "the port does not use TLS; does base_url need http://?"
# TLS alerts about the gateway's own certificate, or about a missing one
_ABOUT_THE_CLIENT = (
    "certificate required",
    "alert bad certificate",
    "alert unsupported certificate",
    "alert certificate",
    "alert unknown ca",
    "alert access denied",
)
_SET_ONE = "set client_cert and client_key to a certificate that the provider accepts"
_ALLOW_OLD = "; write `tls: {legacy: true}` to allow older cipher suites"
_OLD = f"the provider supports only old TLS{_ALLOW_OLD}"
_HANDSHAKES = {
    "wrong version number": _NO_TLS,
    "http request": _NO_TLS,
    "packet length too long": _NO_TLS,
    "unknown protocol": _NO_TLS,
    "record layer failure": _NO_TLS,
    "unsupported protocol": _OLD,
    "alert protocol version": _OLD,
    "alert handshake failure": f"the provider asks for a certificate ({_SET_ONE}), or has only old TLS{_ALLOW_OLD}",
    "no shared cipher": _OLD,
    "wrong cipher returned": _OLD,
    "dh key too small": _OLD,
    "unrecognized name": "the provider does not serve the host of base_url; correct base_url",
    **dict.fromkeys(_ABOUT_THE_CLIENT, _SET_ONE),
}


_SOCKETS = {
    errno.ENOENT: "the Unix socket of base_url does not exist; start its server, or correct base_url",
    errno.ENOTDIR: "the Unix socket of base_url does not exist; start its server, or correct base_url",
    errno.EACCES: "permission denied: the gateway's user needs write permission for the Unix socket of base_url",
    errno.EPERM: "permission denied: the gateway's user needs write permission for the Unix socket of base_url",
    errno.ECONNREFUSED: "connection refused: no server listens on the Unix socket of base_url",
}


def no_socket(failure: Failure) -> NoReturn:
    """Why there is no connection over a Unix socket. Raises UpstreamUnreachable."""
    failure.trap(error.ConnectError)
    code = getattr(failure.value, "osError", None)
    full = "the Unix socket of base_url takes no connection now; its server may be overloaded"
    raise UpstreamUnreachable(_SOCKETS.get(code or 0, full)) from None


def unreachable(failure: Failure, handshake: str) -> UpstreamUnreachable:
    """Why connecting failed; ``handshake`` is the text of ``in_handshake`` if TCP was connected, and TLS was not."""
    if isinstance(failure.value, UpstreamUnreachable):
        return failure.value
    if failure.check(error.DNSLookupError):
        message = "name not found"
    elif failure.check(error.ConnectionRefusedError):
        message = "connection refused"
    elif failure.check(SSL.Error):
        problem = openssl_reasons(failure.value) or "handshake failed"
        advice = [advice for words, advice in _HANDSHAKES.items() if words in problem]
        message = "TLS: " + ": ".join([problem, *advice[:1]])
    elif failure.check(error.ConnectionDone, error.ConnectionLost):
        message = f"the connection was closed {handshake or 'before it could be used'}"
    else:
        message = f"the connection failed: {type(failure.value).__name__}"
    return UpstreamUnreachable(message[:MOST])


def refused_late(failure: Failure) -> UpstreamUnreachable | None:
    """Why a connection ended, if the provider did not accept the gateway's certificate, or got none.

    With TLS 1.3 a client's handshake is complete before the provider looks at that.
    """
    problem = openssl_reasons(failure.value) if failure.check(SSL.Error) else ""
    return unreachable(failure, "") if any(words in problem for words in _ABOUT_THE_CLIENT) else None


def too_slow(seconds: float, phase: str) -> UpstreamTimeout:
    """Connecting took longer than ``seconds``; ``phase`` is the text of ``in_handshake``, or one about a proxy."""
    slow = UpstreamTimeout("connect", seconds)
    slow.message += f" {phase}" if phase else ""
    return slow


def in_handshake(answered: bool) -> str:
    """The phase in which a connection ended. A provider that never ``answered`` may not use TLS."""
    return "in the TLS handshake" if answered else "in the TLS handshake; does base_url need http://?"
