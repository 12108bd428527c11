"""TLS on both sides: the certificate that the listener shows, and whom the gateway trusts as a provider."""

from __future__ import annotations

from pathlib import Path

from OpenSSL import SSL, crypto
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IOpenSSLServerConnectionCreator
from twisted.internet.ssl import (
    AcceptableCiphers,
    Certificate,
    CertificateOptions,
    TLSVersion,
    optionsForClientTLS,
    trustRootFromCertificates,
)
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from aigw.config import TlsFiles
from aigw.errors import ConfigError

# Forward secrecy and AEAD only; TLS 1.3 has nothing else. https://wiki.mozilla.org/Security/Server_Side_TLS
CIPHERS = AcceptableCiphers.fromOpenSSLCipherString("ECDHE+AESGCM:ECDHE+CHACHA20")


@implementer(IOpenSSLServerConnectionCreator)
class ServerIdentity:
    """The listener's certificate chain and key, asked for anew by each connection, so that it can be replaced."""

    def __init__(self, files: TlsFiles) -> None:
        """Read both files. Raises ConfigError."""
        mistakes: list[str] = []
        try:
            chain = _certificates("tls.cert_file", files.cert_file)
        except ConfigError as error:
            mistakes += error.mistakes
        try:
            key = _key("tls.key_file", files.key_file)
        except ConfigError as error:
            mistakes += error.mistakes
        if mistakes:
            raise ConfigError(mistakes)
        self._options = CertificateOptions(
            privateKey=key,
            certificate=chain[0],
            extraCertChain=chain[1:],
            raiseMinimumTo=TLSVersion.TLSv1_2,
            acceptableCiphers=CIPHERS,
        )
        try:
            self._options.getContext().check_privatekey()
        except SSL.Error:
            raise ConfigError([f"tls: {files.key_file} is not the key of {files.cert_file}"]) from None

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """See IOpenSSLServerConnectionCreator."""
        return self._options.serverConnectionForTLS(tlsProtocol)


def trust(host: str, ca_file: str | None) -> IOpenSSLClientConnectionCreator:
    """How to connect to a provider: its certificate must be for ``host``, from ``ca_file`` or a CA of the system.

    One of these is made per provider and serves all its connections. Raises ConfigError.
    """
    root = None
    if ca_file:
        found = _certificates("ca_file", ca_file)
        root = trustRootFromCertificates([Certificate(certificate) for certificate in found])
    return optionsForClientTLS(host, trustRoot=root, acceptableProtocols=[b"http/1.1"])


def _key(setting: str, path: str) -> crypto.PKey:
    try:
        return crypto.load_privatekey(crypto.FILETYPE_PEM, Path(path).read_bytes(), passphrase=b"")
    except OSError as error:
        raise ConfigError([f"{setting}: {path}: {error.strerror}"]) from None
    except (crypto.Error, ValueError):
        raise ConfigError([f"{setting}: {path}: holds no PEM private key without passphrase"]) from None


def _certificates(setting: str, path: str) -> list[crypto.X509]:
    try:
        pem = Path(path).read_bytes()
        parts = pem.split(b"-----BEGIN CERTIFICATE-----")[1:]
        found = [crypto.load_certificate(crypto.FILETYPE_PEM, b"-----BEGIN CERTIFICATE-----" + part) for part in parts]
    except OSError as error:
        raise ConfigError([f"{setting}: {path}: {error.strerror}"]) from None
    except (crypto.Error, ValueError):
        raise ConfigError([f"{setting}: {path}: holds a malformed certificate"]) from None
    if not found:
        raise ConfigError([f"{setting}: {path}: holds no PEM certificate"])
    return found
