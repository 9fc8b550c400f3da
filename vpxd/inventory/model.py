"""The database's tables. The schema's history is vpxd/inventory/migrations; a test compares the two.

Times are UTC without a zone (SQLite has none). Faults and migration statuses are kept as the serialized messages.
"""

from datetime import datetime

from sqlalchemy import ForeignKey, Index, LargeBinary, MetaData
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import BigInteger, String, Text


class Base(DeclarativeBase):
    """Base of all tables; constraints have names so that later revisions can change them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class CounterRow(Base):
    """The last number given out, by counter; see vpxd/inventory/ids.py."""

    __tablename__ = "counter"
    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    last: Mapped[int] = mapped_column(BigInteger)


class DatacenterRow(Base):
    __tablename__ = "datacenter"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(80), unique=True)


class ClusterRow(Base):
    __tablename__ = "cluster"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(80), unique=True)
    datacenter: Mapped[str] = mapped_column(ForeignKey("datacenter.id"))
    evc_mode: Mapped[str] = mapped_column(String(40), server_default="")


class HostRow(Base):
    __tablename__ = "host"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(80), unique=True)
    cluster: Mapped[str] = mapped_column(ForeignKey("cluster.id"))
    address: Mapped[str] = mapped_column(String(300))
    info: Mapped[str] = mapped_column(Text)


class DatastoreRow(Base):
    __tablename__ = "datastore"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(300))
    uuid: Mapped[str] = mapped_column(String(64), unique=True)
    capacity_bytes: Mapped[int] = mapped_column(BigInteger)
    tags: Mapped[str] = mapped_column(Text, server_default="[]")


class NetworkRow(Base):
    __tablename__ = "network"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(80), unique=True)
    segment_id: Mapped[int] = mapped_column(server_default="0")


class VmRow(Base):
    """`host` is empty for an orphan, so it is no foreign key."""

    __tablename__ = "vm"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    uuid: Mapped[str] = mapped_column(String(64), unique=True)
    name: Mapped[str] = mapped_column(String(300), index=True)
    host: Mapped[str] = mapped_column(String(32), index=True)
    home: Mapped[str] = mapped_column(Text)
    power_state: Mapped[str] = mapped_column(String(16))
    failure: Mapped[str] = mapped_column(Text)
    config: Mapped[str] = mapped_column(Text)


class EnrollmentRow(Base):
    __tablename__ = "enrollment"
    host_name: Mapped[str] = mapped_column(String(80), primary_key=True)
    address: Mapped[str] = mapped_column(String(300))
    joined_at: Mapped[datetime]


class JoinTokenRow(Base):
    __tablename__ = "join_token"
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    host_name: Mapped[str] = mapped_column(String(80))
    expires_at: Mapped[datetime]
    used: Mapped[bool]


class MigrationRow(Base):
    """The journal of migrations under way. The migration's id is 63 bits wide; `terms` is JSON."""

    __tablename__ = "migration"
    task: Mapped[str] = mapped_column(String(32), primary_key=True)
    migration_id: Mapped[int] = mapped_column(BigInteger)
    vm: Mapped[str] = mapped_column(String(32))
    source: Mapped[str] = mapped_column(String(32))
    destination: Mapped[str] = mapped_column(String(32))
    live: Mapped[bool]
    completing: Mapped[bool]
    files: Mapped[bool] = mapped_column(server_default="0")
    canceling: Mapped[bool] = mapped_column(server_default="0")
    terms: Mapped[str] = mapped_column(Text, server_default="{}")


class StoragePolicyRow(Base):
    """`requirements` is JSON: everything but the name and the description."""

    __tablename__ = "storage_policy"
    name: Mapped[str] = mapped_column(String(80), primary_key=True)
    description: Mapped[str] = mapped_column(Text)
    requirements: Mapped[str] = mapped_column(Text)


class VmPoliciesRow(Base):
    """`disks` is JSON: policies by the disk's key."""

    __tablename__ = "vm_policies"
    vm: Mapped[str] = mapped_column(String(32), primary_key=True)
    home: Mapped[str] = mapped_column(String(80))
    disks: Mapped[str] = mapped_column(Text)


class AffinityRuleRow(Base):
    """`key` is "cluster/name"; `vms` and `hosts` are JSON lists of ids."""

    __tablename__ = "affinity_rule"
    key: Mapped[str] = mapped_column(String(120), primary_key=True)
    cluster: Mapped[str] = mapped_column(String(32))
    name: Mapped[str] = mapped_column(String(80))
    kind: Mapped[int]
    vms: Mapped[str] = mapped_column(Text)
    hosts: Mapped[str] = mapped_column(Text)
    mandatory: Mapped[bool]
    enabled: Mapped[bool]


class TaskRow(Base):
    """`number` is the number in the id: it sorts."""

    __tablename__ = "task"
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    operation: Mapped[str] = mapped_column(String(80))
    entity: Mapped[str] = mapped_column(String(32), index=True)
    entity_name: Mapped[str] = mapped_column(String(300))
    user: Mapped[str] = mapped_column(String(300))
    operation_id: Mapped[str] = mapped_column(String(128))
    state: Mapped[str] = mapped_column(String(16), index=True)
    progress_percent: Mapped[int]
    description: Mapped[str] = mapped_column(Text)
    cancel_requested: Mapped[bool]
    queue_time: Mapped[datetime]
    start_time: Mapped[datetime | None]
    complete_time: Mapped[datetime | None]
    error: Mapped[bytes] = mapped_column(LargeBinary)
    result: Mapped[str] = mapped_column(String(300))
    migration: Mapped[bytes] = mapped_column(LargeBinary)


class EventRow(Base):
    __tablename__ = "event"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    time: Mapped[datetime]
    type: Mapped[str] = mapped_column(String(80))
    severity: Mapped[str] = mapped_column(String(16))
    message: Mapped[str] = mapped_column(Text)
    entity: Mapped[str] = mapped_column(String(32))
    entity_name: Mapped[str] = mapped_column(String(300))
    task: Mapped[str] = mapped_column(String(32))
    __table_args__ = (Index("ix_event_entity_id", "entity", "id"),)
