"""The file by which `overnight up` tells scripts that it is ready, and where.

Promises: it appears whole; it is there only while what it says is true; another run's is left alone.
"""

import json
import os
from pathlib import Path

from cli.console import UsageError
from cli.engine import Engine


class ReadyFile:
    """The ready file of this run; without a path, none."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._written: str | None = None

    def remove_earlier(self) -> None:
        """Remove what a run that was killed has left. Call it once no other run can be there."""
        try:
            if self._path:
                self._path.unlink(missing_ok=True)
        except OSError as error:
            raise self._not_writable(error) from error

    def write(self, engine: Engine) -> None:
        """Say where the engine is. Written aside and moved: who sees the file sees all of it."""
        if self._path is None:
            return
        facts = {
            "base_url": engine.base_url,
            "pid": os.getpid(),
            "data_dir": str(engine.data_folder),
        }
        text = json.dumps(facts) + "\n"
        part = self._path.with_name(f"{self._path.name}.part")
        try:
            part.write_text(text, encoding="utf-8")
            part.replace(self._path)
        except OSError as error:
            raise self._not_writable(error) from error
        self._written = text

    def remove(self) -> None:
        """Remove what this run has written, if it is still that."""
        try:
            if self._path and self._written == self._path.read_text(encoding="utf-8"):
                self._path.unlink()
        except OSError:
            # Gone already, or its folder is: there is nothing left that could be untrue.
            return

    def _not_writable(self, error: OSError) -> UsageError:
        return UsageError(f"Cannot write the ready file {self._path} ({error.strerror}).")
