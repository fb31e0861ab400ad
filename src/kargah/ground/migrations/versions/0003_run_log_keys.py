"""Which sentence a log line is."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("run_logs", sa.Column("key", sa.String(length=60), nullable=True))


def downgrade() -> None:
    op.drop_column("run_logs", "key")
