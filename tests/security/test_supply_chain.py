"""What `make lint`, `make audit` and `make sbom` promise, as far as it needs no network."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
# flake8-bandit's rules, which ruff calls S, that are left out for all of the product.
IGNORED_EVERYWHERE = {
    "S311",  # random.random is for jitter and invented answers; keys come from `secrets`
}
SHIPPED = ("api", "cli", "migrations", "models", "worker")


def test_security_rules_are_on_for_all_that_is_shipped() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    lint: dict[str, Any] = settings["tool"]["ruff"]["lint"]
    assert lint["select"] == ["ALL"]
    assert {rule for rule in lint["ignore"] if re.match(r"S\d*$", rule)} == IGNORED_EVERYWHERE
    for pattern, ignored in lint["per-file-ignores"].items():
        if pattern.startswith(SHIPPED):
            assert not [rule for rule in ignored if re.match(r"S\d*$", rule)], pattern


def test_the_bill_of_materials_lists_every_pin(tmp_path: Path) -> None:
    recipe = (REPOSITORY / "Makefile").read_text(encoding="utf-8").replace("\\\n", "")
    found = re.search(
        r"^sbom:.*?-m (cyclonedx_py .*?) --output-file", recipe, re.DOTALL | re.MULTILINE
    )
    assert found is not None
    written = tmp_path / "sbom.cdx.json"
    words = found[1].split()
    # By the schema of that version; it takes six times as long as all the rest, so not here.
    words[words.index("--validate")] = "--no-validate"
    command = [sys.executable, "-W", "ignore::UserWarning", "-m", *words]
    subprocess.run([*command, "--output-file", written], cwd=REPOSITORY, check=True)
    bill = json.loads(written.read_bytes())

    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["name"] == "overnight"
    pinned = (REPOSITORY / "requirements/runtime.txt").read_text(encoding="utf-8")
    pins = set(re.findall(r"^(\w[\w.-]*)(?:\[\S+\])?==(\S+)", pinned, re.MULTILINE))
    assert len(pins) > 50
    assert {(each["name"], each["version"]) for each in bill["components"]} == pins
    for each in bill["components"]:
        assert each["purl"] == f"pkg:pypi/{each['name']}@{each['version']}"
        hashes = [found for place in each["externalReferences"] for found in place["hashes"]]
        assert {found["alg"] for found in hashes} == {"SHA-256"}
        assert hashes


def test_the_audit_takes_silence_for_no_answer() -> None:
    """A package that could not be looked up fails it, and so does one whose hash is not pinned."""
    recipe = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    [audit] = re.findall(r"^audit:.*?(?=^\w)", recipe, re.DOTALL | re.MULTILINE)
    assert "--strict" in audit
    assert "--require-hashes" in audit
