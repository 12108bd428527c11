"""The settings of the listeners' certificates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from aigw.settings.schema import At, OneOf, Otherwise
from aigw.settings.values import FileName


def _has_client_ca(made: Mapping[str, Any]) -> bool:
    return made["client_ca"] is not None


class CertificateFiles(msgspec.Struct, frozen=True):
    """A certificate chain and its key, both PEM."""

    cert_file: FileName
    key_file: FileName


class TlsFiles(CertificateFiles, frozen=True):
    """The listeners' default certificate, and ``others``, chosen by SNI.

    With a ``client_ca`` clients may send a certificate of that CA, and must if ``client_required``.
    """

    others: Annotated[tuple[CertificateFiles, ...], At("certificates")] = ()
    client_ca: FileName | None = None
    client_required: Annotated[
        bool,
        At("client_certificate"),
        OneOf((("required", True), ("optional", False))),
        Otherwise(_has_client_ca),
    ] = False
