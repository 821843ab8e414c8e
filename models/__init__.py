"""What Overnight is about: its nouns, their rules, how they are stored and how they look on the wire.

Importing the package loads every table, so that Alembic and a reader see them together.
"""

from models.base import Base
from models.batch import Batch
from models.file import File, FileChunk
from models.idempotency import IdempotencyKey
from models.project import ApiKey, Project
from models.result import Result
from models.session import DashboardSession
from models.shard import Shard
from models.upload import MultipartUpload, UploadPart
from models.webhook import WebhookDelivery, WebhookEndpoint

__all__ = [
    "ApiKey",
    "Base",
    "Batch",
    "DashboardSession",
    "File",
    "FileChunk",
    "IdempotencyKey",
    "MultipartUpload",
    "Project",
    "Result",
    "Shard",
    "UploadPart",
    "WebhookDelivery",
    "WebhookEndpoint",
]
