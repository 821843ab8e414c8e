"""overnight.toml: what it means, and a sentence for each mistake in it."""

from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pydantic import ValidationError

from cli.console import explain_settings
from models.lines import Endpoint, LineError
from models.settings import UpstreamSettings
from models.upstreams import (
    EVERY_MODEL,
    FlowLimits,
    ModelFilter,
    ModelServer,
    Route,
    Upstreams,
    find_metrics_url,
)
from models.upstreams_file import UpstreamsFileError, read_upstreams

CHAT, EMBEDDINGS = Endpoint.CHAT_COMPLETIONS, Endpoint.EMBEDDINGS
FALLBACK = ModelServer(
    name="default",
    url="",
    call_timeout_seconds=600,
    connect_timeout_seconds=10,
    max_response_bytes=1000,
)
GOOD = """
default = "vllm"

[upstreams.vllm]
url = "http://gpu1:8000/v1/"
api_key_env = "VLLM_KEY"
headers = { X-Team = "batch work" }
max_in_flight = 64
call_timeout_seconds = 900
endpoints = ["/v1/chat/completions", "/v1/embeddings"]

[upstreams.hosted]
url = "https://models.example/v1"
api_key_file = "keys/hosted"

[models."llama-3.1"]
upstream = "vllm"
aliases = ["llama", "gpt-4o-mini"]

[models.mistral]
upstream = "hosted"
aliases = ["m"]
upstream_model = "mistralai/Mistral"
"""


def read(folder: Path, text: str, **environment: str) -> Upstreams:
    path = folder / "overnight.toml"
    path.write_text(text, encoding="utf-8")
    return read_upstreams(path, FALLBACK, environment)


@pytest.fixture
def good(tmp_path: Path) -> Upstreams:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "hosted").write_text("sk-file\r\n\n")
    return read(tmp_path, GOOD, VLLM_KEY="sk-env")


def test_a_server_is_what_its_table_says(good: Upstreams) -> None:
    vllm = good.servers["vllm"]
    assert good.default is vllm
    assert (vllm.url, vllm.max_in_flight) == ("http://gpu1:8000/v1", 64)
    assert vllm.own_headers() == {"x-team": "batch work", "authorization": "Bearer sk-env"}
    assert vllm.call_timeout_seconds == 900
    assert vllm.endpoints == {CHAT, EMBEDDINGS}


def test_what_a_table_leaves_out_is_as_for_one_server(good: Upstreams) -> None:
    hosted = good.servers["hosted"]
    assert hosted.own_headers() == {"authorization": "Bearer sk-file"}
    assert hosted.max_in_flight is None
    assert (hosted.call_timeout_seconds, hosted.connect_timeout_seconds) == (600, 10)
    assert hosted.max_response_bytes == 1000
    assert hosted.endpoints == set(Endpoint)


@pytest.mark.parametrize(
    ("model", "server", "sent"),
    [
        ("llama-3.1", "vllm", None),
        ("llama", "vllm", "llama-3.1"),
        ("gpt-4o-mini", "vllm", "llama-3.1"),
        ("mistral", "hosted", "mistralai/Mistral"),
        ("m", "hosted", "mistralai/Mistral"),
        ("unknown", "vllm", None),
        (None, "vllm", None),
    ],
)
def test_a_model_leads_to_its_server(
    good: Upstreams, model: str | None, server: str, sent: str | None
) -> None:
    assert good.find(CHAT, model) == Route(good.servers[server], sent)


def test_what_a_server_may_not_be_called_at_is_refused(good: Upstreams) -> None:
    assert good.find(Endpoint.RESPONSES, "llama") == LineError(
        "invalid_value",
        "Invalid value: '/v1/responses'. Supported values for the model 'llama' are:"
        " '/v1/chat/completions' and '/v1/embeddings'.",
        "url",
    )
    assert isinstance(good.find(Endpoint.RESPONSES, "mistral"), Route)


