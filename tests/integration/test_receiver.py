"""Calling a receiver: what counts as an answer, and where a webhook never goes."""

import asyncio
import shutil
import socket
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from models.errors import InvalidParameter, ReceiverUnreachable
from models.receiver import Receiver
from models.settings import WebhookSettings
from models.signing import new_secret
from tests.fixtures.runtime import Reply, Request, ScriptedServer, wait_until

PUBLIC = "93.184.215.14"


def settings(**changes: Any) -> WebhookSettings:
    return WebhookSettings.model_validate({"webhook_timeout_seconds": 5} | changes)


class Names:
    """A resolver that answers from a list, one entry a question; the last one for ever."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append((host, port))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if not answer:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return answer


async def call(receiver: Receiver, url: str) -> int:
    return await receiver.call(url, webhook_id="wh_1", body=b"{}", secrets=[new_secret()])


@pytest.fixture
async def open_receiver(scripted: ScriptedServer) -> tuple[Receiver, str]:
    """A caller that may call this machine, and a URL there."""
    return Receiver(settings(webhook_allow_private=True)), f"{scripted.url}/hook?a=b"


@pytest.mark.parametrize("status", [200, 204, 299, 301, 307, 400, 410, 500])
async def test_the_answer_is_its_status(
    open_receiver: tuple[Receiver, str], scripted: ScriptedServer, status: int
) -> None:
    receiver, url = open_receiver
    scripted.replies = [Reply(status, b"", {"location": scripted.url + "/elsewhere"})]
    assert await call(receiver, url) == status
    # A redirect is not followed.
    assert [request.path for request in scripted.requests] == ["/v1/hook?a=b"]
    assert scripted.requests[0].body == b"{}"


async def test_nothing_is_sent_but_what_is_meant(
    open_receiver: tuple[Receiver, str], scripted: ScriptedServer
) -> None:
    receiver, url = open_receiver
    scripted.replies = [Reply(200, b"", {"set-cookie": "a=b"}), Reply(200, b"")]
    for _ in range(2):
        await call(receiver, url)
    expected = {"host", "accept", "content-length", "content-type", "user-agent"}
    expected |= {"webhook-id", "webhook-timestamp", "webhook-signature", "connection"}
    for request in scripted.requests:
        assert set(request.headers) - expected == set()


async def test_a_huge_answer_is_not_read(
    open_receiver: tuple[Receiver, str], scripted: ScriptedServer
) -> None:
    receiver, url = open_receiver
    scripted.replies = [Reply(200, b"x", {"content-length": str(10**12)})]
    assert await call(receiver, url) == 200


async def test_a_compressed_answer_is_not_unpacked(
    open_receiver: tuple[Receiver, str], scripted: ScriptedServer
) -> None:
    receiver, url = open_receiver
    scripted.replies = [Reply(202, b"no gzip", {"content-encoding": "gzip"})]
    assert await call(receiver, url) == 202


@pytest.mark.parametrize(
    "reply",
    [
        Reply(raw=b"", closes=True),
        Reply(raw=b"SSH-2.0-OpenSSH_9.9\r\n\r\n", closes=True),
        Reply(raw=b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000 + b"\r\n\r\n", closes=True),
        Reply(raw=b"HTTP/1.1 9999 OK\r\n\r\n", closes=True),
        Reply(raw=b"HTTP/1.1 200", closes=True),
    ],
    ids=["nothing", "no HTTP", "a long header", "no status", "half an answer"],
)
async def test_what_is_no_answer(
    open_receiver: tuple[Receiver, str], scripted: ScriptedServer, reply: Reply
) -> None:
    receiver, url = open_receiver
    scripted.replies = [reply]
    with pytest.raises(ReceiverUnreachable):
        await call(receiver, url)


async def test_a_receiver_that_hangs(scripted: ScriptedServer) -> None:
    async def hang(_: Request) -> Reply:
        await asyncio.Event().wait()
        raise AssertionError

    scripted.script = hang
    # On a machine that is busy, even the request may take longer than a short patience.
    for seconds in (0.2, 2, 20):
        limits = settings(webhook_allow_private=True, webhook_timeout_seconds=seconds)
        with pytest.raises(ReceiverUnreachable, match="no answer in time"):
            await call(Receiver(limits), scripted.url)
        if scripted.requests:
            break
    assert len(scripted.requests) == 1


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost, and its key beside it, that nobody has reason to trust."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not there to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    argv = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost"
    argv += " -addext subjectAltName=DNS:localhost -keyout key.pem -out cert.pem"
    subprocess.run([openssl, *argv.split()], cwd=folder, check=True, capture_output=True)
    return folder / "cert.pem"


async def test_a_certificate_has_to_be_valid_for_the_host(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n"))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        writer.close()

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    receiver = Receiver(settings(webhook_allow_private=True), resolve=Names(["127.0.0.1"]))
    async with server:
        with pytest.raises(ReceiverUnreachable, match="Certificate"):
            await call(receiver, f"https://localhost:{port}/")
        trusting = ssl.create_default_context(cafile=str(certificate))
        monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", trusting)
        with pytest.raises(ReceiverUnreachable, match="Certificate"):
            await call(receiver, f"https://another.example:{port}/")
        assert heard == []
        # The address was looked up and checked; the name is what is asked of the certificate.
        assert await call(receiver, f"https://localhost:{port}/") == 204
        assert heard == [b"POST / HTTP/1.1\r\n"]


async def test_a_name_server_that_hangs() -> None:
    async def hang(_: str, __: int) -> list[str]:
        await asyncio.Event().wait()
        raise AssertionError

    receiver = Receiver(settings(webhook_timeout_seconds=0.2), resolve=hang)
    with pytest.raises(ReceiverUnreachable, match="no answer in time"):
        await call(receiver, "https://receiver.example/hook")


async def test_name_servers_that_hang_hold_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stuck lookup keeps its thread for half a minute: three rounds of the most at a time."""
    released = threading.Event()

    def look_up(host: str, _: int) -> list[str]:
        if host != "well.example":
            released.wait()
        return [PUBLIC]

    monkeypatch.setattr("models.receiver._getaddrinfo", look_up)
    receiver = Receiver(settings(webhook_timeout_seconds=0.1))
    stuck = (call(receiver, f"https://stuck-{n}.example/hook") for n in range(3 * 32))
    try:
        for outcome in await asyncio.gather(*stuck, return_exceptions=True):
            assert isinstance(outcome, ReceiverUnreachable)
        await receiver.check("https://well.example/hook")
    finally:
        released.set()


