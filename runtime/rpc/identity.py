"""Who is who in a cluster: its certificate authority, the certificates it issues, and how a peer is recognised.

vpxd makes a small authority at its first start, as VMCA does. Everyone who speaks on a network has a certificate of it:

    CN=<name>    DNS SAN <name>.<role>.vpx    role: vpxd | host | client

The role and the name of a peer are read from that one DNS name, whatever address it comes from; channels demand it of
their server, servers of their callers. No other issued DNS name may end in ".vpx", so nobody can be given a second role
through an address. Private keys stay where they were made, mode 0600 in a folder of mode 0700.
"""

import hashlib
import hmac
import ipaddress
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Protocol, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from runtime.faults import CannotAccessFile, InvalidArgument, NotAuthenticated
from runtime.ondisk.durable import read_bounded, write_durably

_SUFFIX = ".vpx"
_NAME = re.compile(r"(?=.{1,63}\Z)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_CA_DAYS = 3652
CERTIFICATE_DAYS = 365
_CLOCK_SKEW = timedelta(
    minutes=5
)  # a certificate made just now must be valid on a host whose clock is a bit behind
_MAX_PEM_BYTES = 64 * 1024
_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature, x509.InvalidVersion)
_KEY_FILE, _CERTIFICATE_FILE, _CA_FILE = "key.pem", "cert.pem", "ca.pem"


class Role(StrEnum):
    """What the holder of a certificate is in the cluster."""

    VPXD = "vpxd"
    HOST = "host"
    CLIENT = "client"


@dataclass(frozen=True)
class PeerIdentity:
    """Role and name that a peer's certificate proves."""

    role: Role
    name: str

    @property
    def dns_name(self) -> str:
        return f"{self.name}.{self.role.value}{_SUFFIX}"

    @property
    def peer(self) -> str:
        """As it is written in logs and messages, e.g. "host@esx02"."""
        return f"{self.role.value}@{self.name}"


