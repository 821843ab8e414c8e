"""The one way to the database: an engine whose statements cannot hang, and short transactions.

Promises: every transaction opened here commits or rolls back when its block ends; a server that
vanishes without a word is noticed within about ten seconds (keepalives and the user timeout of
TCP); a statement ends within `database_statement_seconds`.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import psycopg  # noqa: F401  # half a second, which else every forked worker takes at its first task
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from models.metrics import DATABASE_ERRORS
from models.settings import DatabaseSettings


def is_away(error: Exception) -> bool:
    """Whether no server answered at all: what a server says against a statement has an SQLSTATE."""
    return isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) is None


class Database:
    """A pool of connections to Postgres, for one event loop."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._closing: set[asyncio.Task[None]] = set()
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
                    "keepalives_idle": 4,
                    "keepalives_interval": 2,
                    "keepalives_count": 3,
                    "tcp_user_timeout": 10_000,
                    # The server's own look at this connection: a process that is cut off from it must not
                    # keep its locks until the time-outs below.
                    "options": (
                        "-c tcp_keepalives_idle=4 -c tcp_keepalives_interval=2"
                        " -c tcp_keepalives_count=3"
                        f" -c statement_timeout={statement_ms}"
                        f" -c lock_timeout={statement_ms}"
                        f" -c idle_in_transaction_session_timeout={2 * statement_ms}"
                    ),
                },
            )
        )

    @asynccontextmanager
    async def begin(self) -> AsyncGenerator[AsyncSession]:
        """A session in a transaction: committed when the block ends, rolled back when it raises."""
        async with self._session(self._engine) as session, session.begin():
            yield session

    @asynccontextmanager
    async def statement(self) -> AsyncGenerator[AsyncSession]:
        """A session for one statement, which commits by itself: that saves two journeys of four."""
        async with self._session(self._autocommitting) as session:
            yield session

    @asynccontextmanager
    async def _session(self, engine: AsyncEngine) -> AsyncGenerator[AsyncSession]:
        session = AsyncSession(engine, expire_on_commit=False, autoflush=False)
        try:
            yield session
        except DBAPIError as error:
            DATABASE_ERRORS.labels("away" if is_away(error) else "refused").inc()
            raise
        finally:
            # A task that is cancelled just now leaves the connection's way back to one of its own, for
            # which `dispose` waits.
            closing = asyncio.create_task(session.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            await asyncio.shield(closing)

    async def dispose(self) -> None:
        """Close every connection, those on their way back to the pool, too."""
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self._engine.dispose()
