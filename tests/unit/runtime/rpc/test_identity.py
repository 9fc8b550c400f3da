"""Certificates: what is issued, who it names, and what no one can be given."""

import stat
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from runtime.faults import CannotAccessFile, FileNotFound, InvalidArgument, NotAuthenticated
from runtime.rpc.identity import (
    ClusterAuthority,
    Identity,
    PeerIdentity,
    Role,
    check_name,
    peer_of,
    peer_of_certificate,
    public_key_of_csr,
    same_fingerprint,
)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> ClusterAuthority:
    return ClusterAuthority.create(tmp_path_factory.mktemp("pki") / "ca", "lab")


class _FakeContext:
    def __init__(self, *names: str) -> None:
        self._names = [name.encode() for name in names]

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return {"x509_subject_alternative_name": self._names}


@pytest.mark.parametrize("purpose", ["sslclient", "sslserver"])
def test_issued_certificate_is_accepted_by_openssl(
    authority: ClusterAuthority, tmp_path: Path, purpose: str
) -> None:
    identity = authority.new_identity(Role.HOST, "esx01", ["127.0.1.1:8443", "esx01.lab", "[::1]:8443"])
    identity.save(tmp_path)
    command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-verify_hostname", "esx01.host.vpx"]
    command += ["-verify_ip", "127.0.1.1", "-CAfile", str(tmp_path / "ca.pem"), str(tmp_path / "cert.pem")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 0, done.stderr


def test_authority_survives_a_restart_and_keeps_its_key_private(tmp_path: Path) -> None:
    made = ClusterAuthority.load_or_create(tmp_path / "ca", "lab")
    again = ClusterAuthority.load_or_create(tmp_path / "ca", "other")
    assert (again.fingerprint, again.cluster_name, again.cluster_uuid) == (
        made.fingerprint,
        "lab",
        made.cluster_uuid,
    )
    assert stat.S_IMODE((tmp_path / "ca").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "ca" / "key.pem").stat().st_mode) == 0o600


def test_authority_load_refuses_what_isnt_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFound):
        ClusterAuthority.load(tmp_path)
    ClusterAuthority.create(tmp_path / "a", "a")
    ClusterAuthority.create(tmp_path / "b", "b")
    (tmp_path / "a" / "key.pem").write_bytes((tmp_path / "b" / "key.pem").read_bytes())
    with pytest.raises(CannotAccessFile):
        ClusterAuthority.load(tmp_path / "a")
    (tmp_path / "b" / "ca.pem").write_bytes(b"garbage")
    with pytest.raises(CannotAccessFile):
        ClusterAuthority.load(tmp_path / "b")


def test_serials_differ_and_validity_starts_in_the_past(authority: ClusterAuthority) -> None:
    one, other = (
        x509.load_pem_x509_certificate(authority.new_identity(Role.CLIENT, "admin").certificate_pem)
        for _ in range(2)
    )
    assert one.serial_number != other.serial_number
    assert (one.not_valid_after_utc - one.not_valid_before_utc).total_seconds() == 365 * 86400 + 300


def test_identity_saved_and_loaded_is_the_same(authority: ClusterAuthority, tmp_path: Path) -> None:
    identity = authority.new_identity(Role.HOST, "esx01")
    assert not Identity.exists(tmp_path / "identity")
    identity.save(tmp_path / "identity")
    assert Identity.exists(tmp_path / "identity")
    assert Identity.load(tmp_path / "identity") == identity
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "identity").iterdir()}
    assert modes == {0o600}
    assert "PRIVATE" not in repr(identity)


def test_identity_of_mismatched_parts_is_refused(authority: ClusterAuthority, tmp_path: Path) -> None:
    one, other = authority.new_identity(Role.HOST, "esx01"), authority.new_identity(Role.HOST, "esx02")
    foreign = ClusterAuthority.create(tmp_path, "foreign").certificate_pem
    for key, certificate, ca in (
        (other.key_pem, one.certificate_pem, one.ca_pem),
        (one.key_pem, one.certificate_pem, foreign),
        (b"", one.certificate_pem, one.ca_pem),
        (one.key_pem, b"-----BEGIN CERTIFICATE-----\n", one.ca_pem),
    ):
        with pytest.raises(InvalidArgument):
            Identity.of(key, certificate, ca)


