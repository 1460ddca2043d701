# SPDX-License-Identifier: Apache-2.0
"""
Addresses: their parts, and whether a host is on the public Internet.

On the web, ``?`` and ``#`` begin a query and a fragment. In a storage, or on a disk, they are characters like any
other, as are brackets, percent signs and colons: the name of a file is taken as it is.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import NamedTuple


class AddressParts(NamedTuple):
    """
    The parts of an address in a storage.

    :param scheme: as it is written; empty for a path on this machine
    :param authority: connection and bucket, or host
    :param name: the rest, without the slash that begins it; all of a path on this machine
    """

    scheme: str
    authority: str
    name: str


def split_address(address: str) -> AddressParts:
    """Return the parts of an address in a storage, or of a path."""
    match = re.match(r"([a-z][a-z0-9+.-]*)://([^/]*)/?", address, re.IGNORECASE)
    return AddressParts(match[1], match[2], address[match.end() :]) if match else AddressParts("", "", address)


def is_web_address(address: str) -> bool:
    """Tell whether an address is one of the web, and not a file in a storage."""
    return re.match(r"https?:", address.strip(), re.IGNORECASE) is not None


#: Ends of names that no public DNS resolves, among them those of Kubernetes and of the clouds' own services.
_PRIVATE_ZONES = tuple(
    ".localhost .local .localdomain .internal .intranet .private .corp .home .home.arpa .lan .svc".split()
)


#: Networks whose addresses hold an IPv4 address in their last bits: compatible, mapped, translated, and NAT64.
_EMBEDDING_IPV4 = tuple(
    ipaddress.IPv6Network(network) for network in ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96")
)


#: NAT64 within a network (RFC 8215). Where in it the IPv4 address stands is the network's own affair.
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")


def is_private_host(host: str) -> bool:
    """
    Tell whether a host is surely not on the public Internet: by its address, or by its name.

    Names are not resolved: the worker's view of the DNS is not the service's.
    """
    host = host.strip("[]").rstrip(".").lower()
    address = _ip_address(host)
    if address is not None:
        return _is_private_address(address)
    return "." not in host or host.endswith(_PRIVATE_ZONES)


def _is_private_address(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        embedded = _embedded_ipv4_address(address)
        if embedded is not None:
            return _is_private_address(embedded)
        if address.is_site_local or address in _LOCAL_NAT64:
            return True
    return not address.is_global or address.is_multicast


def _embedded_ipv4_address(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that an IPv6 address leads to: by mapping, NAT64 or 6to4."""
    if any(address in network for network in _EMBEDDING_IPV4):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.sixtofour


def _ip_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        # Clients also read 127.1, 0x7f.1 and 2130706433 as IPv4 addresses.
        if not re.fullmatch(r"[0-9a-fx.]+", host):
            return None
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host))
        except OSError:
            return None