def test_without_a_default_an_unknown_model_is_refused(tmp_path: Path) -> None:
    upstreams = read(tmp_path, '[upstreams.a]\nurl = "http://a/v1"\n[models.known]\nupstream = "a"')
    assert upstreams.find(CHAT, "X") == LineError(
        "model_not_found",
        "The provided model 'X' is not supported by the Batch API.",
        "body.model",
    )
    assert upstreams.find(Endpoint.MODERATIONS, None) == LineError(
        "invalid_request", "Model parameter is required.", "body.model"
    )


def test_the_models_that_go_to_none_of_the_busy_servers(good: Upstreams) -> None:
    of_vllm, of_hosted = ("llama-3.1", "llama", "gpt-4o-mini"), ("mistral", "m")
    assert good.models_without([]) == EVERY_MODEL
    # What nobody names goes to vllm, the default.
    assert good.models_without(["hosted"]) == ModelFilter(of_hosted)
    assert good.models_without(["vllm"]) == ModelFilter(of_hosted, are_meant=True)
    assert good.models_without(["vllm", "hosted"]) == ModelFilter((), are_meant=True)
    without = Upstreams(good.servers, None, good.routes)
    assert without.models_without(["vllm"]) == ModelFilter(of_vllm)


def test_no_key_and_no_header_is_in_a_repr(tmp_path: Path) -> None:
    text = '[upstreams.a]\nurl = "http://a/v1"\napi_key_env = "K"\nheaders = { x = "secret-x" }'
    upstreams = read(tmp_path, f'default = "a"\n{text}', K="secret-key")
    assert upstreams.servers["a"].own_headers() == {
        "x": "secret-x",
        "authorization": "Bearer secret-key",
    }
    assert "secret" not in repr(upstreams)


def test_an_authorization_of_ones_own_is_a_header(tmp_path: Path) -> None:
    table = 'url = "http://a/v1"\nheaders = { Authorization = "Basic abc" }'
    upstreams = read(tmp_path, f'default = "a"\n[upstreams.a]\n{table}')
    assert upstreams.servers["a"].own_headers() == {"authorization": "Basic abc"}


LIMITED = """
default = "a"
[upstreams.a]
url = "http://a/v1"
max_in_flight = 64
requests_per_minute = 500
active_hours = ["mon-fri 19:00-07:00", "sat,sun 00:00-24:00"]
time_zone = "Europe/Berlin"
metrics = "http://a:9100/all"
[upstreams.b]
url = "http://b/api/v1"
max_in_flight = 8
adaptive = false
active_hours = "22:00-06:00"
[upstreams.c]
url = "http://c/v1"
metrics = "off"
[models.big]
upstream = "a"
upstream_model = "org/big"
aliases = ["large"]
max_in_flight = 4
adaptive = false
tokens_per_minute = 1e5
[models.small]
upstream = "b"
max_in_flight = 2
[models.plain]
upstream = "a"
"""


@pytest.mark.parametrize(("said", "url"), [("true", "http://a/metrics"), ("false", None)])
def test_the_page_of_metrics_is_switched_as_people_would(
    tmp_path: Path, said: str, url: str | None
) -> None:
    text = f'default = "a"\n[upstreams.a]\nurl = "http://a/v1"\nmetrics = {said}\n'
    assert read(tmp_path, text).servers["a"].metrics_url == url


