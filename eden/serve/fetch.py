"""Images by `https:` URL: only from hosts that were named, never from inside the network.

What could go wrong is server-side request forgery: https://owasp.org/www-community/attacks/Server_Side_Request_Forgery
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any

import httpx

from .schema import RequestError

FETCH_SECONDS = 10.0
CONNECT_SECONDS = 2.5
"""After which the host's next address is tried."""

TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")
"""IPv4 addresses as a network without IPv4 writes them (NAT64, RFC 6052)."""

Resolve = Callable[[str], list[str]]


def resolve(host: str) -> list[str]:
    """The addresses of a host."""
    return [str(info[4][0]) for info in socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)]


def is_public(address: str) -> bool:
    """Whether an address is one of the open internet; of an IPv6 address that stands for an IPv4 one, that one."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        translated = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in TRANSLATED else None
        if (inner := ip.ipv4_mapped or ip.sixtofour or translated) is not None:
            return is_public(str(inner))
        if ip.is_site_local:
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def fetch_image(
    url: str,
    *,
    hosts: Collection[str],
    max_bytes: int,
    where: str,
    resolve: Resolve = resolve,
    client: Callable[[], httpx.Client] | None = None,
) -> bytes:
    """Gets an image. The address is looked up once, checked, and then connected to, so that no second answer of the
    name server can lead elsewhere; redirects are refused, for they could lead anywhere.

    Args:
        url: `https://`, on the standard port, without user or password.
        hosts: the names it may be on.
        max_bytes: size limit, in bytes, kept while reading.
        where: the field of the request, named in errors.
        resolve: looks addresses up.
        client: makes the HTTP client; the default checks certificates and knows no proxy.

    Raises:
        RequestError: the URL is not allowed, or the image does not come in time.
    """

    def refused(what: str, code: str = "image_url_not_allowed") -> RequestError:
        return RequestError(what, param=where, code=code)

    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        raise refused("the image's URL is not valid", "invalid_image_url") from None
    if parsed.scheme != "https" or parsed.userinfo or parsed.port not in (None, 443):
        raise refused("an image's URL begins with https://, without user, password or port")
    host = parsed.raw_host.decode("ascii")  # other alphabets as xn--
    if not {host, parsed.host} & {name.lower() for name in hosts}:
        raise refused("images are not fetched from this host")
    deadline = time.monotonic() + FETCH_SECONDS
    try:
        addresses = list(dict.fromkeys(_in_time(resolve, host)))
    except (OSError, UnicodeError):
        raise refused("the image's host is not known", "image_fetch_failed") from None
    if not addresses or not all(map(is_public, addresses)):
        raise refused("the image's host has no public address")
    with (client or _client)() as http:
        for address in addresses:
            try:
                return _read(http, parsed, address, max_bytes, refused, deadline)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue
            except httpx.HTTPError:
                break
    raise refused("the image could not be fetched", "image_fetch_failed")


def _in_time(resolve: Resolve, host: str) -> list[str]:
    """The addresses of a host, or none in time: the system's resolver may take minutes, and cannot be told to hurry."""
    answer: Future[list[str]] = Future()

    def look_up() -> None:
        try:
            answer.set_result(resolve(host))
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=look_up, daemon=True).start()
    return answer.result(FETCH_SECONDS / 2)  # TimeoutError is an OSError


def _client() -> httpx.Client:
    timeout = httpx.Timeout(FETCH_SECONDS, connect=CONNECT_SECONDS)
    return httpx.Client(trust_env=False, follow_redirects=False, timeout=timeout)


def _read(
    http: httpx.Client,
    url: httpx.URL,
    address: str,
    max_bytes: int,
    refused: Callable[..., RequestError],
    deadline: float,
) -> bytes:
    pinned = url.copy_with(host=address)
    host = url.raw_host.decode("ascii")
    headers = {"Host": host, "Accept": "image/*", "Accept-Encoding": "identity"}
    body = bytearray()
    with (
        _hung_up_after(max(0.0, deadline - time.monotonic())) as trace,
        http.stream("GET", pinned, headers=headers, extensions={"sni_hostname": host, "trace": trace}) as response,
    ):
        if response.status_code != 200:
            raise refused(f"the image's host answered {response.status_code}", "image_fetch_failed")
        for piece in response.iter_raw():
            body += piece
            if len(body) > max_bytes:
                raise refused(f"the image has more than {max_bytes:,} bytes", "image_too_large")
            if time.monotonic() > deadline:
                raise refused("the image did not come in time", "image_fetch_failed")
    return bytes(body)


@contextmanager
def _hung_up_after(seconds: float) -> Iterator[Callable[[str, dict[str, Any]], None]]:
    """Gives a listener for httpx, whose connection is shut down after that time.

    httpx's own limit is for each read, and a host that sends its headers byte by byte would never meet it.
    """
    connections: list[socket.socket] = []

    def trace(event: str, info: dict[str, Any]) -> None:
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            connections.append(info["return_value"].get_extra_info("socket"))

    def hang_up() -> None:
        for connection in connections:
            with suppress(OSError):  # it has ended
                # Not SSLSocket's own, which takes the encryption from under the thread that reads.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    timer = threading.Timer(seconds, hang_up)
    timer.daemon = True
    timer.start()
    try:
        yield trace
    finally:
        timer.cancel()
