"""A session of the dashboard: what a browser has instead of a key.

Neither the token of its cookie nor a key is kept: only a hash of the token, and how to tell whether the key
that opened the session still opens its project.
"""

from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, LargeBinary, func
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base


class DashboardSession(Base):
    """One session. It was opened by a key in the database, or by one of the settings.

    `settings_key_digest` is a hash over the token and such a key, so that whoever reads the table cannot
    even try keys.
    """

    __tablename__ = "dashboard_sessions"

    token_digest: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    project_pk: Mapped[int] = mapped_column(ForeignKey("projects.pk"))
    api_key_pk: Mapped[int | None] = mapped_column(BigInteger, ForeignKey("api_keys.pk"))
    settings_key_digest: Mapped[bytes | None] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]

    __table_args__ = (
        CheckConstraint(
            "(api_key_pk IS NULL) <> (settings_key_digest IS NULL)", name="opened_by_one_key"
        ),
        Index("ix_dashboard_sessions_expires_at", "expires_at"),
    )
