"""Photos by http and https from a server on this machine."""

import datetime
import hashlib
import http.server
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from fr_deploy.batch.fetch import Fetcher
from fr_deploy.batch.item import Item
from fr_deploy.batch.listing import list_items
from fr_deploy.batch.remote import is_public, read_url
from fr_deploy.errors import ImageError
from fr_deploy.settings import Limits

PHOTO = b"photo" * 20_000


class Handler(http.server.BaseHTTPRequestHandler):
    """What the path asks for."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        kind = self.path.split("/")[1].split("?")[0]
        if kind.isdigit():
            self._answer(int(kind), b"an error page")
        elif kind == "twice" and self.asked.count(self.path) < 3:
            self._answer(503, b"busy")
        elif kind == "to":
            self._answer(302, b"", Location=unquote(self.path).removeprefix("/to/"))
        elif kind == "slow":
            self._answer(200, b"", **{"Content-Length": "99"})
            self._drip()
        elif kind == "slow-unknown":
            self._answer(200, b"", **{"Content-Length": ""})
            self._drip()
        elif kind == "cut":
            self._answer(200, b"only this", **{"Content-Length": "999"})
        elif kind == "endless":
            self._answer(200, b"", **{"Content-Length": ""})
            self._flood()
        else:
            self._answer(200, PHOTO)

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _drip(self) -> None:
        try:
            for _ in range(100):
                self.wfile.write(b"x")
                time.sleep(0.05)
        except OSError:
            pass

    def _flood(self) -> None:
        try:
            for _ in range(10_000):
                self.wfile.write(bytes(10_000))
        except OSError:
            pass

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        pass


def serve(tls: ssl.SSLContext | None = None) -> Iterator[str]:
    Handler.asked = []
    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving.daemon_threads = True
    if tls is not None:
        serving.socket = tls.wrap_socket(
            serving.socket, server_side=True, do_handshake_on_connect=False
        )
    threading.Thread(target=serving.serve_forever, args=[0.05], daemon=True).start()
    yield f"http{'s' if tls else ''}://127.0.0.1:{serving.server_address[1]}"
    serving.shutdown()
    serving.server_close()


@pytest.fixture
def server() -> Iterator[str]:
    yield from serve()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Of 127.0.0.1, signed by itself; the key lies in the same file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    place = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=1)).add_extension(place, False)
    text = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    text += key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (tmp_path / "both.pem").write_bytes(text)
    return tmp_path / "both.pem"


@pytest.fixture
def secure(certificate: Path) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    yield from serve(context)


def fetched(url: str, max_bytes: int = 10**6, seconds: float = 20.0) -> tuple[bytes, str]:
    item = Item(0, "a.jpg", url, "a.jpg")
    return Fetcher(Limits(max_bytes=max_bytes), seconds=seconds, allow_private=True).fetch(item)


def reason(url: str, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        fetched(url, **options)
    return caught.value.reason


def test_a_photo(server: str) -> None:
    assert fetched(f"{server}/a b/é.jpg?w=1&x=a b") == (PHOTO, hashlib.sha256(PHOTO).hexdigest())
    assert Handler.asked == ["/a%20b/%C3%A9.jpg?w=1&x=a%20b"]
    assert fetched(f"{server}/a%20b.jpg")[0] == PHOTO
    assert Handler.asked[-1] == "/a%20b.jpg"


def test_errors_of_the_server(server: str) -> None:
    assert reason(f"{server}/404") == "not_found"
    assert reason(f"{server}/403") == "refused_by_server"
    assert len(Handler.asked) == 2  # these do not pass
    assert reason(f"{server}/500") == "unreachable"
    assert Handler.asked.count("/500") == 4
    assert fetched(f"{server}/twice")[0] == PHOTO
    assert Handler.asked.count("/twice") == 3
    assert reason(f"{server}/cut") == "truncated"


def test_no_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert reason(f"http://127.0.0.1:{port}/a.jpg") == "unreachable"
    assert reason("http://name.invalid/a.jpg") == "unreachable"


def test_what_is_too_large_is_not_read(server: str) -> None:
    assert reason(f"{server}/a.jpg", max_bytes=1000) == "too_large"
    assert reason(f"{server}/endless", max_bytes=50_000) == "too_large"


@pytest.mark.parametrize("path", ["slow", "slow-unknown"])
def test_a_server_that_drips_is_cut(server: str, path: str) -> None:
    """Each byte comes in time; all of them do not. Without a length the cut looks like the end."""
    start = time.monotonic()
    assert reason(f"{server}/{path}", seconds=0.5) == "timeout"
    assert time.monotonic() - start < 4  # it would drip for 5 s


def test_redirects(server: str) -> None:
    assert fetched(f"{server}/to//photo.jpg")[0] == PHOTO
    assert reason(f"{server}/to/ftp://example.com/a.jpg") == "redirect"
    assert reason(f"{server}/to/file:///etc/passwd") == "redirect"
    assert reason(f"{server}/to/http://me:secret@example.com/") == "bad_url"
    Handler.asked.clear()
    loop = f"{server}/to/" * 9
    assert reason(loop) == "redirect"
    assert len(Handler.asked) == 6


def test_https(secure: str, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reason(f"{secure}/a.jpg") == "bad_certificate"
    assert Handler.asked == []
    trusting = ssl.create_default_context(cafile=certificate)
    monkeypatch.setattr("fr_deploy.batch.remote._tls", lambda: trusting)
    assert fetched(f"{secure}/a.jpg")[0] == PHOTO
    assert reason(f"{secure}/to/http://127.0.0.1:1/a.jpg") == "redirect"  # it would be in the clear
    start = time.monotonic()
    assert reason(f"{secure}/slow-unknown", seconds=0.7) == "timeout"
    assert time.monotonic() - start < 4
    assert reason(f"{secure.replace('https', 'http')}/a.jpg", seconds=2.0) in (
        "unreachable",
        "timeout",
    )


def test_a_server_that_never_says_hello_is_cut() -> None:
    """TLS has a handshake, which no byte but the first may ever answer."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}/a.jpg"
        start = time.monotonic()
        assert reason(url, seconds=0.5) == "timeout"
        assert time.monotonic() - start < 4


