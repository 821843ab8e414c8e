"""How Alembic reaches the database: one migration at a time, and never waiting for ever.

An advisory lock keeps two deployments from migrating at once; lock and statement limits keep a
migration from stopping a live system.
"""

from alembic import context
from sqlalchemy import create_engine, pool, text

from models import Base
from models.settings import DatabaseSettings

_LOCK = 0x0_7E_41_16_47  # any number that no other program uses for its own lock
_LOCK_TIMEOUT = "4s"
_STATEMENT_TIMEOUT = "60s"


def run_migrations() -> None:
    """Bring the database to the asked revision.

    The one of the configuration's `database_url` attribute, or else of `OVERNIGHT_DATABASE_URL`.
    """
    override = context.config.attributes.get("database_url")
    url = override or DatabaseSettings().database_url.get_secret_value()
    engine = create_engine(url, poolclass=pool.NullPool)
    with engine.connect() as connection:
        # Waits for another migration to end, within the statement's time limit.
        connection.execute(text(f"SET statement_timeout = '{_STATEMENT_TIMEOUT}'"))
        connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": _LOCK})
        connection.execute(text(f"SET lock_timeout = '{_LOCK_TIMEOUT}'"))
        connection.commit()
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            transaction_per_migration=True,
            compare_type=True,
            compare_server_default=True,
        )
        with context.begin_transaction():
            context.run_migrations()
        connection.commit()
    engine.dispose()


if context.is_offline_mode():
    message = "Migrations need a database; there is no offline mode."
    raise SystemExit(message)
run_migrations()
