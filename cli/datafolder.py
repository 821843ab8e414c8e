"""The folder that `overnight up` keeps everything in: its lock, its key, its logs, its sockets.

Promises: one `overnight up` at a time uses a folder; the key file is readable by its owner alone;
other users get at most the right to pass through, never to list or to read.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import stat
import tempfile
from pathlib import Path

from cli.console import CommandError, UsageError
from cli.program import SystemUser

# The kernel's limit for a socket's path is 108 bytes with its final zero (macOS: 104); the longest
# name put into the folder is ".s.PGSQL.5432".
_LONGEST_SOCKET_FOLDER = 103 - len("/.s.PGSQL.5432")
# Anything else would need quoting, differently in each of Postgres' lists and Celery's URLs.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/._+-]+")


def default_data_folder() -> Path:
    """`OVERNIGHT_DATA_DIR`, or the place where this platform's users keep such data."""
    named = os.environ.get("OVERNIGHT_DATA_DIR")
    if named:
        return Path(named)
    share = os.environ.get("XDG_DATA_HOME")
    return (Path(share) if share else Path("~/.local/share")) / "overnight"


class DataFolder:
    """An existing folder, locked for this process until it ends."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock
        self._sockets_aside: Path | None = None

    @classmethod
    def open(cls, path: Path) -> "DataFolder":
        """Make the folder when it is new, and lock it; or say why that cannot be."""
        try:
            path = path.expanduser().resolve()
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except (OSError, RuntimeError) as error:
            message = f"Cannot keep data in {path} ({_reason(error)}): give another --data-dir."
            raise UsageError(message) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(lock, 20, 0).decode(errors="replace").strip()
            os.close(lock)
            process = f" (process {holder})" if holder else ""
            message = (
                f"Another `overnight up`{process} is using {path}:"
                " stop it first, or give another --data-dir."
            )
            raise CommandError(message) from error
        except OSError as error:
            os.close(lock)
            message = f"Cannot lock {path} ({_reason(error)}): give a --data-dir on a local disk."
            raise CommandError(message) from error
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        folder = cls(path, lock)
        folder.logs.mkdir(mode=0o700, exist_ok=True)
        return folder

    @property
    def logs(self) -> Path:
        """Where each child's output is kept."""
        return self.path / "logs"

    def empty_metrics(self) -> Path:
        """Where the processes write their counts: without those of an earlier start."""
        metrics = self.path / "metrics"
        metrics.mkdir(mode=0o700, exist_ok=True)
        for file in metrics.iterdir():
            file.unlink()
        return metrics

    @property
    def key_file(self) -> Path:
        """Where the key that was made here is kept."""
        return self.path / "api-key"

    def close(self) -> None:
        """Let another process have the folder. (The end of this one does it, too.)"""
        if self._sockets_aside is not None:
            with contextlib.suppress(OSError):  # somebody else's files in it, perhaps
                self._sockets_aside.rmdir()
        os.close(self._lock)

    def api_key(self) -> str:
        """The key made on the first start; made now if this is the first."""
        key = read_key(self.key_file)
        if key:
            return key
        key = f"ovn-{secrets.token_urlsafe(24)}"
        # Written aside and moved: a key is whole or not there.
        part = self.key_file.with_suffix(".part")
        part.unlink(missing_ok=True)
        with open(part, "x", opener=_open_private, encoding="ascii") as file:
            file.write(key + "\n")
        part.replace(self.key_file)
        return key

    def socket_folder(self, owner: SystemUser | None) -> Path:
        """A private folder for Unix sockets whose path is short and plain enough for one."""
        inside, aside = _socket_folders(self.path)
        if is_socket_path(inside):
            inside.mkdir(mode=0o700, exist_ok=True)
            return _give(inside, owner)
        aside.mkdir(mode=0o700, exist_ok=True)
        if not _is_private(aside, {os.getuid(), owner.uid if owner else os.getuid()}):
            message = (
                f"{aside} belongs to somebody else: remove it, or give a --data-dir with a shorter"
                " and plainer path."
            )
            raise CommandError(message)
        self._sockets_aside = aside
        return _give(aside, owner)


def _socket_folders(path: Path) -> tuple[Path, Path]:
    """Where the sockets of a data folder are: inside of it, or aside if its path is too long or odd."""
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
    aside = Path(tempfile.gettempdir()) / f"overnight-{os.getuid()}-{name}"
    if not is_socket_path(aside):
        aside = Path("/tmp") / aside.name  # noqa: S108  # used only if it is private
    return path / "run", aside


def _is_private(folder: Path, owners: set[int]) -> bool:
    """Whether this is a folder of one of these users that nobody else can enter.

    Anybody may make a folder of any name in a shared place, before us or as a link.
    """
    found = folder.lstat()
    is_closed = not found.st_mode & 0o077
    return stat.S_ISDIR(found.st_mode) and found.st_uid in owners and is_closed


def running_sockets(path: Path) -> Path | None:
    """The folder with the socket of the Postgres that runs on this data folder, if one seems to.

    For those who only connect beside an `overnight up`: they need no lock, and make nothing.
    """
    try:
        path = path.expanduser().resolve()
        owners = {os.getuid(), (path / "postgres").stat().st_uid}
        for folder in _socket_folders(path):
            if (folder / ".s.PGSQL.5432").is_socket() and _is_private(folder, owners):
                return folder
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError) as error:
        message = f"Cannot look into {path} ({_reason(error)}): run this as the user who runs `up`."
        raise CommandError(message) from error
    return None


def read_key(path: Path) -> str | None:
    """The key in this file, if there is one that may be read."""
    try:
        return path.read_text(encoding="ascii").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def is_socket_path(folder: Path) -> bool:
    """Whether sockets can be made in a folder of this name."""
    text = str(folder)
    return len(text) <= _LONGEST_SOCKET_FOLDER and _PLAIN_PATH.fullmatch(text) is not None


def let_pass(path: Path, user: SystemUser) -> None:
    """Let `user` pass through all folders above `path`: traverse (x) only, never list or read.

    Postgres refuses to run as root, so that root's own folders need to be passable for the user
    that it runs as. Everything in the data folder that is secret is closed by its own mode.
    """
    for folder in reversed(path.parents):
        found = folder.stat()
        if found.st_uid == user.uid:
            needed = stat.S_IXUSR
        elif found.st_gid == user.gid:
            needed = stat.S_IXGRP
        else:
            needed = stat.S_IXOTH
        if not found.st_mode & needed:
            folder.chmod(stat.S_IMODE(found.st_mode) | needed)


def _give(folder: Path, owner: SystemUser | None) -> Path:
    if owner is not None:
        os.chown(folder, owner.uid, owner.gid)
        let_pass(folder, owner)
    return folder


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
