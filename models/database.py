"""The one way to the database: an engine whose statements cannot hang, and short transactions.

Promises: every transaction opened here commits or rolls back when its block ends; a server that
vanishes without a word is noticed within about half a minute (keepalives and the user timeout of
TCP); a statement ends within `database_statement_seconds`.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import psycopg  # noqa: F401  # half a second, which else every forked worker takes at its first task
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from models.settings import DatabaseSettings


def is_away(error: Exception) -> bool:
    """Whether no server answered at all: what a server says against a statement has an SQLSTATE."""
    return isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) is None


class Database:
    """A pool of connections to Postgres, for one event loop."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        # Shares the pool; a connection is given back as it was.
        self._autocommitting = engine.execution_options(isolation_level="AUTOCOMMIT")

    @classmethod
    def connect(cls, settings: DatabaseSettings, *, role: str) -> "Database":
        """Make the pool; no connection is opened yet. `role` shows in `pg_stat_activity`."""
        statement_ms = int(settings.database_statement_seconds * 1000)
        return cls(
            create_async_engine(
                settings.database_url.get_secret_value(),
                pool_size=settings.database_pool_size,
                max_overflow=0,
                pool_timeout=settings.database_statement_seconds,
                # A connection that died while idle is replaced before it is handed out.
                pool_pre_ping=True,
                pool_recycle=1800,
                # What a statement carries may be a prompt; errors are logged.
                hide_parameters=True,
                connect_args={
                    "application_name": f"overnight-{role}",
                    "connect_timeout": 5,
                    "keepalives_idle": 10,
                    "keepalives_interval": 5,
                    "keepalives_count": 3,
                    "tcp_user_timeout": 25_000,
                    "options": (
                        f"-c statement_timeout={statement_ms}"
                        f" -c lock_timeout={statement_ms}"
                        f" -c idle_in_transaction_session_timeout={2 * statement_ms}"
                    ),
                },
            )
        )

    @asynccontextmanager
    async def begin(self) -> AsyncGenerator[AsyncSession]:
        """A session in a transaction: committed when the block ends, rolled back when it raises."""
        async with (
            AsyncSession(self._engine, expire_on_commit=False, autoflush=False) as session,
            session.begin(),
        ):
            yield session

    @asynccontextmanager
    async def statement(self) -> AsyncGenerator[AsyncSession]:
        """A session for one statement, which commits by itself: that saves two journeys of four."""
        async with AsyncSession(
            self._autocommitting, expire_on_commit=False, autoflush=False
        ) as session:
            yield session

    async def dispose(self) -> None:
        """Close every pooled connection."""
        await self._engine.dispose()
