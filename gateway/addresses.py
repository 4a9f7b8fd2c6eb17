"""Which addresses a webhook may be sent to: the URL of a callback is written by a client, the request is made from inside.

Loopback, private, link-local and other addresses that are not of the public internet are refused, in the URL when it is
given and among what its name resolves to when it is used; an operator may except hosts or networks.
"""

import ipaddress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Self
from urllib.parse import urlsplit

import msgspec

MOST_CHARACTERS = 2048

_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the last four bytes are an IPv4 address


class RefusedError(Exception):
    """No webhook is sent there. The message says why."""


class Exceptions(msgspec.Struct, frozen=True):
    """Host names and networks that webhooks may reach whatever their addresses are."""

    hosts: frozenset[str]
    networks: tuple[IPv4Network | IPv6Network, ...]

    @classmethod
    def of(cls, text: str) -> Self:
        """From a list separated by commas, as MESH_WEBHOOK_PRIVATE_HOSTS has it."""
        hosts: set[str] = set()
        networks: list[IPv4Network | IPv6Network] = []
        for part in filter(None, (part.strip().lower() for part in text.split(","))):
            try:
                networks.append(ipaddress.ip_network(part))
            except ValueError:
                hosts.add(part)
        return cls(frozenset(hosts), tuple(networks))


def check_url(url: str, exceptions: Exceptions) -> None:
    """See that a URL is one that a webhook could be sent to, as far as can be told without resolving its name.

    Raises:
        RefusedError: it is not.
    """
    if len(url) > MOST_CHARACTERS or not url.isascii() or any(character <= " " for character in url):
        raise RefusedError(f"an address of at most {MOST_CHARACTERS} ASCII characters is wanted")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise RefusedError("this is no URL") from None
    if parts.scheme not in ("http", "https") or not host:
        raise RefusedError("an http:// or https:// URL with a host is wanted")
    if parts.username is not None or parts.password is not None:
        raise RefusedError("a URL with a name or password in it is refused; the webhook's signature says who sends it")
    if host in exceptions.hosts:
        return
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        if host == "localhost" or host.endswith((".localhost", ".local", ".internal")):
            raise RefusedError(f"{host} is a name of this machine or network") from None
        return
    check_address(address, exceptions)


def check_address(address: IPv4Address | IPv6Address, exceptions: Exceptions) -> None:
    """See that an address is public or excepted.

    Raises:
        RefusedError: it is neither.
    """
    if any(address in network for network in exceptions.networks):
        return
    for inner in _meant(address):
        if not inner.is_global or inner.is_multicast or inner.is_reserved:
            raise RefusedError(f"{address} is not an address of the public internet")


def _meant(address: IPv4Address | IPv6Address) -> list[IPv4Address | IPv6Address]:
    """The address, or the IPv4 address that an IPv6 one carries to where it is translated."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped:
            return [address.ipv4_mapped]
        if address.sixtofour:
            return [address.sixtofour]
        if address in _NAT64:
            return [IPv4Address(int(address) & 0xFFFFFFFF)]
    return [address]
