"""Places in the queue, memory that runs reserve, silent programs, GPUs, and where a run comes from."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("place", sa.Integer(), nullable=True))
    op.add_column("runs", sa.Column("reserved_bytes", sa.BigInteger(), nullable=True))
    op.add_column("runs", sa.Column("silent_since", sa.DateTime(timezone=True), nullable=True))
    op.add_column("runs", sa.Column("origin", sa.JSON(), nullable=True))
    op.add_column("attempts", sa.Column("gpu", sa.Integer(), nullable=True))


def downgrade() -> None:
    op.drop_column("attempts", "gpu")
    for name in ("origin", "silent_since", "reserved_bytes", "place"):
        op.drop_column("runs", name)