def test_the_limits_of_servers_and_models(tmp_path: Path) -> None:
    upstreams = read(tmp_path, LIMITED)
    a, b, c = (upstreams.servers[name] for name in "abc")
    assert a.flow == FlowLimits(max_in_flight=64, requests_per_minute=500)
    assert a.max_in_flight == 64
    assert b.flow == FlowLimits(max_in_flight=8, adaptive=False)
    assert c.flow == FlowLimits()
    assert a.active_hours is not None
    assert a.active_hours.texts == ("mon-fri 19:00-07:00", "sat,sun 00:00-24:00")
    assert a.active_hours.zone == ZoneInfo("Europe/Berlin")
    assert b.active_hours is not None
    assert b.active_hours.zone == ZoneInfo("UTC")
    assert c.active_hours is None
    assert [each.metrics_url for each in (a, b, c)] == [
        "http://a:9100/all",
        "http://b/api/metrics",
        None,
    ]
    # What a model leaves out is as for its server.
    big = FlowLimits(
        max_in_flight=4, adaptive=False, requests_per_minute=500, tokens_per_minute=100_000
    )
    assert upstreams.routes["big"] == Route(a, "org/big", big)
    assert upstreams.routes["large"].flow == big
    assert upstreams.routes["small"].flow == FlowLimits(max_in_flight=2, adaptive=False)
    assert upstreams.routes["plain"].flow is None


def test_a_model_s_limits_hold_by_the_name_that_its_server_has_for_it(tmp_path: Path) -> None:
    upstreams = read(tmp_path, LIMITED)
    found = upstreams.find(CHAT, "org/big")
    assert found == Route(upstreams.servers["a"], None, upstreams.routes["big"].flow)
    other = upstreams.find(CHAT, "org/other")
    assert other == Route(upstreams.servers["a"])


