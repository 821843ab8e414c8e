"""The history of the database's shape, for Alembic; run by `overnight migrate`, never at start-up."""
