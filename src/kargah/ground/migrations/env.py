"""Run by Alembic, within the transaction that `kargah.ground.migrate` opened."""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=context.config.attributes["target_metadata"],
    render_as_batch=True,
    compare_type=True,
)
context.run_migrations()
