"""What Overnight is about: its nouns, their rules, how they are stored and how they look on the wire.

Importing the package loads every table, so that Alembic and a reader see them together.
"""

from models.base import Base
from models.batch import Batch
from models.file import File, FileChunk
from models.result import Result
from models.shard import Shard

__all__ = ["Base", "Batch", "File", "FileChunk", "Result", "Shard"]
