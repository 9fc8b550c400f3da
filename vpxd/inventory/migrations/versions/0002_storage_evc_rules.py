"""EVC modes, datastore tags, networks' segments, storage policies, affinity rules, the terms of migrations."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("cluster", sa.Column("evc_mode", sa.String(length=40), server_default="", nullable=False))
    op.add_column("datastore", sa.Column("tags", sa.Text(), server_default="[]", nullable=False))
    op.add_column("network", sa.Column("segment_id", sa.Integer(), server_default="0", nullable=False))
    op.add_column("migration", sa.Column("files", sa.Boolean(), server_default="0", nullable=False))
    op.add_column("migration", sa.Column("canceling", sa.Boolean(), server_default="0", nullable=False))
    op.add_column("migration", sa.Column("terms", sa.Text(), server_default="{}", nullable=False))
    op.create_table(
        "storage_policy",
        sa.Column("name", sa.String(length=80), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("requirements", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_storage_policy")),
    )
    op.create_table(
        "vm_policies",
        sa.Column("vm", sa.String(length=32), nullable=False),
        sa.Column("home", sa.String(length=80), nullable=False),
        sa.Column("disks", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("vm", name=op.f("pk_vm_policies")),
    )
    op.create_table(
        "affinity_rule",
        sa.Column("key", sa.String(length=120), nullable=False),
        sa.Column("cluster", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=80), nullable=False),
        sa.Column("kind", sa.Integer(), nullable=False),
        sa.Column("vms", sa.Text(), nullable=False),
        sa.Column("hosts", sa.Text(), nullable=False),
        sa.Column("mandatory", sa.Boolean(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_affinity_rule")),
    )


def downgrade() -> None:
    op.drop_table("affinity_rule")
    op.drop_table("vm_policies")
    op.drop_table("storage_policy")
    op.drop_column("migration", "terms")
    op.drop_column("migration", "canceling")
    op.drop_column("migration", "files")
    op.drop_column("network", "segment_id")
    op.drop_column("datastore", "tags")
    op.drop_column("cluster", "evc_mode")
