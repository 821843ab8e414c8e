"""Promises of docker-compose.yml, Dockerfile and .env.example that can be read off the files.

That the stack also runs is `make compose-test`, which needs a Docker engine.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from worker.settings import RunSettings

REPOSITORY = Path(__file__).resolve().parents[2]
OURS = {"api", "beat", "migrate", "simulator", "worker"}
ALL = OURS | {"postgres", "redis"}
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def text_of(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load(text_of("docker-compose.yml"))
    return read


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    read: dict[str, dict[str, Any]] = compose["services"]
    return read


@pytest.fixture(scope="module")
def example_settings() -> dict[str, str]:
    lines = [line for line in text_of(".env.example").splitlines() if line and line[0] != "#"]
    return dict(line.split("=", 1) for line in lines)


def seconds(duration: str) -> int:
    """Read 45s or 1m, or the default of ${NAME:-45s}."""
    variable = VARIABLE.fullmatch(duration)
    if variable:
        duration = variable[3]
    return int(duration[:-1]) * {"s": 1, "m": 60}[duration[-1]]


def test_the_services_are_these(services: dict[str, dict[str, Any]]) -> None:
    assert set(services) == ALL
    profiles = {
        name: service["profiles"] for name, service in services.items() if "profiles" in service
    }
    assert profiles == {"simulator": ["simulate"]}


def test_only_the_api_is_published_and_only_on_loopback(
    services: dict[str, dict[str, Any]], example_settings: dict[str, str]
) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {"api": ["${OVERNIGHT_BIND:-127.0.0.1}:${OVERNIGHT_PORT:-8080}:8080"]}
    assert example_settings["OVERNIGHT_BIND"] == "127.0.0.1"
    assert not [name for name, service in services.items() if "network_mode" in service]


def test_database_and_broker_reach_nothing_and_are_reached_by_ours_alone(
    compose: dict[str, Any],
) -> None:
    assert compose["networks"] == {"inner": {"internal": True}}
    networks = {name: set(service["networks"]) for name, service in compose["services"].items()}
    assert networks == {
        "postgres": {"inner"},
        "redis": {"inner"},
        "migrate": {"inner"},
        "beat": {"inner"},
        "api": {"inner", "default"},
        "worker": {"inner", "default"},
        "simulator": {"default"},
    }


def test_no_secret_has_a_value_in_the_files(
    services: dict[str, dict[str, Any]], example_settings: dict[str, str]
) -> None:
    text = text_of("docker-compose.yml")
    for secret in ("POSTGRES_PASSWORD", "OVERNIGHT_API_KEY"):
        uses = [found for found in VARIABLE.finditer(text) if found[1] == secret]
        assert uses
        assert {found[2] for found in uses} == {"?"}, f"{secret} must be demanded, not defaulted"
        assert all(".env" in found[3] for found in uses), "the message says where to set it"
    for service in services.values():
        for name, value in (service.get("environment") or {}).items():
            if re.search("PASSWORD|KEY|SECRET|TOKEN", name):
                assert VARIABLE.fullmatch(value), name
            if "://" in value and "@" in value:
                password = value.partition("://")[2].rpartition("@")[0].partition(":")[2]
                assert VARIABLE.fullmatch(password), name
    for name in ("POSTGRES_PASSWORD", "OVERNIGHT_API_KEY", "OVERNIGHT_UPSTREAM_API_KEY"):
        assert example_settings[name] == ""


def test_the_example_explains_every_variable(example_settings: dict[str, str]) -> None:
    used = {found[1] for found in VARIABLE.finditer(text_of("docker-compose.yml"))}
    unexplained = {"OVERNIGHT_ENV_FILE", "OVERNIGHT_VERSION"}  # for tests and for releases
    assert used - unexplained <= set(example_settings)


def test_docker_waits_longer_than_a_worker_drains(
    services: dict[str, dict[str, Any]], example_settings: dict[str, str]
) -> None:
    drain = RunSettings.model_fields["drain_seconds"].default
    assert seconds(services["worker"]["stop_grace_period"]) > drain
    assert seconds(example_settings["OVERNIGHT_STOP_GRACE"]) > drain
    assert float(example_settings["OVERNIGHT_DRAIN_SECONDS"]) == drain


def test_the_start_is_ordered(services: dict[str, dict[str, Any]]) -> None:
    assert services["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert services["migrate"]["restart"] == "no"
    for name in ("api", "beat", "worker"):
        waits = {on: how["condition"] for on, how in services[name]["depends_on"].items()}
        assert waits == {
            "migrate": "service_completed_successfully",
            "postgres": "service_healthy",
            "redis": "service_healthy",
        }
    for name in ("api", "postgres", "redis", "simulator"):
        assert "healthcheck" in services[name]


def test_the_worker_can_be_scaled(services: dict[str, dict[str, Any]]) -> None:
    assert not {"container_name", "hostname", "ports"} & set(services["worker"])


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_container_is_confined(services: dict[str, dict[str, Any]], name: str) -> None:
    service = services[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert "privileged" not in service
    if name in OURS:
        assert "cap_add" not in service


def test_data_outlives_the_containers(compose: dict[str, Any]) -> None:
    assert compose["services"]["postgres"]["volumes"] == ["postgres-data:/var/lib/postgresql"]
    assert set(compose["volumes"]) == {"postgres-data"}


def test_the_database_logs_no_row_and_no_statement(services: dict[str, dict[str, Any]]) -> None:
    command = services["postgres"]["command"]
    assert "-clog_error_verbosity=terse" in command
    assert "-clog_min_error_statement=panic" in command


def test_one_image_serves_every_process(services: dict[str, dict[str, Any]]) -> None:
    assert len({services[name]["image"] for name in OURS}) == 1
    assert [name for name in services if "build" in services[name]] == ["migrate"]


def test_the_image_runs_unprivileged_and_stops_on_sigterm() -> None:
    lines = text_of("Dockerfile").splitlines()
    last_stage = lines[max(n for n, line in enumerate(lines) if line.startswith("FROM ")) :]
    assert "USER 10001:10001" in last_stage
    assert "STOPSIGNAL SIGTERM" in last_stage
    assert 'ENTRYPOINT ["overnight"]' in last_stage


def test_the_image_needs_nothing_beyond_its_base_and_pinned_packages() -> None:
    text = text_of("Dockerfile")
    # Such a line makes the engine fetch its own reader first, even where no registry is reachable.
    assert "syntax=" not in text
    bases = {line.split()[1] for line in text.splitlines() if line.startswith("FROM ")}
    assert bases == {"python:3.13-slim"}
    installs = re.findall(r"^.*\binstall\b.*$", text, re.MULTILINE)
    assert len(installs) == 3
    assert all("--require-hashes" in line or "--no-index" in line for line in installs)
    assert "embedded.txt" not in text


def test_the_builder_sees_no_secret() -> None:
    patterns = [line for line in text_of(".dockerignore").splitlines() if line[:1] != "#"]
    assert patterns[0] == "*", "everything is left out that is not named"
    assert not [pattern for pattern in patterns if pattern.startswith("!.")]
