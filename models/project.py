"""Projects and their API keys: who may see what.

Every file, batch, upload and webhook endpoint belongs to one project; a key opens one project. A key
itself is never kept: only a salted hash of it, and as much of its text as it takes to find the row.
"""

import unicodedata
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Text,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, PrimaryKey

DEFAULT_PROJECT_PK = 1
DEFAULT_PROJECT_ID = "proj_default"
"""The project of the keys in `OVERNIGHT_API_KEY`, which the migration makes; it cannot be archived."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the project that a request's key belongs to."""

    project_pk: int
    project_id: str


MAX_NAME = 100
MAX_WEIGHT = 1000


def check_name(text: str) -> str:
    """A name of a project or a key as it is kept: without blanks around it, and in one spelling.

    Raises:
        ValueError: it is too long, or holds what cannot be seen.
    """
    name = unicodedata.normalize("NFC", text.strip())
    if len(name) > MAX_NAME:
        message = f"A name can have at most {MAX_NAME} characters."
        raise ValueError(message)
    if not name.isprintable():
        message = "A name can hold only characters that can be seen, and blanks."
        raise ValueError(message)
    return name


def check_project_name(text: str) -> str:
    """A project's name as it is kept. An id, of a project that is there, is taken for it, too.

    Raises:
        ValueError: it cannot be one.
    """
    name = check_name(text)
    if not name:
        message = "A project needs a name."
        raise ValueError(message)
    return name


DEFAULT_CALLER = Caller(DEFAULT_PROJECT_PK, DEFAULT_PROJECT_ID)


class Project(Base):
    """One tenant. A limit that is null is the one of the settings."""

    __tablename__ = "projects"

    # The default project's key stands outside of the sequence.
    pk: Mapped[int] = mapped_column(BigInteger, Identity(always=True, start=2), primary_key=True)
    id: Mapped[str] = mapped_column(Text, unique=True)
    name: Mapped[str] = mapped_column(Text, unique=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    archived_at: Mapped[datetime | None]

    max_batches_per_hour: Mapped[int | None] = mapped_column(Integer)
    max_enqueued_lines: Mapped[int | None] = mapped_column(BigInteger)
    max_enqueued_tokens: Mapped[int | None] = mapped_column(BigInteger)
    max_stored_bytes: Mapped[int | None] = mapped_column(BigInteger)
    # Projects that wait for the same model servers share them in proportion to their weights.
    weight: Mapped[float] = mapped_column(Double, server_default="1")

    __table_args__ = (
        CheckConstraint(
            "max_batches_per_hour >= 0 AND max_enqueued_lines >= 0"
            " AND max_enqueued_tokens >= 0 AND max_stored_bytes >= 0",
            name="limits_positive",
        ),
        CheckConstraint(f"weight > 0 AND weight <= {MAX_WEIGHT}", name="weight_sane"),
        CheckConstraint(
            f"pk <> {DEFAULT_PROJECT_PK} OR archived_at IS NULL", name="default_not_archived"
        ),
    )


class ApiKey(Base):
    """One key. `lookup` is the public part of its text, `digest` the salted hash of the whole."""

    __tablename__ = "api_keys"

    pk: Mapped[PrimaryKey]
    id: Mapped[str] = mapped_column(Text, unique=True)
    project_pk: Mapped[int] = mapped_column(ForeignKey("projects.pk"))
    name: Mapped[str] = mapped_column(Text, server_default="")
    lookup: Mapped[str] = mapped_column(Text, unique=True)
    salt: Mapped[bytes] = mapped_column(LargeBinary)
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    # The last characters, so that a person can tell keys apart.
    hint: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]

    __table_args__ = (
        Index("ix_api_keys_project_pk", "project_pk", postgresql_where=text("revoked_at IS NULL")),
    )