class _AuthContext(Protocol):
    """The part of grpc.aio.ServicerContext that tells who calls."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]: ...


def peer_of(context: _AuthContext) -> PeerIdentity:
    """Who calls, from the certificate that the transport has checked.

    :raises NotAuthenticated: there is none (a unix socket has none), or it isn't one of the kind that we issue.
    """
    names = context.auth_context().get("x509_subject_alternative_name", ())
    return _peer_of_names([name.decode("ascii", "replace") for name in names])


def peer_of_certificate(certificate: x509.Certificate) -> PeerIdentity:
    """Role and name in a certificate; proves nothing unless the certificate has been verified.

    :raises NotAuthenticated: it isn't one of the kind that we issue.
    """
    try:
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return _peer_of_names(san.get_values_for_type(x509.DNSName))
    except (x509.ExtensionNotFound, ValueError) as error:
        raise NotAuthenticated("The certificate names no role of this cluster.") from error


def _peer_of_names(names: Sequence[str]) -> PeerIdentity:
    ours = [name for name in names if name.lower().endswith(_SUFFIX)]
    if len(ours) == 1:
        name, _, role = ours[0].removesuffix(_SUFFIX).rpartition(".")
        if role in {known.value for known in Role} and _NAME.fullmatch(name):
            return PeerIdentity(Role(role), name)
    raise NotAuthenticated("The certificate names no role of this cluster.")


def check_name(name: str) -> str:
    """The name, if a certificate can carry it: lower-case letters, digits, "-" and ".", at most 63.

    :raises InvalidArgument: it can't be one.
    """
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"{name[:80]!r} can't be a name: lower-case letters, digits, '-' and '.', at most 63 characters.",
            "name",
        )
    return name


@dataclass(frozen=True)
class Identity:
    """A certificate of the cluster with its private key and the cluster's CA."""

    role: Role
    name: str
    key_pem: bytes = field(repr=False)
    certificate_pem: bytes = field(repr=False)
    ca_pem: bytes = field(repr=False)

    @classmethod
    def of(cls, key_pem: bytes, certificate_pem: bytes, ca_pem: bytes) -> Self:
        """From its three parts; they must belong together (the key to the certificate, that to the CA).

        :raises InvalidArgument: they don't, or one can't be read.
        """
        try:
            key = serialization.load_pem_private_key(key_pem, password=None)
            certificate = x509.load_pem_x509_certificate(certificate_pem)
            certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(ca_pem))
            peer = peer_of_certificate(certificate)
        except (*_UNREADABLE, NotAuthenticated) as error:
            raise InvalidArgument("Key, certificate and CA don't belong together.", "identity") from error
        if _public_bytes(key.public_key()) != _public_bytes(certificate.public_key()):
            raise InvalidArgument("The private key isn't the certificate's.", "identity")
        return cls(peer.role, peer.name, key_pem, certificate_pem, ca_pem)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Reads key.pem, cert.pem and ca.pem.

        :raises FileNotFound: one is missing.  :raises CannotAccessFile: one can't be read.
        :raises InvalidArgument: they don't belong together.
        """
        parts = (_read(directory / name) for name in (_KEY_FILE, _CERTIFICATE_FILE, _CA_FILE))
        return cls.of(*parts)

    def save(self, directory: Path) -> None:
        """Writes the three files durably, the certificate last: where it is, the others are. Blocking.

        :raises OSError: nothing may be relied on but what was there before.
        """
        _make_private_directory(directory)
        write_durably(directory / _KEY_FILE, self.key_pem, mode=0o600)
        write_durably(directory / _CA_FILE, self.ca_pem, mode=0o600)
        write_durably(directory / _CERTIFICATE_FILE, self.certificate_pem, mode=0o600)

    @staticmethod
    def exists(directory: Path) -> bool:
        """Whether an identity has been saved there."""
        return (directory / _CERTIFICATE_FILE).is_file()

    @staticmethod
    def create_key_and_csr(name: str) -> tuple[bytes, str]:
        """A new EC P-256 private key (PEM) and a certificate request (PEM) for it that says `name`.

        :raises InvalidArgument: the name can't be one.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, check_name(name))])
        csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
        return _private_pem(key), csr.public_bytes(serialization.Encoding.PEM).decode("ascii")

    @property
    def peer(self) -> PeerIdentity:
        return PeerIdentity(self.role, self.name)

    @property
    def not_after(self) -> datetime:
        """When the certificate ends, in UTC."""
        return x509.load_pem_x509_certificate(self.certificate_pem).not_valid_after_utc


def public_key_of_csr(csr_pem: str) -> ec.EllipticCurvePublicKey:
    """The key of a certificate request; everything else in it is ignored.

    :raises InvalidArgument: it isn't a request for an EC P-256 key that its sender holds.
    """
    pem = csr_pem.encode("utf-8", "replace")
    if len(pem) > _MAX_PEM_BYTES:
        raise InvalidArgument("The certificate request is too long.", "csr_pem")
    try:
        csr = x509.load_pem_x509_csr(pem)
        key = csr.public_key()
        valid = csr.is_signature_valid
    except (
        Exception
    ) as error:  # the decoder of untrusted ASN.1 raises several classes; none may pass as a defect
        raise InvalidArgument("The certificate request can't be read.", "csr_pem") from error
    if not valid or not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise InvalidArgument("The certificate request isn't for an EC P-256 key of its sender.", "csr_pem")
    return key


