"""Foreign keys may refer to a task and its owner."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_index("uq_tasks_user_id_id", "tasks", ["user_id", "id"], unique=True)
    # In an SQLite file of an earlier version, the constraint that makes emails unique has no name.
    if op.get_context().dialect.name == "sqlite":
        names = {"uq": "%(table_name)s_%(column_0_N_name)s_key"}
        with op.batch_alter_table("users", recreate="always", naming_convention=names):
            pass


def downgrade() -> None:
    op.drop_index("uq_tasks_user_id_id", "tasks")