URL = 'url = "http://a/v1"'


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("", "[upstreams.a] needs url."),
        ("url = 8000", "[upstreams.a] url: it must be a valid string."),
        (
            'url = "gpu1:8000"',
            "[upstreams.a] url: it must be a URL such as http://localhost:8000/v1.",
        ),
        (
            'url = "http://gpu1:8000"',
            "[upstreams.a] url: it must end in /v1, as in http://gpu1:8000/v1.",
        ),
        (
            'url = "http://u:secret@gpu1/v1"',
            (
                "[upstreams.a] url: it must hold no user or password; a key belongs into api_key_env or"
                " api_key_file."
            ),
        ),
        (f'{URL}\nurls = "x"', "[upstreams.a] has no key 'urls'; did you mean 'url'?"),
        (
            f'{URL}\nqqqq = "x"',
            (
                "[upstreams.a] has no key 'qqqq'; there are url, api_key_env, api_key_file, headers,"
                " call_timeout_seconds, connect_timeout_seconds, endpoints, active_hours, time_zone,"
                " metrics, max_in_flight, adaptive, requests_per_minute, tokens_per_minute."
            ),
        ),
        (
            f'{URL}\napi_key = "sk-secret"',
            (
                "[upstreams.a]: a key does not belong into this file; name the variable that holds it by"
                " api_key_env, or the file by api_key_file."
            ),
        ),
        (
            f'{URL}\napi_key_env = "K"\napi_key_file = "f"',
            "[upstreams.a]: give one of api_key_env, api_key_file and an authorization header.",
        ),
        (
            f'{URL}\napi_key_env = "K"\nheaders = {{ authorization = "Bearer secret" }}',
            "[upstreams.a]: give one of api_key_env, api_key_file and an authorization header.",
        ),
        (
            f'{URL}\napi_key_env = "MISSING"',
            "[upstreams.a] api_key_env: the environment variable MISSING is not set.",
        ),
        (
            f'{URL}\napi_key_env = "EMPTY"',
            "[upstreams.a] api_key_env: the environment variable EMPTY is not set.",
        ),
        (
            f'{URL}\napi_key_env = "hf_secret"',
            "[upstreams.a] api_key_env: the environment variable of that name is not set.",
        ),
        (
            f'{URL}\napi_key_env = "sk-secret"',
            "[upstreams.a] api_key_env: it must be the name of an environment variable.",
        ),
        (
            f'{URL}\napi_key_env = "ODD"',
            (
                "[upstreams.a] api_key_env: the environment variable ODD holds no key: it may hold visible"
                " ASCII characters only."
            ),
        ),
        (
            f'{URL}\napi_key_file = "none"',
            "[upstreams.a] api_key_file: {folder}/none cannot be read (No such file or directory).",
        ),
        (
            f'{URL}\napi_key_file = "~nobody-here/key"',
            "[upstreams.a] api_key_file: ~nobody-here/key: there is no such home folder.",
        ),
        (f'{URL}\napi_key_file = "empty"', "[upstreams.a] api_key_file: {folder}/empty is empty."),
        (
            f'{URL}\napi_key_file = "odd"',
            "[upstreams.a] api_key_file: {folder}/odd holds no key: it is not text.",
        ),
        (
            f'{URL}\nheaders = {{ Host = "h" }}',
            "[upstreams.a] headers: 'Host' is Overnight's own to set.",
        ),
        (
            f'{URL}\nheaders = {{ Transfer-Encoding = "h" }}',
            "[upstreams.a] headers: 'Transfer-Encoding' is Overnight's own to set.",
        ),
        (
            f'{URL}\nheaders = {{ Content-Length = "1" }}',
            "[upstreams.a] headers: 'Content-Length' is Overnight's own to set.",
        ),
        (
            f'{URL}\nheaders = {{ x = "secret\\nb: c" }}',
            "[upstreams.a] headers: the value of 'x' may hold visible ASCII characters only.",
        ),
        (
            f'{URL}\nheaders = {{ x = "sécret" }}',
            "[upstreams.a] headers: the value of 'x' may hold visible ASCII characters only.",
        ),
        (
            f'{URL}\nheaders = {{ "a b" = "c" }}',
            "[upstreams.a] headers: 'a b' cannot be the name of a header.",
        ),
        (f'{URL}\nheaders = {{ x = "1", X = "2" }}', "[upstreams.a] headers: 'X' is there twice."),
        (f"{URL}\nheaders = {{ x = 1 }}", "[upstreams.a] headers: it must be a valid string."),
        (
            f"{URL}\nmax_in_flight = 0",
            "[upstreams.a] max_in_flight: it must be greater than 0.",
        ),
        (
            f'{URL}\nmax_in_flight = "8"',
            "[upstreams.a] max_in_flight: it must be a valid integer.",
        ),
        (
            f"{URL}\nmax_in_flight = true",
            "[upstreams.a] max_in_flight: it must be a valid integer.",
        ),
        (
            f"{URL}\nadaptive = 0",
            "[upstreams.a] adaptive: it must be a valid boolean.",
        ),
        (
            f"{URL}\nadaptive = false",
            (
                "[upstreams.a]: adaptive = false needs max_in_flight, which is then the number of"
                " calls."
            ),
        ),
        (
            f"{URL}\nrequests_per_minute = 0",
            "[upstreams.a] requests_per_minute: it must be greater than 0.",
        ),
        (
            f'{URL}\nrequests_per_minute = "60"',
            "[upstreams.a] requests_per_minute: it must be a valid number.",
        ),
        (
            f"{URL}\ntokens_per_minute = nan",
            "[upstreams.a] tokens_per_minute: it must be a finite number.",
        ),
        (
            f"{URL}\nactive_hours = 22",
            (
                "[upstreams.a] active_hours: it must be a text such as '22:00-06:00', or a list of"
                " such."
            ),
        ),
        (
            f'{URL}\nactive_hours = ["22:00-06:00", 1]',
            (
                "[upstreams.a] active_hours: it must be a text such as '22:00-06:00', or a list of"
                " such."
            ),
        ),
        (
            f'{URL}\nactive_hours = "22:00-26:00"',
            (
                "[upstreams.a] active_hours: '22:00-26:00' has no time '26:00' on a clock; there are"
                " 00:00 to 24:00."
            ),
        ),
        (
            f"{URL}\nactive_hours = []",
            (
                "[upstreams.a] active_hours: it must have one range at least, such as '22:00-06:00';"
                " leave it out for always."
            ),
        ),
        (
            f'{URL}\nactive_hours = "22:00-06:00"\ntime_zone = "Europe/Berln"',
            (
                "[upstreams.a] time_zone: there is no time zone 'Europe/Berln'; did you mean"
                " 'Europe/Berlin'?"
            ),
        ),
        (
            f'{URL}\ntime_zone = "Europe/Berlin"',
            "[upstreams.a]: time_zone is that of active_hours, which is not there.",
        ),
        (
            f'{URL}\nmetrics = "on"',
            (
                "[upstreams.a] metrics: it must be 'auto', 'off', or a URL such as"
                " http://localhost:8000/metrics."
            ),
        ),
        (
            f'{URL}\nmetrics = "http://u:secret@gpu1/metrics"',
            "[upstreams.a] metrics: it must hold no user or password.",
        ),
        (f"{URL}\nmetrics = 1", "[upstreams.a] metrics: it must be a valid string."),
        (
            f"{URL}\ncall_timeout_seconds = inf",
            "[upstreams.a] call_timeout_seconds: it must be a finite number.",
        ),
        (
            f"{URL}\ncall_timeout_seconds = -1",
            "[upstreams.a] call_timeout_seconds: it must be greater than 0.",
        ),
        (
            f"{URL}\nendpoints = []",
            "[upstreams.a] endpoints: it must name one at least; leave it out to allow all.",
        ),
        (
            f'{URL}\nendpoints = ["/v1/chat/completion"]',
            (
                "[upstreams.a] endpoints: there is no '/v1/chat/completion'; did you mean"
                " '/v1/chat/completions'?"
            ),
        ),
    ],
)
def test_a_mistake_in_a_server_s_table(tmp_path: Path, table: str, sentence: str) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "odd").write_bytes(b"\xff")
    with pytest.raises(UpstreamsFileError) as caught:
        read(
            tmp_path, f'default = "a"\n[upstreams.a]\n{table}\n', K="k", EMPTY=" ", ODD="schlüssel"
        )
    assert str(caught.value) == f"{tmp_path}/overnight.toml: {sentence.format(folder=tmp_path)}"
    assert "secret" not in str(caught.value)


