"""TLS of the listeners: the certificates that they send. Also PEM files, for both sides."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography import x509
from OpenSSL import SSL, crypto
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.ssl import AcceptableCiphers, CertificateOptions, TLSVersion
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from aigw.errors import ConfigError
from aigw.net.validity import Authorities, Validity
from aigw.settings.quoting import quoted_file
from aigw.settings.tls_files import CertificateFiles, TlsFiles

# Forward secrecy and AEAD only; TLS 1.3 has nothing else. https://wiki.mozilla.org/Security/Server_Side_TLS
FORWARD_SECRET_AEAD = "ECDHE+AESGCM:ECDHE+CHACHA20"
CIPHERS = AcceptableCiphers.fromOpenSSLCipherString(FORWARD_SECRET_AEAD)
TICKET_SECONDS = 3600.0


class Identity:
    """The certificates of the listeners: one for each name that a client may ask for, and one for all others.

    ``validity`` is that of all of them together; ``serials`` are theirs, in hexadecimal, the default's first;
    ``warnings`` are for the log.

    A client may resume its session by a ticket (RFC 8446, section 2.2). The key of the tickets is that of the default's
    context, which is made anew after TICKET_SECONDS and by each reload. OpenSSL does not check the certificate of a
    client in a resumed session: it was checked at most that long ago.
    """

    def __init__(self, files: TlsFiles, seconds: Callable[[], float] = time.monotonic) -> None:
        """Read all files. Raises ConfigError with every mistake in them."""
        mistakes: list[str] = []
        trusted = None
        if files.client_ca:
            try:
                trusted = _certificates("tls.client_ca", files.client_ca)
            except ConfigError as error:
                mistakes += error.mistakes
        named = {f"tls.certificates[{index}]": pair for index, pair in enumerate(files.others)}
        loaded = []
        for path, pair in {**named, "tls": files}.items():
            try:
                loaded.append(_Loaded(path, pair, trusted, files.client_required))
            except ConfigError as error:
                mistakes += error.mistakes
        if mistakes:
            raise ConfigError(mistakes)
        # The default is last, so it is used for a name that is in two certificates.
        self._by_name = {name: each for each in loaded for name in each.names}
        self._default = loaded[-1]
        self._default.context.set_tlsext_servername_callback(self._choose)
        self._seconds = seconds
        self._renewed = seconds()
        self.validity = Validity((each.file, each.chain) for each in loaded)
        self.serials = [each.serial for each in reversed(loaded)]
        known = Authorities(trusted or ())
        self.warnings = [
            f"{each.path}.cert_file: {each.file}: its issuer, {issuer}, is neither in the file nor a CA of this system,"
            " so clients may refuse the connection; append the certificate of the issuer to the file"
            for each in reversed(loaded)
            if (issuer := known.missing_issuer(each.chain))
        ]

    def _choose(self, connection: SSL.Connection) -> None:
        """RFC 6066, section 3: by the name in the client's hello; an unknown one gets the default."""
        name = (connection.get_servername() or b"").lower()
        found = self._by_name.get(name) or self._by_name.get(b"*." + name.partition(b".")[2])
        if found is not None:
            connection.set_context(found.context)

    def connection(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """The server's side of a new connection."""
        if self._seconds() - self._renewed >= TICKET_SECONDS:
            self._renewed = self._seconds()
            self._default.renew()
            self._default.context.set_tlsext_servername_callback(self._choose)
        if self._default.trusted:
            return _FromKnownClient(self._default.context, None)
        return self._default.options.serverConnectionForTLS(protocol)


class _FromKnownClient(SSL.Connection):
    """A connection of a client whose certificate counts: one that is not valid now resumes no session."""

    def do_handshake(self) -> None:
        """See SSL.Connection. Any exception is a refusal, and ends the connection."""
        super().do_handshake()
        certificate = self.get_peer_certificate()
        if certificate is not None:
            shown = certificate.to_cryptography()
            if not shown.not_valid_before_utc.timestamp() <= time.time() <= shown.not_valid_after_utc.timestamp():
                raise SSL.Error([("", "", "the certificate of the client has expired")])


class _Loaded:
    """One certificate, loaded by OpenSSL, and its contents."""

    def __init__(
        self, path: str, files: CertificateFiles, trusted: list[crypto.X509] | None, client_required: bool
    ) -> None:
        mistakes: list[str] = []
        try:
            chain = _certificates(f"{path}.cert_file", files.cert_file)
        except ConfigError as error:
            mistakes += error.mistakes
        try:
            key = _key(f"{path}.key_file", files.key_file)
        except ConfigError as error:
            mistakes += error.mistakes
        if mistakes:
            raise ConfigError(mistakes)
        self._key, self._required = key, client_required
        self.path, self.file, self.chain, self.trusted = path, files.cert_file, chain, trusted
        shown = chain[0].to_cryptography()
        try:
            self.renew()
        except SSL.Error as error:
            raise ConfigError([f"{path}: {_why_not(error, chain[0], key, files.cert_file, files.key_file)}"]) from None
        self.serial = f"{shown.serial_number:x}"
        self.names = _names_in(shown)

    def renew(self) -> None:
        """Make the context anew, so that no ticket of the old one is taken. Raises SSL.Error."""
        self.options = CertificateOptions(
            privateKey=self._key,
            certificate=self.chain[0],
            extraCertChain=self.chain[1:],
            raiseMinimumTo=TLSVersion.TLSv1_2,
            acceptableCiphers=CIPHERS,
            verify=self.trusted is not None,
            caCerts=self.trusted,
            requireCertificate=self._required,
            enableSessionTickets=True,
        )
        self.context = self.options.getContext()
        self.context.check_privatekey()
        self.context.set_timeout(round(TICKET_SECONDS))
        for each in self.trusted or ():
            self.context.add_client_ca(each)  # so that a client with many certificates can choose the right one


def _why_not(error: SSL.Error, certificate: crypto.X509, key: crypto.PKey, cert_file: str, key_file: str) -> str:
    """Why OpenSSL takes a certificate and a key not together."""
    private: Any = key.to_cryptography_key()
    if private.public_key() == certificate.to_cryptography().public_key():
        return f"OpenSSL refuses {quoted_file(cert_file)}: {openssl_reasons(error)}"
    return f"{quoted_file(key_file)} is not the key of the certificate in {quoted_file(cert_file)}"


def openssl_reasons(problem: BaseException | None) -> str:
    """OpenSSL's error queue, which pyOpenSSL gives as ``([(library, function, reason), ...],)``, as its reasons."""
    queue = problem.args[0] if problem and problem.args and isinstance(problem.args[0], list) else []
    return ", ".join(str(entry[-1]) for entry in queue)


def _names_in(certificate: x509.Certificate) -> list[bytes]:
    """The host names that a certificate is for, in lower case."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return [name.lower().encode() for name in found.get_values_for_type(x509.DNSName) if name.isascii()]


@implementer(IOpenSSLServerConnectionCreator)
class CurrentIdentity:
    """The Identity for new connections; assigning ``identity`` replaces it, and open connections keep theirs."""

    def __init__(self, identity: Identity | None) -> None:
        self.identity = identity

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """See IOpenSSLServerConnectionCreator."""
        assert self.identity is not None, "a TLS listener is open only where there is a certificate"
        return self.identity.connection(tlsProtocol)


def authorities_in(ca_file: str) -> bytes:
    """The certificates in a provider's ``ca_file``, as PEM. Raises ConfigError."""
    found = _certificates("ca_file", ca_file)
    return b"".join(crypto.dump_certificate(crypto.FILETYPE_PEM, certificate) for certificate in found)


class ClientIdentity:
    """The gateway's own certificate for a provider that asks for one. Those with the same content are equal."""

    def __init__(self, cert_file: str, key_file: str) -> None:
        """Read both files. Raises ConfigError with every mistake in them."""
        mistakes: list[str] = []
        try:
            self._chain = _certificates("client_cert", cert_file)
        except ConfigError as error:
            mistakes += error.mistakes
        try:
            self._key = _key("client_key", key_file)
        except ConfigError as error:
            mistakes += error.mistakes
        if mistakes:
            raise ConfigError(mistakes)
        try:
            self.use_in(SSL.Context(SSL.TLS_METHOD))
        except SSL.Error as error:
            wrong = _why_not(error, self._chain[0], self._key, cert_file, key_file)
            raise ConfigError([f"client_cert: {wrong}"]) from None
        self._content = b"".join(crypto.dump_certificate(crypto.FILETYPE_ASN1, each) for each in self._chain)

    def use_in(self, context: SSL.Context) -> None:
        """Show the certificate in connections of this context. Raises SSL.Error."""
        context.use_certificate(self._chain[0])
        for each in self._chain[1:]:
            context.add_extra_chain_cert(each)
        context.use_privatekey(self._key)
        context.check_privatekey()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClientIdentity) and self._content == other._content  # a certificate has one key

    def __hash__(self) -> int:
        return hash(self._content)


