"""Which certificates of a provider the gateway trusts. It sends keys and prompts only after this check.

Since 26.4 Twisted's own check of the name accepts a certificate if the check fails with an exception. Here each
exception is a refusal: it ends the handshake before a byte of the request is sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from weakref import ref

from OpenSSL import SSL, crypto
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import connectionDone
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from aigw.net.tls import FORWARD_SECRET_AEAD, ClientIdentity, certificates_of
from aigw.net.tls_transport import TlsClient, TlsTransport
from aigw.upstream.hostname import reference_of, why_not_for
from aigw.upstream.reasons import Trusted, refused_by_openssl, refused_by_us

SESSION_SECONDS = 3600.0
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


def _none() -> None:
    """As a reference to no connection."""


@implementer(IOpenSSLClientConnectionCreator)
class ProviderTls:
    """TLS to one provider. A new connection resumes the session of the newest one (RFC 8446, section 2.2).

    OpenSSL checks no certificate in a resumed session. So a session is used for this provider only, with the trust
    under which its certificates were checked, for SESSION_SECONDS after that check at most, and never beyond the end
    of one of the certificates. A handshake that fails ends it.
    """

    def __init__(self, host: str, trust: Trust, seconds: Callable[[], float] = time.time) -> None:
        """``seconds`` is the time of the day. Raises ValueError for an impossible host."""
        self.reference = reference_of(host)
        self.trust = trust
        self.seconds = seconds
        self._server_name = self.reference.encode() if isinstance(self.reference, str) else None
        self._newest: Callable[[], _Connection | None] = _none  # with a complete handshake
        self._kept: tuple[SSL.Session | None, float] = None, 0.0  # and until when it can be used

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """See IOpenSSLClientConnectionCreator."""
        connection = _Connection(self)
        if self._server_name is not None:  # RFC 6066, section 3: a server name is never an IP address
            connection.set_tlsext_host_name(self._server_name)
        if (newest := self._newest()) is not None:
            self._keep(newest)
        session, until = self._kept
        if session is not None and self.seconds() < until:
            connection.set_session(session)
            connection.good_until = until
        return connection

    def _keep(self, connection: _Connection) -> None:
        self._kept = connection.get_session(), connection.good_until

    def ready(self, connection: _Connection) -> None:
        """The handshake of this connection is complete. With TLS 1.3 its session comes later."""
        self._newest = ref(connection)

    def lost(self, connection: _Connection) -> None:
        """A connection that was ready is lost."""
        if self._newest() is connection:
            self._newest = _none
            self._keep(connection)

    def forget(self) -> None:
        """A handshake has failed: make the next one in full."""
        self._newest, self._kept = _none, (None, 0.0)


class _Connection(SSL.Connection):
    """A connection for which the check finds its provider; the application data of OpenSSL are Twisted's.

    ``good_until``: when a session can be used no more whose certificates were checked for this connection.
    """

    def __init__(self, provider: ProviderTls) -> None:
        super().__init__(provider.trust.context, None)
        self.provider = provider
        self.good_until = 0.0
        self._is_ready = self._is_checked = False

    def do_handshake(self) -> None:
        """See SSL.Connection."""
        super().do_handshake()
        self._is_ready = True
        self.provider.ready(self)

    def checked(self, certificate: crypto.X509) -> None:
        """A certificate of the chain is good."""
        if not self._is_checked:  # a session that the provider did not resume counts no more
            self._is_checked = True
            self.good_until = self.provider.seconds() + SESSION_SECONDS
        try:
            ends = certificate.to_cryptography().not_valid_after_utc.timestamp()
        except BaseException:  # as in _verify; without its end no session is used
            ends = 0.0
        self.good_until = min(self.good_until, ends)

    def ended(self) -> None:
        """The connection is lost. Without a shutdown, OpenSSL would make its session unusable when it is freed."""
        if self._is_ready:
            self.provider.lost(self)
        else:
            self.provider.forget()
        self.set_shutdown(SSL.SENT_SHUTDOWN | SSL.RECEIVED_SHUTDOWN)


class _Transport(TlsTransport):
    """The transport of a connection with ProviderTls: at its end the session is kept."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See IProtocol."""
        connection = self.getHandle()  # type: ignore[no-untyped-call]
        super().connectionLost(reason)  # type: ignore[no-untyped-call]
        if isinstance(connection, _Connection):  # None if it was lost before
            connection.ended()


def over_tls(host: str, trust: Trust, endpoint: IStreamClientEndpoint, clock: IReactorTime) -> IStreamClientEndpoint:
    """The endpoint with TLS, for a certificate of ``host``. Raises ValueError for an impossible host."""
    return TlsClient(ProviderTls(host, trust), endpoint, clock, _Transport)


def _verify(connection: SSL.Connection, certificate: crypto.X509, code: int, depth: int, good: int) -> bool:
    """Check OpenSSL's result for each certificate of the chain, and the names in the provider's, which is the last.

    pyOpenSSL treats an exception as a refusal, and raises it from the handshake.
    """
    assert isinstance(connection, _Connection), "no other connection has this context"
    provider = connection.provider
    if not good:
        raise refused_by_openssl(code, depth, provider.trust.authorities)
    connection.checked(certificate)
    if depth == 0:
        try:
            problem = why_not_for(certificate.to_cryptography(), provider.reference)
        except BaseException:  # a panic in Rust, where cryptography parses, is not an Exception
            raise refused_by_us(UNREADABLE) from None
        if problem is not None:
            raise refused_by_us(problem)
    return True
