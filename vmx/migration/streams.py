"""Both ends of a migration's stream, as its order and its ticket say."""

import secrets

from vmx.migration.order import MigrationOrder, Ticket, Verification
from vmx.stream import ReceiverSpec, StreamSecret, StreamSpec
from vmx.stream.spec import Encryption

_TOKEN_BYTES = 32


def new_token() -> bytes:
    """A one-time token."""
    return secrets.token_bytes(_TOKEN_BYTES)


def source_spec(order: MigrationOrder, ticket: Ticket) -> StreamSpec:
    """The source's end."""
    options = order.options
    return StreamSpec(
        secret=StreamSecret(order.migration_id, order.key, ticket.token),
        source_address=order.source.vmotion_address,
        destination_address=ticket.address,
        port=ticket.port,
        ram_bytes=order.ram_bytes,
        channel_count=options.streams if order.ram_bytes else 0,
        encryption=_encryption(order),
        bandwidth_bytes_per_s=options.bandwidth_bytes_per_s,
        timeouts=options.timeouts,
        disks=order.disks,
    )


def destination_spec(order: MigrationOrder, token: bytes) -> ReceiverSpec:
    """The destination's end."""
    options = order.options
    return ReceiverSpec(
        secret=StreamSecret(order.migration_id, order.key, token),
        listen_address=order.destination.vmotion_address,
        source_addresses=(order.source.vmotion_address,),
        channel_count=options.streams if order.ram_bytes else 0,
        encryption=_encryption(order),
        keep_digests=options.verification is not Verification.OFF,
        timeouts=options.timeouts,
        disks=order.disks,
    )


def _encryption(order: MigrationOrder) -> Encryption:
    return Encryption.AES_256_GCM if order.options.encrypted else Encryption.DISABLED