def test_certificate_from_a_request_carries_only_its_key(authority: ClusterAuthority) -> None:
    key_pem, csr_pem = Identity.create_key_and_csr("vpxd")  # the name in the request doesn't count
    certificate_pem = authority.issue(csr_pem, Role.HOST, "esx07", ["127.0.1.7:8443"])
    identity = Identity.of(key_pem, certificate_pem, authority.certificate_pem)
    assert identity.peer == PeerIdentity(Role.HOST, "esx07")


@pytest.mark.parametrize("address", ["vpxd.vpxd.vpx:7443", "VPXD.VPXD.VPX", "*.lab", "", "a b", "x.vpx"])
def test_address_that_could_grant_a_role_is_refused(authority: ClusterAuthority, address: str) -> None:
    _, csr_pem = Identity.create_key_and_csr("esx01")
    with pytest.raises(InvalidArgument):
        authority.issue(csr_pem, Role.HOST, "esx01", [address])


@pytest.mark.parametrize(
    "name", ["", "ESX01", "a b", "-a", "a-", ".a", "a..b", "a.", "ä", "x" * 64, "a\n", "*"]
)
def test_name_that_a_certificate_cant_carry_is_refused(authority: ClusterAuthority, name: str) -> None:
    with pytest.raises(InvalidArgument):
        authority.new_identity(Role.HOST, name)
    with pytest.raises(InvalidArgument):
        Identity.create_key_and_csr(name)


@pytest.mark.parametrize("name", ["esx01", "esx01.lab.example", "x.vpxd", "7"])
def test_name_comes_back_with_the_role_it_was_issued_for(authority: ClusterAuthority, name: str) -> None:
    assert check_name(name) == name
    identity = authority.new_identity(Role.HOST, name)
    certificate = x509.load_pem_x509_certificate(identity.certificate_pem)
    assert peer_of_certificate(certificate) == PeerIdentity(Role.HOST, name)


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("esx01",),
        ("esx01.admin.vpx",),
        ("host.vpx",),
        (".host.vpx",),
        ("esx01.host.vpx", "vpxd.vpxd.vpx"),
        ("ESX01.HOST.VPX",),
    ],
)
def test_peer_without_exactly_one_role_isnt_authenticated(names: tuple[str, ...]) -> None:
    with pytest.raises(NotAuthenticated):
        peer_of(_FakeContext(*names))


def test_peer_of_reads_role_and_name_beside_addresses() -> None:
    context = _FakeContext("127.0.1.1", "esx01.lab", "esx01.host.vpx")
    assert peer_of(context) == PeerIdentity(Role.HOST, "esx01")


def test_request_for_another_kind_of_key_is_refused() -> None:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "esx01")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    keys = (ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048))
    for key in keys:
        pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
        with pytest.raises(InvalidArgument):
            public_key_of_csr(pem)


def test_request_whose_sender_doesnt_hold_the_key_is_refused() -> None:
    _, csr_pem = Identity.create_key_and_csr("esx01")
    der = bytearray(x509.load_pem_x509_csr(csr_pem.encode()).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1  # the signature
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM).decode()
    with pytest.raises(InvalidArgument):
        public_key_of_csr(forged)


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda b: b.decode("latin-1")))
def test_garbage_request_is_refused(text: str) -> None:
    for pem in (text, f"-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n"):
        with pytest.raises(InvalidArgument):
            public_key_of_csr(pem)


def test_fingerprints_compare_in_every_usual_spelling(authority: ClusterAuthority) -> None:
    plain = authority.fingerprint
    spelled = ":".join(plain[i : i + 2] for i in range(0, 64, 2)).upper()
    assert same_fingerprint(plain, spelled)
    assert not same_fingerprint(plain, plain[:-1] + ("0" if plain[-1] != "0" else "1"))
    assert not same_fingerprint("", "")
    assert not same_fingerprint(plain[:8], plain[:8])
