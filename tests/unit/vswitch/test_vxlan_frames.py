"""Ethernet and VXLAN as bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vswitch.frames import FRAME_MAX_BYTES, VNI_MAX, is_acceptable, mac_text, vni_of, vxlan_header


def test_header_is_the_rfc_bytes() -> None:
    assert vxlan_header(0x123456) == bytes.fromhex("0800000012345600")


@given(st.integers(1, VNI_MAX), st.binary(max_size=64))
def test_segment_is_read_back(vni: int, frame: bytes) -> None:
    assert vni_of(vxlan_header(vni) + frame) == vni


@pytest.mark.parametrize("datagram", [b"", b"\x08" * 7, bytes(8), b"\xf7" + bytes(7)])
def test_datagram_without_a_segment_is_none(datagram: bytes) -> None:
    assert vni_of(datagram) is None


def test_reserved_bits_are_ignored() -> None:
    assert vni_of(b"\xff\xff\xff\xff\0\0\x64\xff") == 100


@pytest.mark.parametrize(
    ("frame", "acceptable"),
    [
        (b"\xff" * 6 + b"\x02" * 6 + b"\x08\0", True),
        (b"\xff" * 6 + b"\x02" * 6 + b"\x08", False),
        (b"\xff" * 6 + b"\x03" * 6 + b"\x08\0", False),
        (b"\xff" * 6 + bytes(6) + b"\x08\0", False),
        (b"\xff" * 6 + b"\x02" * 6 + bytes(FRAME_MAX_BYTES - 12), True),
        (b"\xff" * 6 + b"\x02" * 6 + bytes(FRAME_MAX_BYTES - 11), False),
    ],
)
def test_frame_is_judged_by_its_length_and_sender(frame: bytes, acceptable: bool) -> None:
    assert is_acceptable(frame) is acceptable


def test_mac_is_told_with_colons() -> None:
    assert mac_text(b"\x02\0\0\0\0\x0a") == "02:00:00:00:00:0a"
