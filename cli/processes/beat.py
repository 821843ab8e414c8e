"""`overnight beat`: rings the sweep every few seconds. One is enough; two do no harm.

Promises: it keeps no file. While it is down nothing is lost: what is due waits for the next sweep.
"""

from cli.processes.celery import run_celery_beat
from cli.processes.start import read_settings, start_logging
from worker.app import app
from worker.settings import ControlSettings


def beat() -> None:
    """Ring the sweep every few seconds (OVERNIGHT_SWEEP_SECONDS)."""
    level = start_logging()
    read_settings(ControlSettings)
    run_celery_beat(app, level=level)
