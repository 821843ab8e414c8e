"""What the commands say of the model servers: `check` tries each, `up` says which file it uses."""

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import typer

from cli.check import check
from cli.config import settle_config
from cli.console import CommandError, UsageError
from cli.trial import try_server
from models.upstreams import ModelServer, Route, Upstreams
from tests.fixtures.upstream import ModelsServer, serve_models
from tests.unit.test_supervisor import Listening

KEY_PLACE = "api_key_env"


def upstreams_at(url: str, *models: str) -> Upstreams:
    """A server named `a`, and these models that are sent there."""
    server = ModelServer(
        name="a",
        url=url,
        call_timeout_seconds=1,
        connect_timeout_seconds=1,
        max_response_bytes=1,
    )
    return Upstreams({"a": server}, None, {name: Route(server) for name in models})


def said(upstreams: Upstreams) -> str:
    return try_server(upstreams.servers["a"], upstreams, place_for_key=KEY_PLACE)


def refused(upstreams: Upstreams) -> str:
    with pytest.raises(CommandError) as caught:
        said(upstreams)
    return str(caught.value)


@pytest.fixture
def server() -> Iterator[ModelsServer]:
    with serve_models() as server:
        server.offer(*({"id": name} for name in ("llama-3", "mistral", "c", "d", "e")))
        yield server


def test_a_server_that_is_well(server: ModelsServer) -> None:
    assert said(upstreams_at(server.url, "e")) == (
        f"{server.url} answers and serves llama-3, mistral, c and 2 more."
    )


def test_a_model_that_it_does_not_list(server: ModelsServer) -> None:
    assert refused(upstreams_at(server.url, "llama-33", "zzz", "e")) == (
        f"{server.url} answers, but does not list llama-33, zzz, which the file sends there"
        " (did you mean llama-3?); it serves llama-3, mistral, c and 2 more."
    )


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "refuses a call without a key (401): set api_key_env."),
        (403, "refuses a call without a key (403): set api_key_env."),
        (500, "answers with 500; its own log should say why."),
    ],
)
def test_a_server_that_refuses(server: ModelsServer, status: int, words: str) -> None:
    server.status = status
    assert refused(upstreams_at(server.url, "x")) == f"{server.url} {words}"


def test_a_server_without_a_list_is_not_wrong(server: ModelsServer) -> None:
    server.status = 404
    words = "answers, though it lists no models (404)."
    assert said(upstreams_at(server.url, "x")) == f"{server.url} {words}"
    server.status, server.body = 200, b"<html>"
    words = "answers, though its list of models cannot be read."
    assert said(upstreams_at(server.url, "x")) == f"{server.url} {words}"


def test_a_server_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    assert refused(upstreams_at(url)) == (
        f"{url} does not answer: nothing listens there. Is it running? Batches wait until it is."
    )


def test_a_name_that_leads_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setenv("NO_PROXY", "*")
    assert refused(upstreams_at("http://gpu.invalid:8000/v1")) == (
        "http://gpu.invalid:8000/v1 cannot be found: the name gpu.invalid leads to no address."
        " Is it spelt right?"
    )


def test_a_name_that_cannot_be_one() -> None:
    url = "http://999.999.1.1/v1"
    assert refused(upstreams_at(url)) == (
        f"{url} cannot be the URL of a server (Invalid IPv4 address: '999.999.1.1')."
    )


def test_a_server_that_speaks_no_tls(server: ModelsServer) -> None:
    url = server.url.replace("http://", "https://")
    assert refused(upstreams_at(url)) == (
        f"{url} does not speak TLS as it should. Does its URL begin with http:// instead?"
    )


