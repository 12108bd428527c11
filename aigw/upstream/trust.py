"""Which certificates of a provider the gateway trusts. It sends keys and prompts only after this check.

Since 26.4 Twisted's own check of the name accepts a certificate if the check fails with an exception. Here each
exception is a refusal: it ends the handshake before a byte of the request is sent.
"""

from __future__ import annotations

from OpenSSL import SSL, crypto
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from aigw.net.tls import FORWARD_SECRET_AEAD, ClientIdentity, certificates_of
from aigw.upstream.hostname import reference_of, why_not_for
from aigw.upstream.reasons import Trusted, refused_by_openssl, refused_by_us

UNREADABLE = "the names in the certificate cannot be read"

# For old servers this allows CBC and RSA key exchange too, but no anonymous suites, no RC4 and no 3DES.
_LEGACY = f"{FORWARD_SECRET_AEAD}:ECDHE+AES:DHE+AES:kRSA+AES:!aNULL:!eNULL:!PSK:!SRP"


class Trust:
    """What is trusted, as one OpenSSL context for all providers that trust the same.

    A context with the CAs of the system takes a megabyte, and milliseconds to load and to free. With one for each of
    200 providers the garbage collector held up the event loop for 0.4 s after a reload.
    """

    def __init__(self, authorities: bytes = b"", legacy: bool = False, identity: ClientIdentity | None = None) -> None:
        """Trusts ``authorities`` (PEM) or, if they are empty, the CAs of the system.

        A certificate in ``authorities`` is trusted without its issuer. ``legacy`` allows old cipher suites too.
        ``identity`` is shown to a provider that asks for a certificate.
        """
        self.authorities = Trusted.CA_FILE if authorities else Trusted.of_the_system()
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_cipher_list((_LEGACY if legacy else FORWARD_SECRET_AEAD).encode())
        context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
        context.set_mode(SSL.MODE_RELEASE_BUFFERS)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_alpn_protos([b"http/1.1"])
        if identity is not None:
            identity.use_in(context)
        if not authorities:
            context.set_default_verify_paths()
        store = context.get_cert_store()
        assert store is not None, "a new context has a store"
        for authority in certificates_of(authorities):
            store.add_cert(authority)
        store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
        # The check is the context's: pyOpenSSL raises no exception of a check that is a connection's own.
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, _verify)
        self.context = context


@implementer(IOpenSSLClientConnectionCreator)
class ProviderTls:
    """TLS to one provider. No TLS session is resumed, because OpenSSL checks no certificate in a resumed session."""

    def __init__(self, host: str, trust: Trust) -> None:
        """Raises ValueError for an impossible host."""
        self.reference = reference_of(host)
        self.trust = trust
        self._server_name = self.reference.encode() if isinstance(self.reference, str) else None

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """See IOpenSSLClientConnectionCreator."""
        connection = _Connection(self)
        if self._server_name is not None:  # RFC 6066, section 3: a server name is never an IP address
            connection.set_tlsext_host_name(self._server_name)
        return connection


class _Connection(SSL.Connection):
    """A connection for which the check finds its provider; the application data of OpenSSL are Twisted's."""

    def __init__(self, provider: ProviderTls) -> None:
        super().__init__(provider.trust.context, None)
        self.provider = provider


def _verify(connection: SSL.Connection, certificate: crypto.X509, code: int, depth: int, good: int) -> bool:
    """Check OpenSSL's result for each certificate of the chain, and the names in the provider's, which is the last.

    pyOpenSSL treats an exception as a refusal, and raises it from the handshake.
    """
    assert isinstance(connection, _Connection), "no other connection has this context"
    provider = connection.provider
    if not good:
        raise refused_by_openssl(code, depth, provider.trust.authorities)
    if depth == 0:
        try:
            problem = why_not_for(certificate.to_cryptography(), provider.reference)
        except BaseException:  # a panic in Rust, where cryptography parses, is not an Exception
            raise refused_by_us(UNREADABLE) from None
        if problem is not None:
            raise refused_by_us(problem)
    return True