class ClusterAuthority:
    """The cluster's certificate authority. It lives in vpxd; its key never leaves `directory`."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self.certificate = certificate

    @classmethod
    def create(cls, directory: Path, cluster_name: str) -> Self:
        """Makes a new authority and writes it durably, the certificate last. Blocking.

        :raises OSError: the next `create` starts anew.  :raises InvalidArgument: the name is empty or too long.
        """
        if not 1 <= len(cluster_name) <= 64 or not cluster_name.isprintable():
            raise InvalidArgument("A cluster's name has 1 to 64 printable characters.", "cluster_name")
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.COMMON_NAME, cluster_name),
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "vpx"),
                x509.NameAttribute(NameOID.SERIAL_NUMBER, str(uuid.uuid4())),
            ]
        )
        public = key.public_key()
        builder = _certificate_builder(subject, subject, public, _CA_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
        certificate = builder.sign(key, hashes.SHA256())
        _make_private_directory(directory)
        write_durably(directory / _KEY_FILE, _private_pem(key), mode=0o600)
        write_durably(directory / _CA_FILE, certificate.public_bytes(serialization.Encoding.PEM), mode=0o600)
        return cls(key, certificate)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """:raises FileNotFound: there is none.  :raises CannotAccessFile: it can't be read, or isn't one."""
        key_pem, certificate_pem = _read(directory / _KEY_FILE), _read(directory / _CA_FILE)
        try:
            key = serialization.load_pem_private_key(key_pem, password=None)
            certificate = x509.load_pem_x509_certificate(certificate_pem)
        except _UNREADABLE as error:
            raise CannotAccessFile("The cluster's CA can't be read.", str(directory)) from error
        matches = _public_bytes(key.public_key()) == _public_bytes(certificate.public_key())
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not matches:
            raise CannotAccessFile("The cluster's CA and its key don't belong together.", str(directory))
        return cls(key, certificate)

    @classmethod
    def load_or_create(cls, directory: Path, cluster_name: str) -> Self:
        """The authority in the folder, or a new one where its certificate is missing. Raises as those two."""
        return cls.load(directory) if (directory / _CA_FILE).exists() else cls.create(directory, cluster_name)

    @property
    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate's DER, 64 hex digits: what a joining host is given."""
        return fingerprint_of(self.certificate.public_bytes(serialization.Encoding.DER))

    @property
    def cluster_name(self) -> str:
        return str(self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)

    @property
    def cluster_uuid(self) -> str:
        return str(self.certificate.subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER)[0].value)

    def issue(
        self,
        csr_or_public_key: str | ec.EllipticCurvePublicKey,
        role: Role,
        name: str,
        addresses: Sequence[str] = (),
        days: float = CERTIFICATE_DAYS,
    ) -> bytes:
        """A certificate (PEM) for the holder of the key, as client and as server; of a request only the key is used.

        `addresses` ("127.0.1.1", "esx01.lab:8443") are for people and other tools: our channels check the name.

        :raises InvalidArgument: the request, the name or an address can't be one, or an address is a name of ours.
        """
        public_key = csr_or_public_key
        if isinstance(public_key, str):
            public_key = public_key_of_csr(public_key)
        peer = PeerIdentity(role, check_name(name))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, peer.name)])
        names: list[x509.GeneralName] = [x509.DNSName(peer.dns_name)]
        names += dict.fromkeys(_general_name(address) for address in addresses)
        builder = _certificate_builder(subject, self.certificate.subject, public_key, days)
        issuer = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer)
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(authority, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)

    def new_identity(
        self, role: Role, name: str, addresses: Sequence[str] = (), days: float = CERTIFICATE_DAYS
    ) -> Identity:
        """A new key with its certificate: for vpxd itself and the administrator's client. Raises as `issue`."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate_pem = self.issue(key.public_key(), role, name, addresses, days)
        return Identity(role, name, _private_pem(key), certificate_pem, self.certificate_pem)


def fingerprint_of(certificate_der: bytes) -> str:
    """SHA-256 of a certificate, 64 hex digits."""
    return hashlib.sha256(certificate_der).hexdigest()


def same_fingerprint(one: str, other: str) -> bool:
    """Whether two fingerprints are the same, with or without colons, in upper or lower case."""
    plain = [text.strip().replace(":", "").lower().encode("utf-8", "replace") for text in (one, other)]
    return len(plain[0]) == 64 and hmac.compare_digest(plain[0], plain[1])


def _certificate_builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, days: float
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(address: str) -> x509.GeneralName:
    host = _host_part(address)
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not _NAME.fullmatch(host.lower()) or host.lower().endswith(_SUFFIX):
        raise InvalidArgument(f"{address[:80]!r} can't be an address in a certificate.", "address")
    return x509.DNSName(host.lower())


def _host_part(address: str) -> str:
    """The host of "host:port", "[v6]:port" or "host"."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.rpartition(":")[0] if address.count(":") == 1 else address


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _public_bytes(key: object) -> bytes:
    assert hasattr(key, "public_bytes")
    encoded: bytes = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded


def _read(path: Path) -> bytes:
    return read_bounded(path, _MAX_PEM_BYTES)


def _make_private_directory(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
