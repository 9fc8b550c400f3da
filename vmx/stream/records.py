"""Records: how a channel's bytes are sealed, one direction at a time (PROTOCOL.md, "Records").

A header and a body are one record each. A record's number is its nonce and is never sent: a record that was dropped,
repeated, moved or changed does not open. Without a key (encryption explicitly off) a record is its plain bytes.
"""

from struct import Struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vmx.stream.errors import RecordForged

TAG_BYTES: Final = 16
_NONCE: Final = Struct("<IQ")

Writable = bytearray | memoryview
Readable = bytes | bytearray | memoryview


class _Direction:
    """One direction of one channel: its key and the number of the next record."""

    def __init__(self, channel_index: int, key: bytes | None) -> None:
        self.channel_index = channel_index
        self.overhead_bytes = TAG_BYTES if key is not None else 0
        self._cipher = AESGCM(key) if key is not None else None
        self._number = 0

    @property
    def encrypts(self) -> bool:
        """False only where the migration was explicitly asked to go in the clear."""
        return self._cipher is not None

    def _next_nonce(self) -> bytes:
        # 2**64 records can't be reached; each key seals one direction of one channel of one migration.
        nonce = _NONCE.pack(0, self._number)
        self._number += 1
        return nonce


class Sealer(_Direction):
    """The sending half."""

    def seal_into(self, plain: Readable | memoryview, sealed: Writable) -> None:
        """Seal one record. `sealed` has exactly the length of `plain` plus `overhead_bytes`.

        `plain` may be live guest RAM. AES-GCM encrypts in counter mode and its tag covers the *ciphertext*, so a
        guest that writes the page meanwhile yields some mixture of old and new bytes under a valid tag, just as a copy
        taken at that moment would; the tracer, which was armed before, has the page sent again. No private copy is
        needed. An implementation that read its input twice could only make the tag not fit: a loud failure.
        """
        nonce = self._next_nonce()
        if self._cipher is None:
            sealed[:] = plain
        else:
            self._cipher.encrypt_into(nonce, plain, None, sealed)


class Opener(_Direction):
    """The receiving half."""

    def open_into(self, sealed: Readable, plain: Writable) -> None:
        """Open one record. `plain` has exactly the length of `sealed` less `overhead_bytes`.

        :raises RecordForged: the tag does not fit; what `plain` holds then means nothing.
        """
        nonce = self._next_nonce()
        if self._cipher is None:
            plain[:] = sealed
            return
        try:
            self._cipher.decrypt_into(nonce, sealed, None, plain)
        except InvalidTag:
            raise RecordForged(self.channel_index, self._number - 1) from None
