"""The Alembic history, one for every database."""
