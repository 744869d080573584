"""Photos by http and https: sizes and times limited, and nothing fetched from inside the network by surprise."""

import http.client
import ipaddress
import os
import socket
import ssl
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from functools import cache
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from fr_deploy.batch.names import name_of_url
from fr_deploy.errors import ImageError

MAX_REDIRECTS = 5
CONNECT_SECONDS = 10.0
_PIECE = 64 * 2**10
_REDIRECTS = {301, 302, 303, 307, 308}
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_MISSING = {404, 410}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_SAFE = "/%!$&'()*+,;=:@~-._?"
_HEADERS = {"User-Agent": "fr-deploy", "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class PassingError(ImageError):
    """A fault that may be gone at the next try: of a network or a disk."""


def read_url(url: str, max_bytes: int, *, seconds: float, allow_private: bool = False) -> bytes:
    """Fetch one URL, following at most 5 redirects; no proxy is used.

    Every address is looked up here, checked, and connected to as it was checked, so that a name cannot point
    elsewhere the second time.

    Args:
        url: http or https.
        max_bytes: what is allowed; no more is read.
        seconds: for all of it, however slowly bytes come in.
        allow_private: also addresses that are not public: this machine's and its networks'.

    Raises:
        PassingError: reason `timeout`, `unreachable`, or `truncated` (less came than was promised).
        ImageError: reason `bad_url`, `private_address`, `bad_certificate`, `not_found`, `refused_by_server`,
            `too_large` or `redirect` (too many, to another scheme, or from https to http).
    """
    deadline = time.monotonic() + seconds
    for _ in range(MAX_REDIRECTS + 1):
        found = _get(url, max_bytes, deadline, allow_private)
        if isinstance(found, bytes):
            return found
        before, after = urlsplit(url).scheme, urlsplit(found).scheme
        if after not in ("http", "https") or (before, after) == ("https", "http"):
            raise ImageError("redirect", f"is sent on from {before} to {after or 'nowhere'}")
        url = found
    raise ImageError("redirect", f"is sent on more than {MAX_REDIRECTS} times")


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public network, that inside an IPv6 address included."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if address.teredo is not None:
            return False
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast


def _get(url: str, max_bytes: int, deadline: float, allow_private: bool) -> bytes | str:
    """The body, or the URL that one is sent on to."""
    name_of_url(url)  # refuses what is no URL, or holds a password
    parts = urlsplit(url)
    try:
        with _connected(parts, deadline, allow_private) as connection:
            target = quote(parts.path or "/", safe=_SAFE)
            if parts.query:
                target += "?" + quote(parts.query, safe=_SAFE)
            connection.request("GET", target, headers=_HEADERS)
            response = connection.getresponse()
            if response.status in _REDIRECTS:
                return urljoin(url, response.headers.get("Location", ""))
            _check_status(response)
            return _body(response, max_bytes, deadline)
    except ssl.SSLCertVerificationError as error:
        raise ImageError("bad_certificate", f"the server's: {error.verify_message}") from None
    except (OSError, http.client.HTTPException) as error:
        if time.monotonic() >= deadline or isinstance(error, TimeoutError):
            raise PassingError("timeout", f"the server is too slow: {_text(error)}") from None
        raise PassingError("unreachable", _text(error)) from None
    except ValueError as error:  # a header that cannot be sent, from odd characters in the URL
        raise ImageError("bad_url", str(error)) from None


@contextmanager
def _connected(
    parts: SplitResult, deadline: float, allow_private: bool
) -> Generator[http.client.HTTPConnection]:
    """A connection that is cut at the deadline: a timeout alone starts anew with every byte."""
    assert parts.hostname is not None
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    raw = _connect(parts.hostname, port, deadline, allow_private)
    # Of its own: TLS takes the socket over, and nobody can reach it during the handshake.
    same = socket.socket(fileno=os.dup(raw.fileno()))
    timer = threading.Timer(max(0.0, deadline - time.monotonic()), _cut, [same])
    timer.daemon = True
    timer.start()
    connection = http.client.HTTPConnection(parts.hostname, port)
    connection.default_port = 443 if secure else 80  # which the Host header leaves out
    try:
        connection.sock = _tls().wrap_socket(raw, server_hostname=parts.hostname) if secure else raw
        yield connection
    finally:
        timer.cancel()
        timer.join()
        for opened in (connection, raw, same):
            opened.close()


def _connect(host: str, port: int, deadline: float, allow_private: bool) -> socket.socket:
    fault: OSError = OSError(f"{host} has no address")
    for kind, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        ip = ipaddress.ip_address(str(address[0]).partition("%")[0])
        if not allow_private and not is_public(ip):
            raise ImageError(
                "private_address",
                f"{host} is at {ip}, which is no public address; --allow-private permits it",
            )
        raw = socket.socket(kind, socket.SOCK_STREAM)
        try:
            raw.settimeout(max(0.01, min(CONNECT_SECONDS, deadline - time.monotonic())))
            raw.connect(address)
            return raw
        except OSError as error:
            raw.close()
            fault = error
    raise fault


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _cut(raw: socket.socket) -> None:
    with suppress(OSError):  # the other side closed it
        raw.shutdown(socket.SHUT_RDWR)


def _check_status(response: http.client.HTTPResponse) -> None:
    if response.status == 200:
        return
    text = f"the server answers {response.status} {response.reason}"
    if response.status in _PASSING:
        raise PassingError("unreachable", text)
    raise ImageError("not_found" if response.status in _MISSING else "refused_by_server", text)


def _body(response: http.client.HTTPResponse, max_bytes: int, deadline: float) -> bytes:
    promised = response.length
    if promised is not None and promised > max_bytes:
        raise ImageError("too_large", f"has {promised} bytes; allowed are {max_bytes}")
    parts: list[bytes] = []
    total = 0
    while piece := response.read1(_PIECE):
        parts.append(piece)
        total += len(piece)
        if total > max_bytes:
            raise ImageError("too_large", f"has more than the {max_bytes} bytes allowed")
    if time.monotonic() >= deadline:  # being cut looks like the end
        raise TimeoutError(f"{total} bytes came in time")
    if promised is not None and total != promised:
        raise PassingError("truncated", f"{total} of {promised} bytes came")
    return b"".join(parts)


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
