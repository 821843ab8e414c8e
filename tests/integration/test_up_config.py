"""`overnight up` with a file of model servers: real processes, from upload to results."""

from pathlib import Path

import pytest

from cli.simulator.hosting import simulated_server
from tests.fixtures.engine import KEY, engine_in

pytestmark = pytest.mark.timeout(240)


def test_the_engine_calls_the_servers_of_its_file(tmp_path: Path) -> None:
    file = tmp_path / "overnight.toml"
    (tmp_path / "key").write_text("sk-of-the-server\n")
    with simulated_server(api_key="sk-of-the-server", remember=1000) as server:
        file.write_text(
            f'[upstreams.here]\nurl = "{server.url}"\napi_key_file = "key"\n'
            '[models.real]\nupstream = "here"\naliases = ["m"]\n'
        )
        with engine_in(tmp_path, OVERNIGHT_CONFIG=str(file)) as engine:
            with engine.client as client:
                listed = client.get("models").raise_for_status().json()["data"]
            assert [(each["id"], each["owned_by"]) for each in listed] == [
                ("real", "here"),
                ("m", "here"),
            ]
            batch = engine.wait_for_end(engine.create_batch(20))
            assert batch["request_counts"] == {"total": 20, "completed": 20, "failed": 0}
            lines = engine.lines_of(batch["output_file_id"])
            assert {line["response"]["body"]["model"] for line in lines} == {"real"}
            # The one that is given by its URL is not used.
            assert engine.witness.calls() == {}
            assert engine.stop() == 0
    said = (tmp_path / "up.log").read_text()
    assert f"Model servers are those of {file}" in said
    assert "Dashboard     http://127.0.0.1:" in said
    assert f"Model server  here {server.url}" in said
    everything = said + "".join(
        log.read_text() for log in (engine.data_folder / "logs").glob("*.log")
    )
    assert "sk-of-the-server" not in everything
    assert KEY not in everything
