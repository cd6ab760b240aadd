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
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lxcfs_py.errors import LxcfsError
from lxcfs_py.linux import regular_file

log = logging.getLogger(__name__)

LIFETIME = datetime.timedelta(days=365)
_LOOK_SECONDS = 1.0
_MAX_BYTES = 1 << 20
_OF_SECRET = ("tls.crt of the Secret", "tls.key")
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
        self.load_pair(Pair(_read(certificate), _read(key), b""), certificate, key)

    def load_pair(self, pair: Pair, certificate: str = _OF_SECRET[0], key: str = _OF_SECRET[1]) -> None:
        """Serve with this pair from now on, called so; it gets into no file system. CertificateError."""
        self._current, expiry = _loaded(pair, certificate, key)
        self.expiry = expiry.timestamp()
        log.info("serving with a certificate that expires at %s", expiry.isoformat())

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
    """CertificateError for a pair that cannot be served, or whose authority is not as `make` has it. ValueError."""
    _loaded(pair, *_OF_SECRET)
    certificate, authority = (
        x509.load_pem_x509_certificate(first_of(text)) for text in (pair.certificate, pair.authorities)
    )
    key = authority.public_key()
    try:
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise InvalidSignature
        key.verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise CertificateError("the authority ca.crt of the Secret has not signed the certificate tls.crt") from None


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
    begin = text.find(b"-----BEGIN CERTIFICATE-----")
    match = _END.search(text, max(begin, 0))
    return text[begin : match.end()] if match and begin >= 0 else b""


_END = re.compile(rb"-----END CERTIFICATE-----\n?")


def _read(path: str) -> bytes:
    """Return what a file of the pair has. CertificateError."""
    try:
        with open(path, "rb", opener=regular_file.opener) as file:
            text = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise CertificateError(f"{path} cannot be read: {error.strerror}") from None
    if len(text) > _MAX_BYTES:
        raise CertificateError(f"{path} has more than {_MAX_BYTES >> 20} MiB; allowed: up to that, in PEM")
    return text


def _loaded(pair: Pair, certificate: str, key: str) -> tuple[ssl.SSLContext, datetime.datetime]:
    """Return what serves with a pair, whose parts are called so, and when that ends. CertificateError."""

    def refuse_to_ask() -> str:
        raise CertificateError(f"the key {key} is encrypted; allowed: one that needs no passphrase")

    context = _context()
    try:
        expiry = expires(pair.certificate)
    except ValueError:
        raise CertificateError(f"{certificate} has no certificate that can be read; allowed: PEM") from None
    try:
        with _in_memory(pair.certificate) as certificate_path, _in_memory(pair.key) as key_path:
            context.load_cert_chain(certificate_path, key_path, refuse_to_ask)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise CertificateError(f"the key {key} is not that of the certificate {certificate}") from None
        if b"PRIVATE KEY-----" not in pair.key:
            raise CertificateError(f"{key} has no private key; allowed: PEM") from None
        reason = error.reason.replace("_", " ").lower() if error.reason else "one of them cannot be read"
        raise CertificateError(f"the certificate {certificate} with the key {key} cannot be served: {reason}") from None
    except OSError as error:
        raise CertificateError(f"the certificate {certificate} cannot be loaded: {error.strerror}") from None
    return context, expiry


@contextlib.contextmanager
def _in_memory(text: bytes) -> Iterator[str]:
    """The path of a file with this text, for as long as the block runs."""
    memory = os.memfd_create("lxcfs-py-certificate", os.MFD_CLOEXEC)
    try:
        os.write(memory, text)
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
