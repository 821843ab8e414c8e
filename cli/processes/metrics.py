"""The endpoint of a worker's metrics: one for all of its processes, in the one that was started first.

Imported only where a port is set: else it would cost a tenth of a second, and memory, for nothing.
"""

import os
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import start_http_server
from prometheus_client.metrics_core import Metric

from cli.console import UsageError
from cli.processes.start import read_settings
from models.metrics_folder import FOLDER_VARIABLE, merged
from models.settings import MetricsSettings


@contextmanager
def served_metrics() -> Generator[int]:
    """Serve what this process and its children count, on the port of the settings; say which it is."""
    settings = read_settings(MetricsSettings)
    with tempfile.TemporaryDirectory(prefix="overnight-metrics-") as folder:
        try:
            server, thread = start_http_server(
                settings.metrics_port or 0,
                settings.metrics_host,
                _Folder(Path(folder)),
            )
        except OSError as error:
            message = (
                f"Cannot serve metrics on {settings.metrics_host} port {settings.metrics_port}"
                f" ({error.strerror}): set another OVERNIGHT_METRICS_PORT."
            )
            raise UsageError(message) from error
        # For the children, and the stages in this process: they write there, and serve nothing.
        os.environ[FOLDER_VARIABLE] = folder
        os.environ["OVERNIGHT_METRICS_PORT"] = ""
        try:
            yield server.server_port
        finally:
            del os.environ[FOLDER_VARIABLE]
            server.shutdown()
            server.server_close()
            thread.join()


class _Folder:
    """The counts in a folder, read whenever they are asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def collect(self) -> Sequence[Metric]:
        return merged(self._path)
