"""The history of the database's schema: alembic's environment and revisions, numbered 0001, 0002, ..."""