async def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ReceiverUnreachable):
        await call(Receiver(settings(webhook_allow_private=True)), f"http://127.0.0.1:{port}/")


async def test_a_name_that_leads_inside_the_second_time(
    scripted: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: public when it is looked at, this very machine when it is called."""
    port = int(scripted.url.rpartition(":")[2].removesuffix("/v1"))
    names = Names([PUBLIC], ["127.0.0.1"])
    receiver = Receiver(settings(), resolve=names)
    url = f"https://receiver.example:{port}/hook"
    await receiver.check(url)
    with pytest.raises(ReceiverUnreachable):
        await call(receiver, url)
    assert names.asked == [("receiver.example", port)] * 2
    assert scripted.accepted == 0

    # The witness: with the gate open, this is how it would have arrived.
    monkeypatch.setattr(receiver, "_may_call", lambda _: True)
    calling = asyncio.create_task(call(receiver, url))
    await wait_until(lambda: scripted.accepted == 1)
    calling.cancel()  # it speaks no TLS, and would be waited for


async def test_the_last_gate_is_at_the_socket(scripted: ScriptedServer) -> None:
    """Even if the resolver were passed by, as it is for a numeric host."""
    port = int(scripted.url.rpartition(":")[2].removesuffix("/v1"))
    for host in ("127.0.0.1", "[::ffff:127.0.0.1]", "[::1]"):
        with pytest.raises(ReceiverUnreachable):
            await call(Receiver(settings()), f"https://{host}:{port}/hook")
    assert scripted.accepted == 0


async def test_one_inner_address_spoils_all() -> None:
    receiver = Receiver(settings(), resolve=Names([PUBLIC, "10.0.0.1"]))
    with pytest.raises(InvalidParameter):
        await receiver.check("https://receiver.example/")
    with pytest.raises(ReceiverUnreachable):
        await call(receiver, "https://receiver.example/")


async def test_plain_http_is_not_called_once_it_is_forbidden(scripted: ScriptedServer) -> None:
    with pytest.raises(ReceiverUnreachable, match="forbidden URL"):
        await call(Receiver(settings(), resolve=Names([PUBLIC])), scripted.url)
    assert scripted.accepted == 0


@pytest.mark.parametrize(
    "url",
    [
        "https://receiver.example",
        "https://receiver.example/hook?token=a%20b",
        "https://receiver.example:8443/hook",
        "HTTPS://Receiver.Example/",
        "https://bücher.example/ä",
        f"https://{PUBLIC}/",
        "https://[2606:4700:4700::1111]/",
    ],
)
async def test_urls_that_are_taken(url: str) -> None:
    host = "2606:4700:4700::1111" if "[" in url else PUBLIC
    await Receiver(settings(), resolve=Names([host])).check(url)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "expected an HTTPS URL"),
        ("receiver.example", "expected an HTTPS URL"),
        ("/hook", "expected an HTTPS URL"),
        ("//receiver.example/hook", "expected an HTTPS URL"),
        ("https:receiver.example", "expected an HTTPS URL"),
        ("https:///hook", "expected an HTTPS URL"),
        ("http://receiver.example/", "expected an HTTPS URL"),
        ("ftp://receiver.example/", "expected an HTTPS URL"),
        ("file:///etc/passwd", "expected an HTTPS URL"),
        ("javascript:alert(1)", "expected an HTTPS URL"),
        ("https://receiver.example:0/", "expected an HTTPS URL"),
        ("https://receiver.example:99999/", "expected a valid URL"),
        ("https://receiver.example:x/", "expected a valid URL"),
        ("https://[::1/", "expected a valid URL"),
        ("https://[receiver]/", "expected a valid URL"),
        (
            "https://receiver.example\\@127.0.0.1/",
            "expected a URL without spaces or control characters",
        ),
        ("https://receiver.example /", "expected a URL without spaces or control characters"),
        (
            "https://receiver.example/\r\nx: y",
            "expected a URL without spaces or control characters",
        ),
        ("https://receiver.example/\0", "expected a URL without spaces or control characters"),
        ("https://user@receiver.example/", "a URL with a user or a password is not supported"),
        ("https://user:pw@receiver.example/", "a URL with a user or a password is not supported"),
        ("https://:pw@receiver.example/", "a URL with a user or a password is not supported"),
        ("https://receiver.example/#top", "a URL with a fragment is not supported"),
    ],
)
async def test_urls_that_are_refused(url: str, reason: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        await Receiver(settings(), resolve=Names([PUBLIC])).check(url)
    assert refused.value.message == f"Invalid 'url': {reason}."
    assert (refused.value.param, refused.value.code) == ("url", "invalid_value")


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "①②⑦.⓪.⓪.①",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "169.254.169.254",
        "10.0.0.1",
        "100.64.0.1",
        "[fe80::1]",
        "[fd00::1]",
        "nowhere.invalid",
        "a..b",
        "a" * 70,
    ],
)
async def test_hosts_that_are_refused_in_the_same_words(host: str) -> None:
    """By the system's own resolver, which takes numbers in many forms."""
    with pytest.raises(InvalidParameter) as refused:
        await Receiver(settings()).check(f"https://{host}/hook")
    assert refused.value.message == (
        "Invalid 'url': its host does not resolve to a public address."
    )
    with pytest.raises(ReceiverUnreachable):
        await call(Receiver(settings()), f"https://{host}/hook")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/", "https://nowhere.invalid/", "http://[::1]/"]
)
async def test_all_addresses_are_taken_where_private_ones_are_allowed(url: str) -> None:
    await Receiver(settings(webhook_allow_private=True)).check(url)
