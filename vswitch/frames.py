"""Pure: no I/O, no clock, no logging. Ethernet frames, and VXLAN around them (RFC 7348, section 5).

      0                   1                   2                   3
     |R R R R I R R R|             reserved                          |     I = 1: the VNI counts
     |             VNI (segment id, 24 bits)         |   reserved    |     then the whole Ethernet frame, without FCS

Reserved bits are sent as zero and ignored when received, as the RFC says.
"""

ETHERNET_HEADER_BYTES = 14
VXLAN_HEADER_BYTES = 8
VXLAN_PORT = 4789
VNI_MAX = (1 << 24) - 1
# What fits into one UDP datagram over IPv4 together with the header.
FRAME_MAX_BYTES = 65507 - VXLAN_HEADER_BYTES
_VNI_IS_VALID = 0x08


def vxlan_header(vni: int) -> bytes:
    """The eight bytes before every frame of this segment."""
    return bytes((_VNI_IS_VALID, 0, 0, 0)) + vni.to_bytes(3, "big") + b"\0"


def vni_of(datagram: bytes) -> int | None:
    """The segment of a VXLAN datagram; None: it is none."""
    if len(datagram) < VXLAN_HEADER_BYTES or not datagram[0] & _VNI_IS_VALID:
        return None
    return int.from_bytes(datagram[4:7], "big")


def is_acceptable(frame: bytes) -> bool:
    """Whether it can be a frame that a station sent: long enough, not too long, from one station's address."""
    return (
        ETHERNET_HEADER_BYTES <= len(frame) <= FRAME_MAX_BYTES
        and not frame[6] & 1
        and frame[6:12] != b"\0\0\0\0\0\0"
    )


def mac_text(mac: bytes) -> str:
    """ "02:00:00:00:00:01"."""
    return mac.hex(":")
