"""What may stand in no file of the repository: where one machine keeps things, or gets them."""

import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

# Written in two parts, or this file would be its own finding.
PACKAGE_HOSTS = [
    first + second
    for first, second in (
        ("py", "pi.org"),
        ("python", "hosted.org"),
        ("registry", ".npmjs"),
        ("registry-1", ".docker"),
        ("index", ".docker.io"),
        ("gh", "cr.io"),
        ("qu", "ay.io"),
        ("deb", ".debian.org"),
    )
]
# A folder of somebody's own.
MACHINE_PATH = re.compile(r"(?<![\w.$}~/-])/(?:home|root|Users|work)/[\w.-]+")


def repository_files() -> list[Path]:
    """Every text file that is in git or about to be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [REPOSITORY / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file() and b"\0" not in path.read_bytes()[:4096]]


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """The text of each file, by its path in the repository."""
    return {
        str(path.relative_to(REPOSITORY)): path.read_text(encoding="utf-8", errors="replace")
        for path in repository_files()
    }


def test_no_file_names_a_package_index(texts: dict[str, str]) -> None:
    found = [(name, host) for name, text in texts.items() for host in PACKAGE_HOSTS if host in text]
    assert found == []


def test_no_file_names_a_folder_of_one_machine(texts: dict[str, str]) -> None:
    found = [(name, path) for name, text in texts.items() for path in MACHINE_PATH.findall(text)]
    assert found == []


def test_every_pinned_package_is_hashed(texts: dict[str, str]) -> None:
    for name in ("build", "dev", "docs", "embedded", "runtime", "tracing"):
        text = texts[f"requirements/{name}.txt"]
        pins = re.findall(r"^\w\S*==\S+.*\\$\n +--hash=sha256:", text, re.MULTILINE)
        assert len(pins) == len(re.findall(r"^\w", text, re.MULTILINE)) > 0
        assert "make requirements" in text.splitlines()[1]


def test_a_package_has_one_version_in_all_requirement_files(texts: dict[str, str]) -> None:
    pins = {
        name: set(re.findall(r"^(\w\S*==\S+)", texts[f"requirements/{name}.txt"], re.MULTILINE))
        for name in ("build", "dev", "docs", "embedded", "runtime", "tracing")
    }
    assert pins["runtime"] < pins["embedded"] < pins["dev"]
    assert pins["runtime"] < pins["tracing"] < pins["dev"]
    assert pins["build"] < pins["embedded"]
    versions = dict(pin.split("==") for pin in pins["dev"])
    docs = [pin.split("==") for pin in pins["docs"]]
    assert all(versions.get(name, version) == version for name, version in docs)
