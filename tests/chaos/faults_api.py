"""What can be done to the API in the middle of a request, and what a patient client then does."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.chaos.trial import Trial
from tests.factories import input_file


def api_mid_upload(trial: Trial) -> None:
    """SIGKILL of the API in the middle of an upload, which the client then repeats."""
    key, content = trial.name, input_file(trial.lines)
    cut = trial.rng.randrange(len(content))
    boundary = "chaos"
    head = (
        f'--{boundary}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        f'--{boundary}\r\ncontent-disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
    ).encode()

    def pieces() -> Iterator[bytes]:
        yield head + content[:cut]
        time.sleep(0.05)
        trial.system.processes("api")[0].kill()
        yield content[cut:] + f"\r\n--{boundary}--\r\n".encode()

    headers = {
        "content-type": f"multipart/form-data; boundary={boundary}",
        "idempotency-key": key,
    }
    trial.stage_hit = "uploading"
    try:
        response = trial.system.client.post("files", content=pieces(), headers=headers)
        trial.complaints.append(f"answered although killed: {response.status_code}")
    except httpx.TransportError:
        pass
    began = time.monotonic()
    trial.create(key=key)
    trial.takeover_seconds = time.monotonic() - began


def api_mid_create(trial: Trial) -> None:
    """SIGKILL of the API while it creates the batch; the client repeats the request with its key."""
    key = trial.name
    file_id = trial.upload(key)
    victim = trial.system.processes("api")[0]
    trial.stage_hit = "creating"
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(trial.create_from, file_id, key=key)
        time.sleep(trial.rng.uniform(0, 0.03))
        victim.kill()
        began = time.monotonic()
        made.result()
    trial.takeover_seconds = time.monotonic() - began
    row = trial.connection.execute(
        "SELECT count(*) FROM batches WHERE input_file_id = %s", [file_id]
    ).fetchone()
    if row != (1,):
        trial.complaints.append(f"{row} batches of one request")


def api_mid_download(trial: Trial) -> None:
    """SIGKILL of the API while a client reads the output; the client then reads all of it again."""
    trial.prepare()
    trial.wait_for_end(seconds=60)
    batch = trial.system.ask("GET", f"batches/{trial.batch_id}").json()
    trial.stage_hit = "downloading"
    whole = trial.system.ask("GET", f"files/{batch['output_file_id']}/content").content
    part = b""
    try:
        with trial.system.client.stream(
            "GET", f"files/{batch['output_file_id']}/content"
        ) as answer:
            for piece in answer.iter_raw(4096):
                part += piece
                if len(part) == len(piece):
                    trial.system.processes("api")[0].kill()
        if part != whole:
            trial.complaints.append("a download was cut short, and looked whole")
    except httpx.TransportError:
        pass
    if not whole.startswith(part):
        trial.complaints.append("a part of a download differs from the file")
    began = time.monotonic()
    trial.system.ask("GET", f"batches/{trial.batch_id}")
    trial.takeover_seconds = time.monotonic() - began