A = f"[upstreams.vllm]\n{URL}\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "it needs at least one [upstreams.NAME]."),
        ("[upstreams]", "it needs at least one [upstreams.NAME]."),
        ("upstreams = 1", "upstreams: it must be a valid dictionary."),
        (f"{A}[upstream.b]\nurl = 1", "it has no key 'upstream'; did you mean 'upstreams'?"),
        (A, "it names neither a default nor a model, so that every batch would be refused."),
        (f'default = "vlm"\n{A}', "default: there is no server 'vlm'; did you mean 'vllm'?"),
        (f'default = "zzz"\n{A}', "default: there is no server 'zzz'."),
        (f"default = 1\n{A}", "default: it must be a valid string."),
        (
            f'{A}[models.m]\nupstream = "vllm"\ndefault = "vllm"',
            "[models.m] has no key 'default'; it belongs above the first table of the file.",
        ),
        (f"{A}[models.m]\naliases = []", "[models.m] needs upstream."),
        (
            f'{A}[models.m]\nupstream = "vlllm"',
            "[models.m] upstream: there is no server 'vlllm'; did you mean 'vllm'?",
        ),
        (
            f'{A}[models.m]\nupstream = "vllm"\nalias = ["x"]',
            "[models.m] has no key 'alias'; did you mean 'aliases'?",
        ),
        (
            f'{A}[models.m]\nupstream = "vllm"\nactive_hours = "22:00-06:00"',
            (
                "[models.m] has no key 'active_hours'; there are upstream, aliases, upstream_model,"
                " max_in_flight, adaptive, requests_per_minute, tokens_per_minute."
            ),
        ),
        (
            f'{A}[models.m]\nupstream = "vllm"\nadaptive = false',
            "[models.m]: adaptive = false needs max_in_flight, which is then the number of calls.",
        ),
        (
            f'{A}max_in_flight = 8\n[models.m]\nupstream = "vllm"\nmax_in_flight = 9',
            (
                "[models.m] max_in_flight: it must be 8 at most, as for all models of"
                " [upstreams.vllm]."
            ),
        ),
        (
            (
                f'{A}[models.m]\nupstream = "vllm"\nmax_in_flight = 9\n'
                '[models.n]\nupstream = "vllm"\nupstream_model = "m"'
            ),
            ("[models.n] is the same model there as [models.m] and must have the same limits."),
        ),
        (
            f'{A}[models.m]\nupstream = "vllm"\naliases = "x"',
            "[models.m] aliases: it must be a valid list.",
        ),
        (
            f'{A}[models.llama-3.1-8b]\nupstream = "vllm"',
            (
                "[models.llama-3] needs upstream. {file}: [models.llama-3] has no table '1-8b'; a name with"
                ' a dot needs quotes, as in [models."llama-3.1-8b"].'
            ),
        ),
        (
            f'{A}[models.a]\nupstream = "vllm"\n[models.b]\nupstream = "vllm"\naliases = ["a"]',
            "[models.b]: 'a' is there twice.",
        ),
        (
            f'{A}[models.a]\nupstream = "vllm"\naliases = ["b"]\n[models.b]\nupstream = "vllm"',
            "[models.a]: 'b' is there twice.",
        ),
        (
            f'{A}[models.a]\nupstream = "vllm"\naliases = ["a"]',
            "[models.a]: 'a' is there twice.",
        ),
        (
            f'{A}[models.a]\nupstream = "vllm"\naliases = ["x\\u0000"]',
            "[models.a] aliases: 'x\\x00' cannot be the name of a model.",
        ),
        (
            f'{A}[models.""]\nupstream = "vllm"',
            "[models.\"\"]: '' cannot be the name of a model.",
        ),
        (
            f'default = "a b"\n[upstreams."a b"]\n{URL}',
            (
                "[upstreams.\"a b\"]: a server's name has letters, digits, '-' and '_', and 64 of them at"
                " most."
            ),
        ),
        (
            'default = "a"\n[upstreams.a]\n[models.m]\nupstream = 1',
            "[upstreams.a] needs url. {file}: [models.m] upstream: it must be a valid string.",
        ),
    ],
)
def test_a_mistake_in_the_file(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(UpstreamsFileError) as caught:
        read(tmp_path, text)
    file = f"{tmp_path}/overnight.toml"
    assert str(caught.value) == f"{file}: {sentence.format(file=file)}"


def test_what_is_no_toml_is_told_by_its_line(tmp_path: Path) -> None:
    with pytest.raises(UpstreamsFileError, match=r"overnight\.toml is not TOML: .*line 2"):
        read(tmp_path, 'default = "a"\nurl: 1')


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UpstreamsFileError, match=r"none cannot be read \(No such file"):
        read_upstreams(tmp_path / "none", FALLBACK, {})
    (tmp_path / "latin").write_bytes(b"# \xe9")
    with pytest.raises(UpstreamsFileError, match="latin is not UTF-8"):
        read_upstreams(tmp_path / "latin", FALLBACK, {})