def _key(setting: str, path: str) -> crypto.PKey:
    try:
        return crypto.load_privatekey(crypto.FILETYPE_PEM, Path(path).read_bytes(), passphrase=b"")
    except OSError as error:
        raise ConfigError([f"{setting}: {quoted_file(path)}: {error.strerror}"]) from None
    except (crypto.Error, ValueError):
        raise ConfigError(
            [f"{setting}: {quoted_file(path)}: does not hold a PEM private key without a passphrase"]
        ) from None


def certificates_of(pem: bytes) -> list[crypto.X509]:
    """All certificates in a PEM file. Raises crypto.Error or ValueError."""
    begin = b"-----BEGIN CERTIFICATE-----"
    return [crypto.load_certificate(crypto.FILETYPE_PEM, begin + part) for part in pem.split(begin)[1:]]


def _certificates(setting: str, path: str) -> list[crypto.X509]:
    try:
        found = certificates_of(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError([f"{setting}: {quoted_file(path)}: {error.strerror}"]) from None
    except (crypto.Error, ValueError):
        raise ConfigError([f"{setting}: {quoted_file(path)}: holds a malformed certificate"]) from None
    if not found:
        raise ConfigError([f"{setting}: {quoted_file(path)}: does not hold a PEM certificate"])
    return found
