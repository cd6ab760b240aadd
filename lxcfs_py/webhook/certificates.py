"""The certificate that the webhook serves with, which changes while it serves."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import os
import re
import ssl
from collections.abc import Coroutine, Iterator
from typing import Any, NamedTuple, Optional

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lxcfs_py.errors import LxcfsError

log = logging.getLogger(__name__)

LIFETIME = datetime.timedelta(days=365)
_LOOK_SECONDS = 1.0
_SKEW = datetime.timedelta(hours=1)  # by which the API server's clock may be behind


class CertificateError(LxcfsError):
    """A certificate that cannot be served: one sentence for the operator."""


class Pair(NamedTuple):
    """PEM: a certificate with those that signed it, its key, and the authorities to trust it by."""

    certificate: bytes
    key: bytes
    authorities: bytes


class Served:
    """What the server's sockets take their certificate from.

    Each handshake takes the pair that is current then, whole; connections that exist are not touched.
    """

    def __init__(self) -> None:
        self.context = _context()
        self.context.sni_callback = self._choose
        self.expiry = 0.0  # seconds since 1970; 0 as long as there is no certificate
        self._current: Optional[ssl.SSLContext] = None

    def load(self, certificate: str, key: str) -> None:
        """Serve with the pair in these files from now on. CertificateError, and what was served stays."""
        self._current, expiry = _loaded(certificate, key)
        self.expiry = expiry.timestamp()
        log.info("serving with a certificate that expires at %s", expiry.isoformat())

    def load_pair(self, pair: Pair) -> None:
        """Serve with this pair from now on; it gets into no file system. CertificateError."""
        with _in_memory(pair) as path:
            self.load(path, path)

    def _choose(self, handshake: ssl.SSLObject, _name: Optional[str], _context: ssl.SSLContext) -> Optional[int]:
        if self._current is None:
            return ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
        handshake.context = self._current
        return None


def follow_files(served: Served, certificate: str, key: str) -> Coroutine[Any, Any, None]:
    """Load a pair of files, and return what loads it again whenever they have changed, as those in a volume do.

    CertificateError for the first pair only: of those that come later, a bad one is logged, and what was served stays.
    """
    seen = _stamps(certificate, key)
    served.load(certificate, key)
    return _follow(served, certificate, key, seen)


async def _follow(served: Served, certificate: str, key: str, seen: list[tuple[int, int]]) -> None:
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        stamps = _stamps(certificate, key)
        if stamps and stamps != seen:
            try:
                served.load(certificate, key)
            except CertificateError as error:
                log.error("%s; the one of before stays", error)
            seen = stamps


def make(names: list[str], now: datetime.datetime) -> Pair:
    """Return a new certificate for a server's DNS names, and the new authority that has signed it.

    The authority's key is thrown away: the next certificate has another authority.
    """
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{names[0]} authority"[:64])])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    common = x509.CertificateBuilder().issuer_name(issuer).not_valid_before(now - _SKEW).not_valid_after(now + LIFETIME)
    authority_id = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())
    authority = (
        common.subject_name(issuer)
        .public_key(authority_key.public_key())
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True), critical=True)
        .add_extension(authority_id, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    certificate = (
        common.subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(list(map(x509.DNSName, names))), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority_id), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    return Pair(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        authority.public_bytes(serialization.Encoding.PEM),
    )


def check(pair: Pair) -> None:
    """CertificateError for a pair that cannot be served."""
    with _in_memory(pair) as path:
        _loaded(path, path)


def expires(certificate: bytes) -> datetime.datetime:
    """Return when the first certificate of a PEM text ends. ValueError."""
    first = x509.load_pem_x509_certificate(first_of(certificate))
    if hasattr(first, "not_valid_after_utc"):  # since cryptography 42
        return first.not_valid_after_utc
    return first.not_valid_after.replace(tzinfo=datetime.timezone.utc)


def names_of(certificate: bytes) -> list[str]:
    """Return the DNS names of the first certificate of a PEM text. ValueError."""
    first = x509.load_pem_x509_certificate(first_of(certificate))
    try:
        names = first.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return names.value.get_values_for_type(x509.DNSName)


def first_of(text: bytes) -> bytes:
    """Return the first certificate of a PEM text; what is there to say it is not one is the reader's."""
    match = re.search(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n?", text, re.DOTALL)
    return match[0] if match else b""


def _loaded(certificate: str, key: str) -> tuple[ssl.SSLContext, datetime.datetime]:
    """Return what serves with the pair in these files, and when that ends. CertificateError."""
    context = _context()
    try:
        context.load_cert_chain(certificate, key)
        with open(certificate, "rb") as file:
            return context, expires(file.read())
    except (OSError, ValueError) as error:
        raise CertificateError(f"the certificate {certificate} with the key {key} cannot be served: {error}") from None


@contextlib.contextmanager
def _in_memory(pair: Pair) -> Iterator[str]:
    """The path of a file with certificate and key, for as long as the block runs."""
    memory = os.memfd_create("lxcfs-py-certificate", os.MFD_CLOEXEC)
    try:
        os.write(memory, pair.key + pair.certificate)
        yield f"/proc/self/fd/{memory}"
    finally:
        os.close(memory)


def _stamps(*paths: str) -> list[tuple[int, int]]:
    """Return what changes when files are replaced or written; nothing while one of them is not there."""
    try:
        return [(status.st_ino, status.st_mtime_ns) for status in map(os.stat, paths)]
    except OSError:
        return []


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _usage(key_cert_sign: bool = False, digital_signature: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=key_cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
