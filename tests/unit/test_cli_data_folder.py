"""The data folder: who may use it, and what others may see of it."""

import os
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from cli.console import CommandError, UsageError
from cli.datafolder import DataFolder, default_data_folder, is_socket_path, let_pass
from cli.program import SystemUser, child_environment


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    with closing(DataFolder.open(tmp_path / "data")) as folder:
        key = folder.api_key()
        assert len(key) > 30
        assert mode(folder.key_file) == 0o600
        assert mode(folder.path) == 0o700
        assert mode(folder.logs) == 0o700
    with closing(DataFolder.open(tmp_path / "data")) as folder:
        assert folder.api_key() == key


def test_one_at_a_time(tmp_path: Path) -> None:
    with closing(DataFolder.open(tmp_path)):
        code = f"from cli.datafolder import *; DataFolder.open(Path({str(tmp_path)!r}))"
        other = subprocess.run(
            [sys.executable, "-c", code],
            env=child_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert f"(process {os.getpid()})" in other.stderr
        with pytest.raises(CommandError, match="Another `overnight up`"):
            DataFolder.open(tmp_path)
    DataFolder.open(tmp_path).close()


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--data-dir"):
        DataFolder.open(tmp_path / "file" / "data")


@pytest.mark.parametrize("name", ["x" * 120, "with space", "per%cent", "com,ma", "ümlaut"])
def test_a_path_that_no_socket_can_have_gets_a_private_folder_aside(
    tmp_path: Path, name: str
) -> None:
    with closing(DataFolder.open(tmp_path / name)) as folder:
        sockets = folder.socket_folder(None)
        assert is_socket_path(sockets)
        assert mode(sockets) == 0o700
        assert sockets == folder.socket_folder(None), "a restart finds what was left there"
    assert not sockets.exists()


def test_a_folder_aside_that_others_could_enter_is_refused(tmp_path: Path) -> None:
    with closing(DataFolder.open(tmp_path / "with space")) as folder:
        folder.socket_folder(None).chmod(0o755)
        with pytest.raises(CommandError, match="belongs to somebody else"):
            folder.socket_folder(None)


def test_others_may_pass_but_not_look(tmp_path: Path) -> None:
    inner = tmp_path / "closed" / "open" / "data"
    inner.mkdir(parents=True)
    (tmp_path / "closed").chmod(0o700)
    (tmp_path / "closed" / "open").chmod(0o755)
    let_pass(inner, SystemUser(name="nobody", uid=65533, gid=65533))
    assert mode(tmp_path / "closed") == 0o701
    assert mode(tmp_path / "closed" / "open") == 0o755


def test_the_usual_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert default_data_folder() == Path("~/.local/share/overnight")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_data_folder() == Path("/data/overnight")
    monkeypatch.setenv("OVERNIGHT_DATA_DIR", "/elsewhere")
    assert default_data_folder() == Path("/elsewhere")
