"""Join tokens: 32 random bytes that let one named host join once, until they expire. Only their sha256 is kept."""

import hashlib
import hmac
import secrets
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from runtime.faults import DuplicateName, InvalidArgument, InvalidJoinToken
from runtime.rpc.identity import ClusterAuthority, Role, check_name
from vpxd.events.event import EventDraft, EventType
from vpxd.inventory.names import require_address, require_host_name
from vpxd.inventory.records import Enrollment, JoinToken
from vpxd.inventory.store import InventoryStore

TOKEN_BYTES = 32
DEFAULT_VALID_S = 3_600
MAX_VALID_S = 7 * 24 * 3_600
MAX_TOKEN_CHARS = 200
HOST_CERTIFICATE_DAYS = 5 * 365


class EnrollmentDesk:
    """Gives tokens out and takes them in."""

    def __init__(self, store: InventoryStore, authority: ClusterAuthority) -> None:
        self._store = store
        self._authority = authority

    @property
    def ca_fingerprint(self) -> str:
        """sha256 of the CA's certificate, hex."""
        return self._authority.fingerprint

    async def create_token(self, host_name: str, valid_s: int) -> str:
        """A new token for one host. Tokens that have expired are forgotten on the way.

        :raises InvalidArgument: the name can't be one, or the token would be valid for too long.
        :raises DuplicateName: the host is in the inventory already.
        """
        check_name(require_host_name(host_name, "host_name"))
        if valid_s > MAX_VALID_S:
            raise InvalidArgument(f"a token is valid for at most {MAX_VALID_S} s", argument="valid_s")
        inventory = self._store.inventory
        if any(host.name == host_name for host in inventory.hosts.values()):
            raise DuplicateName(f"{host_name} is in the cluster already", kind="host", name=host_name)
        # Hex: words that begin with "-" or need quotes would be mistaken on the joining host's command line.
        token, now = secrets.token_hex(TOKEN_BYTES), datetime.now(UTC)
        record = JoinToken(_digest(token), host_name, now + timedelta(seconds=valid_s or DEFAULT_VALID_S))
        async with self._store.transaction() as transaction:
            for old in list(inventory.join_tokens.values()):
                if old.expires_at <= now:
                    transaction.delete(old)
            transaction.put(record)
        return token

    async def enroll(self, token: str, host_name: str, csr_pem: str, address: str) -> tuple[bytes, bytes]:
        """Signs the host's request; answers its certificate and the CA's, both PEM. The token is used up by
        success only.

        :raises InvalidJoinToken: unknown, used, expired or another host's; it isn't told which.
        :raises InvalidArgument: the request or the address can't be one.
        """
        async with self._store.transaction() as transaction:
            # Everything inside the transaction: two hosts that present one token at once come here one after the other.
            record = self._require_token(token, host_name)
            require_address(address, "management_address")
            certificate = self._authority.issue(
                csr_pem, Role.HOST, host_name, (address,), days=HOST_CERTIFICATE_DAYS
            )
            transaction.put(replace(record, used=True))
            transaction.put(Enrollment(host_name, address, datetime.now(UTC)))
            text = f"{host_name} joined; its vpxa will listen on {address}"
            transaction.emit(EventDraft(EventType.HOST_JOINED, text, entity_name=host_name))
        return certificate, self._authority.certificate_pem

    def _require_token(self, token: str, host_name: str) -> JoinToken:
        digest = _digest(token) if len(token) <= MAX_TOKEN_CHARS else ""
        record = self._store.inventory.join_tokens.get(digest)
        if (
            record is None
            or record.used
            or record.expires_at <= datetime.now(UTC)
            or not hmac.compare_digest(record.host_name.encode(), host_name.encode("utf-8", "replace"))
        ):
            raise InvalidJoinToken("the join token isn't valid", host=host_name[:80])
        return record


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
