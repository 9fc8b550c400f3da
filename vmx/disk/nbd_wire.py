"""Pure: no I/O, no clock, no logging. The NBD protocol's numbers and messages, for vmx's small server and client.

Source: doc/proto.md of the NetworkBlockDevice project (https://github.com/NetworkBlockDevice/nbd). Fixed newstyle
negotiation only. Everything is big-endian.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

INIT_MAGIC: Final = 0x4E42444D41474943  # "NBDMAGIC"
OPTION_MAGIC: Final = 0x49484156454F5054  # "IHAVEOPT"
OPTION_REPLY_MAGIC: Final = 0x3E889045565A9
REQUEST_MAGIC: Final = 0x25609513
SIMPLE_REPLY_MAGIC: Final = 0x67446698
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF

# Handshake flags of the server, and the client's with the same numbers.
FLAG_FIXED_NEWSTYLE: Final = 1 << 0
FLAG_NO_ZEROES: Final = 1 << 1

# Transmission flags.
FLAG_HAS_FLAGS: Final = 1 << 0
FLAG_SEND_FLUSH: Final = 1 << 2
FLAG_SEND_FUA: Final = 1 << 3
FLAG_SEND_TRIM: Final = 1 << 5
FLAG_SEND_WRITE_ZEROES: Final = 1 << 6

# Command flags.
CMD_FLAG_FUA: Final = 1 << 0
CMD_FLAG_NO_HOLE: Final = 1 << 1
CMD_FLAG_REQ_ONE: Final = 1 << 3

REP_FLAG_ERROR: Final = 1 << 31
REP_ACK: Final = 1
REP_INFO: Final = 3
REP_META_CONTEXT: Final = 4
REP_ERR_UNSUP: Final = REP_FLAG_ERROR | 1
REP_ERR_INVALID: Final = REP_FLAG_ERROR | 3
REP_ERR_UNKNOWN: Final = REP_FLAG_ERROR | 6

INFO_EXPORT: Final = 0
INFO_BLOCK_SIZE: Final = 3

# Types of chunks in a structured reply.
REPLY_FLAG_DONE: Final = 1 << 0
REPLY_NONE: Final = 0
REPLY_OFFSET_DATA: Final = 1
REPLY_OFFSET_HOLE: Final = 2
REPLY_BLOCK_STATUS: Final = 5
REPLY_ERROR_BIT: Final = 1 << 15

BASE_ALLOCATION: Final = b"base:allocation"
STATE_ZERO: Final = 1 << 1

NAME_BYTES_MAX: Final = 4096
# The longest option that either side takes: a name and some numbers.
OPTION_BYTES_MAX: Final = NAME_BYTES_MAX + 1024

SERVER_HELLO: Final = struct.Struct(">QQH")
CLIENT_FLAGS: Final = struct.Struct(">I")
OPTION: Final = struct.Struct(">QII")
OPTION_REPLY: Final = struct.Struct(">QIII")
EXPORT: Final = struct.Struct(">QH")
INFO_EXPORT_DATA: Final = struct.Struct(">HQH")
INFO_BLOCK_SIZE_DATA: Final = struct.Struct(">HIII")
REQUEST: Final = struct.Struct(">IHHQQI")
SIMPLE_REPLY: Final = struct.Struct(">IIQ")
STRUCTURED_REPLY: Final = struct.Struct(">IHHQI")
STATUS_DESCRIPTOR: Final = struct.Struct(">II")
U16: Final = struct.Struct(">H")
U32: Final = struct.Struct(">I")
U64: Final = struct.Struct(">Q")


class Option(IntEnum):
    """What a client may ask for while it negotiates."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    SET_META_CONTEXT = 10


class Command(IntEnum):
    """What a client may ask for afterwards."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class ReplyError(IntEnum):
    """Errors of a reply; the numbers are the protocol's, most of them Linux's errno."""

    NONE = 0
    EPERM = 1
    EIO = 5
    EINVAL = 22
    ENOSPC = 28
    ENOTSUP = 95
    ESHUTDOWN = 108