def settings(**values: Any) -> UpstreamSettings:
    return UpstreamSettings.model_validate(values)


def test_without_a_file_one_server_takes_every_model() -> None:
    upstreams = settings(upstream_url="http://m/v1", upstream_api_key="k").upstreams()
    route = upstreams.find(CHAT, "any")
    assert isinstance(route, Route)
    assert route.server is upstreams.servers["default"]
    assert route.model is None
    assert route.server.own_headers() == {"authorization": "Bearer k"}


def test_the_one_server_has_limits_too() -> None:
    plain = settings(upstream_url="http://m/v1").upstreams().servers["default"]
    assert (plain.flow, plain.active_hours) == (FlowLimits(), None)
    assert plain.metrics_url == "http://m/metrics"
    server = (
        settings(
            upstream_url="http://m/v1",
            upstream_max_in_flight="16",
            upstream_adaptive="false",
            upstream_requests_per_minute="90.5",
            upstream_tokens_per_minute="1000",
            upstream_active_hours="mon-fri 19:00-07:00; sat,sun 00:00-24:00",
            upstream_time_zone="Asia/Kolkata",
            upstream_metrics="off",
        )
        .upstreams()
        .servers["default"]
    )
    assert server.flow == FlowLimits(
        max_in_flight=16, adaptive=False, requests_per_minute=90.5, tokens_per_minute=1000
    )
    assert str(server.active_hours) == "mon-fri 19:00-07:00; sat,sun 00:00-24:00 (Asia/Kolkata)"
    assert server.metrics_url is None


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        (
            "adaptive",
            "false",
            (
                "OVERNIGHT_UPSTREAM_ADAPTIVE=false needs OVERNIGHT_UPSTREAM_MAX_IN_FLIGHT, which is"
                " then the number of calls."
            ),
        ),
        (
            "active_hours",
            "always",
            (
                "OVERNIGHT_UPSTREAM_ACTIVE_HOURS: 'always' must be a range such as '22:00-06:00',"
                " 'mon-fri 19:00-07:00' or 'sat,sun 00:00-24:00'."
            ),
        ),
        (
            "time_zone",
            "Berlin",
            (
                "OVERNIGHT_UPSTREAM_TIME_ZONE: there is no time zone 'Berlin'; did you mean"
                " 'Europe/Berlin'?"
            ),
        ),
        (
            "metrics",
            "yes",
            (
                "OVERNIGHT_UPSTREAM_METRICS: it must be 'auto', 'off', or a URL such as"
                " http://localhost:8000/metrics."
            ),
        ),
        (
            "tokens_per_minute",
            "inf",
            "OVERNIGHT_UPSTREAM_TOKENS_PER_MINUTE: Input should be a finite number.",
        ),
    ],
)
def test_a_mistake_in_the_limits_of_the_one_server(name: str, value: str, sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        settings(upstream_url="http://m/v1", **{f"upstream_{name}": value})
    assert list(explain_settings(caught.value)) == [sentence]


@pytest.mark.parametrize("value", ["", "/metrics", "ftp://m/metrics", "http://m:x/", "http://"])
def test_what_is_no_place_of_metrics(value: str) -> None:
    with pytest.raises(ValueError, match="it must be 'auto', 'off', or a URL"):
        find_metrics_url(value, "http://m/v1")


def test_the_file_wins_over_the_url(tmp_path: Path) -> None:
    (tmp_path / "o.toml").write_text(f'default = "a"\n[upstreams.a]\n{URL}')
    upstreams = settings(
        config=tmp_path / "o.toml",
        upstream_url="http://other/v1",
        upstream_api_key="k",
        call_timeout_seconds=7,
    ).upstreams()
    assert {name: each.url for name, each in upstreams.servers.items()} == {"a": "http://a/v1"}
    assert upstreams.servers["a"].own_headers() == {}
    assert upstreams.servers["a"].call_timeout_seconds == 7


def test_a_mistake_in_the_file_is_one_of_the_settings(tmp_path: Path) -> None:
    (tmp_path / "o.toml").write_text("")
    with pytest.raises(ValidationError, match=r"needs at least one \[upstreams.NAME\]"):
        settings(config=tmp_path / "o.toml")
    with pytest.raises(ValidationError, match="OVERNIGHT_UPSTREAM_URL is not set"):
        settings()


def test_the_example_makes_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTED_API_KEY", "k")
    path = Path(__file__).parents[2] / "examples" / "overnight.toml"
    upstreams = settings(config=path).upstreams()
    assert set(upstreams.servers) == {"vllm", "hosted"}
    assert "llama" in upstreams.routes
