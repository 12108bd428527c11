"""Certificates of every kind, good and bad, made quickly: all share a few elliptic keys."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

NOW = datetime.now(timezone.utc)
DAY = timedelta(days=1)
SERVER, CLIENT = x509.ExtendedKeyUsageOID.SERVER_AUTH, x509.ExtendedKeyUsageOID.CLIENT_AUTH


@cache
def key(name: str) -> Any:
    """The one of that name; ``rsa BITS`` is an RSA key."""
    kind, _, bits = name.partition(" ")
    return rsa.generate_private_key(65537, int(bits)) if kind == "rsa" else ec.generate_private_key(ec.SECP256R1())


def der(tag: int, *parts: bytes) -> bytes:
    """One DER value of up to 64 KiB."""
    body = b"".join(parts)
    length = bytes([len(body)]) if len(body) < 128 else b"\x82" + len(body).to_bytes(2, "big")
    return bytes([tag]) + length + body


# RFC 5280, section 4.2.1.6: each kind of entry, of any content


def dns(name: str | bytes) -> bytes:
    return der(0x82, name.encode() if isinstance(name, str) else name)


def email(address: str | bytes) -> bytes:
    return der(0x81, address.encode() if isinstance(address, str) else address)


def uri(text: str) -> bytes:
    return der(0x86, text.encode())


def ip(address: str | bytes) -> bytes:
    return der(0x87, address if isinstance(address, bytes) else ipaddress.ip_address(address).packed)


def other(oid: bytes, *value: bytes) -> bytes:
    return der(0xA0, der(0x06, oid), der(0xA0, *value))


SRV = bytes.fromhex("2b06010505070807")  # id-on-dnsSRV, RFC 4985
REGISTERED_ID = der(0x88, bytes.fromhex("2a0304"))
DIRECTORY_NAME = der(0xA4, x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a")]).public_bytes())
EDI_PARTY = der(0xA5, der(0xA1, der(0x0C, b"party")))


@dataclass(frozen=True)
class Issued:
    """A certificate with the key that is its, and whoever is above it, to be sent along."""

    certificate: x509.Certificate
    key: Any
    above: tuple[x509.Certificate, ...] = ()

    def alone(self) -> Issued:
        return replace(self, above=())

    @property
    def pem(self) -> bytes:
        return b"".join(each.public_bytes(Encoding.PEM) for each in (self.certificate, *self.above))

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def issue(
    *entries: bytes,
    by: Issued | None = None,
    raw: bytes | None = None,
    cn: str | None = "common name",
    begins: datetime = NOW - DAY,
    ends: datetime = NOW + 30 * DAY,
    ca: bool = False,
    usage: tuple[x509.ObjectIdentifier, ...] = (SERVER,),
    key_name: str = "leaf",
    more: tuple[tuple[x509.ExtensionType, bool], ...] = (),
) -> Issued:
    """A certificate with these ``entries`` as its subject alternative names (none: no such extension).

    Self-signed unless issued ``by`` somebody; ``raw`` is the whole extension's content.
    """
    own = key(key_name)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, cn)] if cn else [])
    signer, issuer = (by.key, by.certificate.subject) if by else (own, subject)
    builder = (
        x509.CertificateBuilder(issuer, subject, own.public_key(), x509.random_serial_number(), begins, ends)
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if entries or raw is not None:
        content = raw if raw is not None else der(0x30, *entries)
        names = x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, content)
        builder = builder.add_extension(names, critical=False)
    if usage and not ca:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
    for extension, critical in more:
        builder = builder.add_extension(extension, critical)
    certificate = builder.sign(signer, SHA256())
    is_root = by is None or by.certificate.issuer == by.certificate.subject
    return Issued(certificate, own, () if by is None or is_root else (by.certificate, *by.above))


def authority(cn: str = "root", **more: Any) -> Issued:
    """A CA. What it issues comes with it, unless it is a root."""
    return issue(**{"cn": cn, "ca": True, "key_name": cn, **more})
