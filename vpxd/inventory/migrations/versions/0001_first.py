"""The first schema: inventory, join tokens, journal of migrations, tasks, events."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _create_containers()
    _create_vms_and_trust()
    _create_logs()


def downgrade() -> None:
    op.drop_table("host")
    op.drop_table("cluster")
    op.drop_index(op.f("ix_vm_name"), table_name="vm")
    op.drop_index(op.f("ix_vm_host"), table_name="vm")
    op.drop_table("vm")
    op.drop_index(op.f("ix_task_state"), table_name="task")
    op.drop_index(op.f("ix_task_entity"), table_name="task")
    op.drop_table("task")
    op.drop_table("network")
    op.drop_table("migration")
    op.drop_table("join_token")
    op.drop_index("ix_event_entity_id", table_name="event")
    op.drop_table("event")
    op.drop_table("enrollment")
    op.drop_table("datastore")
    op.drop_table("datacenter")
    op.drop_table("counter")


def _create_containers() -> None:
    op.create_table(
        "counter",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_counter")),
    )
    op.create_table(
        "datacenter",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=80), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_datacenter")),
        sa.UniqueConstraint("name", name=op.f("uq_datacenter_name")),
    )
    op.create_table(
        "cluster",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=80), nullable=False),
        sa.Column("datacenter", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(
            ["datacenter"], ["datacenter.id"], name=op.f("fk_cluster_datacenter_datacenter")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cluster")),
        sa.UniqueConstraint("name", name=op.f("uq_cluster_name")),
    )
    op.create_table(
        "host",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=80), nullable=False),
        sa.Column("cluster", sa.String(length=32), nullable=False),
        sa.Column("address", sa.String(length=300), nullable=False),
        sa.Column("info", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["cluster"], ["cluster.id"], name=op.f("fk_host_cluster_cluster")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_host")),
        sa.UniqueConstraint("name", name=op.f("uq_host_name")),
    )
    op.create_table(
        "datastore",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=300), nullable=False),
        sa.Column("uuid", sa.String(length=64), nullable=False),
        sa.Column("capacity_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_datastore")),
        sa.UniqueConstraint("uuid", name=op.f("uq_datastore_uuid")),
    )
    op.create_table(
        "network",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=80), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_network")),
        sa.UniqueConstraint("name", name=op.f("uq_network_name")),
    )


def _create_vms_and_trust() -> None:
    op.create_table(
        "vm",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("uuid", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=300), nullable=False),
        sa.Column("host", sa.String(length=32), nullable=False),
        sa.Column("home", sa.Text(), nullable=False),
        sa.Column("power_state", sa.String(length=16), nullable=False),
        sa.Column("failure", sa.Text(), nullable=False),
        sa.Column("config", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_vm")),
        sa.UniqueConstraint("uuid", name=op.f("uq_vm_uuid")),
    )
    op.create_index(op.f("ix_vm_host"), "vm", ["host"], unique=False)
    op.create_index(op.f("ix_vm_name"), "vm", ["name"], unique=False)
    op.create_table(
        "enrollment",
        sa.Column("host_name", sa.String(length=80), nullable=False),
        sa.Column("address", sa.String(length=300), nullable=False),
        sa.Column("joined_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("host_name", name=op.f("pk_enrollment")),
    )
    op.create_table(
        "join_token",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("host_name", sa.String(length=80), nullable=False),
        sa.Column("expires_at", sa.DateTime(), nullable=False),
        sa.Column("used", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_join_token")),
    )
    op.create_table(
        "migration",
        sa.Column("task", sa.String(length=32), nullable=False),
        sa.Column("migration_id", sa.BigInteger(), nullable=False),
        sa.Column("vm", sa.String(length=32), nullable=False),
        sa.Column("source", sa.String(length=32), nullable=False),
        sa.Column("destination", sa.String(length=32), nullable=False),
        sa.Column("live", sa.Boolean(), nullable=False),
        sa.Column("completing", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("task", name=op.f("pk_migration")),
    )


def _create_logs() -> None:
    op.create_table(
        "task",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("operation", sa.String(length=80), nullable=False),
        sa.Column("entity", sa.String(length=32), nullable=False),
        sa.Column("entity_name", sa.String(length=300), nullable=False),
        sa.Column("user", sa.String(length=300), nullable=False),
        sa.Column("operation_id", sa.String(length=128), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("progress_percent", sa.Integer(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("queue_time", sa.DateTime(), nullable=False),
        sa.Column("start_time", sa.DateTime(), nullable=True),
        sa.Column("complete_time", sa.DateTime(), nullable=True),
        sa.Column("error", sa.LargeBinary(), nullable=False),
        sa.Column("result", sa.String(length=300), nullable=False),
        sa.Column("migration", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_task")),
    )
    op.create_index(op.f("ix_task_entity"), "task", ["entity"], unique=False)
    op.create_index(op.f("ix_task_state"), "task", ["state"], unique=False)
    op.create_table(
        "event",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("time", sa.DateTime(), nullable=False),
        sa.Column("type", sa.String(length=80), nullable=False),
        sa.Column("severity", sa.String(length=16), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("entity", sa.String(length=32), nullable=False),
        sa.Column("entity_name", sa.String(length=300), nullable=False),
        sa.Column("task", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event")),
    )
    op.create_index("ix_event_entity_id", "event", ["entity", "id"], unique=False)