def test_a_certificate_that_nobody_trusts(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = ssl.SSLCertVerificationError(1, "certificate verify failed")
    fault.verify_message = "self-signed certificate"

    def fail(*_: object, **__: object) -> None:
        raise httpx.ConnectError("x") from fault

    monkeypatch.setattr(httpx, "get", fail)
    assert refused(upstreams_at("https://m/v1")) == (
        "https://m/v1 has a certificate that is not trusted (self-signed certificate)."
    )


def test_a_server_that_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.trial._SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        assert "does not answer within" in refused(upstreams_at(url))


FILE = """
[upstreams.well]
url = "{url}"
api_key_env = "WELL_KEY"
[upstreams.away]
url = "http://127.0.0.1:1/v1"
[models.llama-3]
upstream = "well"
aliases = ["llama"]
"""


def checked(capsys: pytest.CaptureFixture[str], config: Path) -> tuple[int, list[str]]:
    """Run `overnight check --config`; its exit status and what it says from the servers on."""
    with pytest.raises(typer.Exit) as caught:
        check(config)
    lines = capsys.readouterr().out.splitlines()
    servers = [
        each for each in lines if each[2:].startswith(("Config", "Model server", "Settings"))
    ]
    return caught.value.exit_code, servers


def test_check_tries_every_server_of_the_file(
    server: ModelsServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {
        "OVERNIGHT_CONFIG": "",
        "OVERNIGHT_UPSTREAM_URL": "http://other/v1",
        "OVERNIGHT_API_KEY": "k",
        "OVERNIGHT_DATABASE_URL": "postgresql://u:p@127.0.0.1:1/x",
        "OVERNIGHT_REDIS_URL": "redis://127.0.0.1:1/0",
        "WELL_KEY": "secret-key",
    }.items():
        monkeypatch.setenv(name, value)
    path = tmp_path / "overnight.toml"
    path.write_text(FILE.format(url=server.url))
    assert checked(capsys, path) == (
        1,
        [
            "✓ Settings      All are there and make sense.",
            f"✓ Config        {path} makes sense: servers well, away; models llama-3, llama.",
            f"✓ Model server  well: {server.url} answers and serves llama-3, mistral, c and 2 more.",
            (
                "✗ Model server  away: http://127.0.0.1:1/v1 does not answer: nothing listens there."
                " Is it running? Batches wait until it is."
            ),
            (
                "! Settings      OVERNIGHT_UPSTREAM_URL is not used: OVERNIGHT_CONFIG names a file of"
                " model servers, and it wins."
            ),
        ],
    )
    ((_, headers),) = server.requests
    assert headers["authorization"] == "Bearer secret-key"

    path.write_text(FILE.format(url=server.url).replace("upstream =", "upstreams ="))
    status, lines = checked(capsys, path)
    assert status == 1
    assert f"✗ Settings      {path}: [models.llama-3] needs upstream." in lines[0]
    assert lines[0].endswith("has no key 'upstreams'; did you mean 'upstream'?")
    assert lines[1] == "✗ Model server  Not tried: its settings are wrong."


def test_check_says_the_limits(
    server: ModelsServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # So that what the command sets is taken back.
    monkeypatch.setenv("OVERNIGHT_CONFIG", "")
    monkeypatch.setenv("WELL_KEY", "k")
    monkeypatch.setenv("OVERNIGHT_UPSTREAM_MAX_IN_FLIGHT", "8")
    path = tmp_path / "overnight.toml"
    path.write_text(
        FILE.format(url=server.url).replace(
            'api_key_env = "WELL_KEY"',
            'api_key_env = "WELL_KEY"\nmax_in_flight = 64\ntokens_per_minute = 1_500_000\n'
            'active_hours = ["mon-fri 19:00-07:00", "sat,sun 00:00-24:00"]\n'
            'time_zone = "Europe/Berlin"',
        )
        + "max_in_flight = 4\nadaptive = false\n"
    )
    _, lines = checked(capsys, path)
    assert lines[2].endswith(
        " and 2 more. At most 64 calls in flight, at most 1,500,000 tokens a minute."
        " llama-3: always 4 calls in flight, at most 1,500,000 tokens a minute."
        " Called in these hours: mon-fri 19:00-07:00; sat,sun 00:00-24:00 (Europe/Berlin)."
    )
    assert lines[3].endswith("Batches wait until it is.")
    assert any(
        each.startswith("! Settings      OVERNIGHT_UPSTREAM_MAX_IN_FLIGHT is not used")
        for each in lines
    )


def test_check_says_what_is_not_needed_for_up(
    server: ModelsServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OVERNIGHT_CONFIG", "")
    monkeypatch.setenv("WELL_KEY", "k")
    monkeypatch.delenv("OVERNIGHT_DATABASE_URL", raising=False)
    monkeypatch.delenv("OVERNIGHT_REDIS_URL", raising=False)
    path = tmp_path / "overnight.toml"
    path.write_text(FILE.format(url=server.url))
    status, lines = checked(capsys, path)
    assert status == 1
    hint = "! Settings      `overnight up` needs neither OVERNIGHT_DATABASE_URL nor "
    assert [each for each in lines if each.startswith(hint)]
    monkeypatch.setenv("OVERNIGHT_REDIS_URL", "redis://127.0.0.1:1/0")
    assert not [each for each in checked(capsys, path)[1] if each.startswith(hint)]


@pytest.fixture
def good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder and a current folder, each with a file; the former is returned."""
    for name in ("data", "here", "named"):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "overnight.toml"
        path.write_text(f'default = "{name}"\n[upstreams.{name}]\nurl = "http://{name}/v1"')
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def test_a_file_that_is_named_comes_first(good: Path) -> None:
    terminal = Listening()
    found = settle_config(
        Path("../named/overnight.toml"), None, data_folder=good / "data", terminal=terminal
    )
    assert found is not None
    assert (found.path, found.urls) == (
        good / "named" / "overnight.toml",
        {"named": "http://named/v1"},
    )
    assert terminal.said == [f"Model servers are those of {good}/named/overnight.toml."]


def test_then_the_one_in_the_data_folder_then_the_one_here(good: Path) -> None:
    def find() -> Path | None:
        found = settle_config(None, None, data_folder=good / "data", terminal=Listening())
        return None if found is None else found.path

    assert find() == good / "data" / "overnight.toml"
    (good / "data" / "overnight.toml").unlink()
    assert find() == good / "here" / "overnight.toml"
    (good / "here" / "overnight.toml").unlink()
    assert find() is None


def test_a_file_that_is_named_wins_over_a_url_and_one_that_is_found_does_not(good: Path) -> None:
    terminal = Listening()
    url = "http://other/v1"
    file = good / "named" / "overnight.toml"
    assert settle_config(file, url, data_folder=good / "data", terminal=terminal) is not None
    assert settle_config(None, url, data_folder=good / "data", terminal=terminal) is None
    assert terminal.said == [
        f"Model servers are those of {file}; the model server that is named by its URL is not used.",
        f"Note: {good}/data/overnight.toml is not used, because a model server is named by its URL.",
    ]


def test_active_hours_are_said(good: Path) -> None:
    file = good / "named" / "overnight.toml"
    with file.open("a") as config:
        config.write('\nactive_hours = "22:00-06:00"\ntime_zone = "Europe/Berlin"')
    terminal = Listening()
    settle_config(file, None, data_folder=good / "data", terminal=terminal)
    [_, said] = terminal.said
    assert said == ("Note: named is called in its active hours alone: 22:00-06:00 (Europe/Berlin).")


def test_a_mistake_in_the_file_is_a_sentence_before_anything_is_started(good: Path) -> None:
    file = good / "named" / "overnight.toml"
    file.write_text('default = "x"')
    with pytest.raises(UsageError, match=r"needs at least one \[upstreams\.NAME\]"):
        settle_config(file, None, data_folder=good, terminal=Listening())
    with pytest.raises(UsageError, match="cannot be read"):
        settle_config(good / "none.toml", None, data_folder=good, terminal=Listening())