def test_private_addresses_are_refused(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in (f"{server}/a.jpg", f"http://localhost:{server.rsplit(':', 1)[1]}/a.jpg"):
        with pytest.raises(ImageError, match="--allow-private") as caught:
            read_url(url, 1000, seconds=5.0)
        assert caught.value.reason == "private_address"
    assert Handler.asked == []
    # The server is public at first, and leads to one that is not.
    monkeypatch.setattr(
        "fr_deploy.batch.remote.is_public", lambda ip: str(ip) == "127.0.0.1" and ip.is_loopback
    )
    assert read_url(f"{server}/a.jpg", 10**6, seconds=5.0) == PHOTO
    for place in ("127.0.0.2:1", "10.0.0.1", "169.254.169.254", "[::1]", "2130706434"):
        with pytest.raises(ImageError) as caught:
            read_url(f"{server}/to/http://{place}/latest/meta-data", 1000, seconds=5.0)
        assert caught.value.reason == "private_address", place


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("ff0e::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


def test_urls_in_a_list(server: str, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(f"uri,name\n{server}/x/b.jpg?w=1,\n{server}/y/b.jpg,c.jpg\n")
    names = [str(tmp_path / "m.csv"), f"{server}/z/a.jpg", "ftp://example.com/a.jpg"]
    listing = list_items(names)
    assert list(listing) == []
    reasons = [refusal.reason for refusal in listing.notes.refusals]
    assert reasons == ["http_not_allowed"] * 3 + ["unsupported_scheme"]
    items = list(list_items(names, allow_http=True))
    port = server.rsplit(":", 1)[1]
    assert [item.name for item in items] == [f"127.0.0.1_{port}/x/b.jpg", "c.jpg", "a.jpg"]
    assert Fetcher(allow_private=True).fetch(items[0])[0] == PHOTO
