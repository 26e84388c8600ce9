"""Proxies, certificates, tokens, folders and timeouts from the environment: what works, and what is one line."""

# ruff: noqa: F811 (fixtures of test_cli come as arguments)

from __future__ import annotations

import gc
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer

import huggingface_hub
import pytest
from huggingface_hub import constants

from eft_local.errors import DownloadError, UsageError
from eft_local.hub import HubName, environment, remote
from eft_local.hub.pull import pull
from eft_local.hub.remote import Hub
from eft_local.hub.transfer import Patience
from tests.cli.test_commands import Run, emulators, home, run  # noqa: F401
from tests.helpers.hub_server import HubServer, Repo, serving
from tests.helpers.socks_server import serving_socks

pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

REPO = "org/Model-GGUF"
CONTENT = b"GGUF" * 10_000
NAME = HubName(REPO, "Q4_0")
PATIENT = Patience(tries=4, first=0.001)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """None of the machine's own settings, and no connections of other tests."""
    for name in os.environ:
        if name.upper().endswith("_PROXY") or name.startswith(("HF_", "HUGGING", "SSL")) or name.endswith("_CA_BUNDLE"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "hf" / "stored_tokens"))
    huggingface_hub.close_session()
    yield
    huggingface_hub.close_session()
    gc.collect()  # a SOCKS connection that fails is not closed by the HTTP library


@pytest.fixture
def server() -> Iterator[HubServer]:
    with serving({REPO: Repo([{"m.Q4_0.gguf": CONTENT}])}) as hub:
        yield hub


@pytest.fixture
def hub(server: HubServer, tmp_path: Path) -> Hub:
    return Hub(server.url, tmp_path / "hub")


# Proxies


@pytest.mark.parametrize("login", [None, ("us%r", "p@ss")], ids=["open", "with a password"])
@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
@pytest.mark.parametrize("variable", ["ALL_PROXY", "http_proxy"])
def test_models_come_through_a_socks_proxy(
    server: HubServer,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    scheme: str,
    login: tuple[str, str] | None,
) -> None:
    with serving_socks(login) as proxy:
        monkeypatch.setenv(variable, f"{scheme}://{'us%25r:p%40ss@' if login else ''}{proxy.address}")
        environment.check_network()
        (pulled,) = pull([NAME], hub, patience=PATIENT)
        assert pulled.path.read_bytes() == CONTENT
        assert {f"http://{host}:{port}" for host, port in proxy.connected} == {server.url, server.cdn}


def test_no_proxy_goes_past_it(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "localhost, 127.0.0.1,.local,[::1],10.0.0.0/8,*.example.com,https://x:1,[::1")
    with serving_socks() as proxy:
        monkeypatch.setenv("ALL_PROXY", f"socks5://{proxy.address}")
        pull([NAME], hub, patience=PATIENT)
        assert proxy.connected == []


def test_a_proxy_that_refuses_a_password_is_not_asked_again(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving_socks(("user", "right")) as proxy:
        monkeypatch.setenv("ALL_PROXY", f"socks5://user:wrong@{proxy.address}")
        with pytest.raises(DownloadError) as caught:
            pull([NAME], hub, patience=PATIENT)
    reported = str(caught.value)
    assert f"through the proxy socks5://…@{proxy.address} (ALL_PROXY) failed" in reported
    assert "http://USER:PASSWORD@proxy:8080" in reported
    assert "in a row" not in reported
    assert "wrong" not in reported


def test_a_proxy_that_cannot_be_reached_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("http_proxy", f"127.0.0.1:{port}")
    with pytest.raises(DownloadError, match=rf"through the proxy 127.0.0.1:{port} \(http_proxy\) failed .* 4 times"):
        pull([NAME], hub, patience=PATIENT)


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """A server that says the same to everybody; its address."""

    class Web(BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(answer)
            self.request.recv(10_000)

    with ThreadingTCPServer(("127.0.0.1", 0), Web) as web:
        threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"127.0.0.1:{web.server_address[1]}"
        web.shutdown()


def test_what_is_no_socks_proxy_is_said(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as address:
        monkeypatch.setenv("all_proxy", f"socks5://{address}")
        with pytest.raises(DownloadError, match=r"\(all_proxy\) failed \(it does not answer as a SOCKS5 proxy does\)"):
            pull([NAME], hub, patience=PATIENT)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_wants_a_password_is_not_asked_again(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    with answering(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n") as address:
        monkeypatch.setenv(f"{scheme}_proxy", f"http://user:secret@{address}")
        requested = Hub(f"{scheme}://127.0.0.1:9", hub.folder)
        with pytest.raises(DownloadError, match="as http://USER:PASSWORD@proxy:8080") as caught:
            pull([NAME], requested, patience=PATIENT)
    reported = str(caught.value)
    assert f"through the proxy http://…@{address} ({scheme}_proxy)" in reported
    assert "in a row" not in reported
    assert "secret" not in reported


# Values that no request can be made with


@pytest.mark.parametrize(
    ("variable", "value", "reported"),
    [
        ("ALL_PROXY", "socks4://127.0.0.1:1080", "socks4 proxies cannot be used, only http, https, socks5, socks5h"),
        ("all_proxy", "socks://127.0.0.1:1080", "socks proxies cannot be used"),
        ("HTTPS_PROXY", "ftp://user:secret@proxy:21", "ftp proxies cannot be used"),
        ("HTTPS_PROXY", "http://proxy:port", "a proxy's address is needed, as http://proxy:8080"),
        ("HTTPS_PROXY", "http://proxy:99999", "a proxy's address is needed"),
        ("https_proxy", "proxy:80 80", "a proxy's address is needed"),
        ("HTTP_PROXY", "http://user:secret/@proxy:8080", "a proxy's address is needed"),
        ("HTTP_PROXY", "http://proxy:8080\r", "a proxy's address is needed"),
        ("HTTP_PROXY", "http://", "a proxy's address is needed"),
        ("HTTP_PROXY", "http://[::1:8080", "a proxy's address is needed"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "abc", "a whole number of seconds is needed"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "", "a whole number of seconds is needed"),
        ("HF_HUB_ETAG_TIMEOUT", "1.5", "a whole number of seconds is needed"),
        ("HF_HUB_ETAG_TIMEOUT", "-1", "a number of seconds is needed"),
        ("SSL_CERT_FILE", "/nowhere/ca.pem", "certificates that can be used (No such file or directory)"),
        ("SSL_CERT_FILE", __file__, "no file of certificates that can be used"),
        ("SSL_CERT_DIR", "/nowhere", "there is no such folder"),
        ("SSLKEYLOGFILE", "/nowhere/keys", "this file cannot be written to"),
        ("SSLKEYLOGFILE", str(Path(__file__).parent), "this file cannot be written to"),
        ("HF_ENDPOINT", "huggingface.co", "an address with http:// or https:// is needed"),
        ("HF_ENDPOINT", "", "an address with http:// or https:// is needed"),
        ("HF_ENDPOINT", "https://", "an address with http:// or https:// is needed"),
        ("HF_ENDPOINT", "https://hub:port", "an address with http:// or https:// is needed"),
        ("HF_ENDPOINT", "https://huggingface.co ", "an address with http:// or https:// is needed"),
        ("HF_HOME", "", "a folder is needed"),
        ("HF_HOME", __file__, f"{__file__} is not a folder"),
        ("HF_HUB_CACHE", f"{__file__}/hub", f"{__file__} is not a folder"),
    ],
)
def test_a_value_that_cannot_be_used_is_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, reported: str
) -> None:
    monkeypatch.setenv(variable, value)
    ran = run("pull", "org/repo:Q4_0")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"eft: {variable}=")
    assert f"{reported}" in ran.err
    assert "unset it" in ran.err
    assert ran.err.count("\n") == 1
    assert "secret" not in ran.err


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HTTPS_PROXY", "proxy:8080"),
        ("HTTPS_PROXY", "http://user:p%40ss@proxy:8080/"),
        ("HTTPS_PROXY", "https://[::1]:8080"),
        ("ALL_PROXY", "socks5h://proxy"),
        ("ALL_PROXY", ""),
        ("NO_PROXY", "[::1"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "30"),
        ("HF_ENDPOINT", "https://mirror.example/hf/"),
        ("SSL_CERT_DIR", f"/nowhere:{Path(__file__).parent}"),
        ("SSL_CERT_FILE", ""),
        ("SSLKEYLOGFILE", "keys"),
        ("SSLKEYLOGFILE", os.devnull),
        ("HF_TOKEN", "hf_abc\r\n"),
        ("HF_TOKEN", ""),
    ],
)
def test_values_that_can_be_used_are_left_alone(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    Hub.configured()


@pytest.mark.parametrize("value", ["ключ", "hf_abc\x07", "two words", "hf_“abc”"])
def test_a_token_that_no_header_can_hold_is_reported_and_never_shown(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", value)
    ran = run("pull", "org/repo:Q4_0")
    assert ran.code == 2
    assert ran.err.startswith("eft: the token of HF_TOKEN has letters that no token has")
    assert value not in ran.err
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_bytes(value.encode() if value != "ключ" else b"\xff\xfe")
    ran = run("pull", "org/repo:Q4_0")
    assert ran.code == 2
    assert f"the token of the file {tmp_path}/hf/token" in ran.err
    assert value not in ran.err


def test_what_the_http_library_refuses_names_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing() -> None:
        raise ValueError("Invalid port in 'http://user:secret@x:y'")

    monkeypatch.setenv("no_proxy", "http://x:y")
    monkeypatch.setattr(huggingface_hub, "get_session", refusing)
    with pytest.raises(UsageError) as caught:
        environment.check_network()
    assert str(caught.value) == (
        "no connection can be made from here (Invalid port in 'http://…@x:y'); correct no_proxy"
    )


def test_files_here_need_no_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ALL_PROXY": "socks4://x", "HF_ENDPOINT": "x", "HF_HUB_DOWNLOAD_TIMEOUT": "abc"}.items():
        monkeypatch.setenv(name, value)
    for command in ("ask hello", "recipes", "doctor", "show demo"):
        assert run(*command.split()).code == 0, command
    monkeypatch.delenv("HF_HUB_DOWNLOAD_TIMEOUT")
    assert run("ls").code == 0, "only what goes online needs a way to the hub"


def ls(**variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from eft_local.cli import main; main()", "ls", "--json"]
    return subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=60, check=False
    )


def test_what_huggingface_hub_is_imported_with_is_checked_before() -> None:
    ran = ls(HF_HUB_DOWNLOAD_TIMEOUT="abc")
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
    assert ran.stderr.startswith('eft: HF_HUB_DOWNLOAD_TIMEOUT="abc": a whole number of seconds is needed')


def test_advice_on_other_downloads_is_not_passed_on() -> None:
    ran = ls(HF_HUB_ENABLE_HF_TRANSFER="1")
    assert (ran.returncode, ran.stderr) == (0, "")


# Connections that will never be made


def test_a_hub_that_speaks_no_tls_is_not_asked_again(server: HubServer, tmp_path: Path) -> None:
    hub = Hub(server.url.replace("http://", "https://"), tmp_path / "hub")
    with pytest.raises(DownloadError, match=r"there is no TLS: perhaps the address .* begins with http://") as caught:
        pull([NAME], hub, patience=PATIENT)
    assert "in a row" not in str(caught.value)


def test_a_certificate_that_is_not_trusted_is_reported_at_once(
    server: HubServer, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport_error = remote._transport_error()

    def untrusted(*_: object, **__: object) -> None:
        reported = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate (_ssl.c:1000)"
        raise transport_error(reported) from ssl.SSLCertVerificationError(reported)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", untrusted)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/etc/company.pem")
    with pytest.raises(DownloadError) as caught:
        pull([NAME], hub, patience=PATIENT)
    reported = str(caught.value)
    assert reported.startswith(f"the connection to {server.url} failed ([SSL: CERTIFICATE_VERIFY_FAILED] certificate ")
    assert reported.endswith("set SSL_CERT_FILE to a file with its certificates (REQUESTS_CA_BUNDLE is not read)")


def test_a_folder_that_cannot_be_made_is_reported(hub: Hub) -> None:
    hub.folder.mkdir()
    (hub.folder / ".locks").write_text("in the way")
    with pytest.raises(DownloadError, match=r"cannot write .*\.locks"):
        pull([NAME], hub, patience=PATIENT)
