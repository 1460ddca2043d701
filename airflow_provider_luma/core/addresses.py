# SPDX-License-Identifier: Apache-2.0
"""
Parses addresses, and checks whether a host is on the public Internet.

In web addresses, ``?`` and ``#`` start a query and a fragment. In storage addresses and local paths they are ordinary
characters, as are brackets, percent signs and colons: file names are taken literally.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import NamedTuple


class AddressParts(NamedTuple):
    """
    The parts of a storage address.

    :param scheme: as written; empty for a local path
    :param authority: connection and bucket, or host
    :param name: the rest, without its leading slash; for a local path, all of it
    """

    scheme: str
    authority: str
    name: str


def split_address(address: str) -> AddressParts:
    """Return the parts of a storage address or a local path."""
    match = re.match(r"([a-z][a-z0-9+.-]*)://([^/]*)/?", address, re.IGNORECASE)
    return AddressParts(match[1], match[2], address[match.end() :]) if match else AddressParts("", "", address)


def is_web_address(address: str) -> bool:
    """Return whether this is a web address rather than a file in storage."""
    return re.match(r"https?:", address.strip(), re.IGNORECASE) is not None


def is_luma_file(address: object) -> bool:
    """Return whether this is a video at Luma's own API: an upload, ``luma-file:ID``, or a result, ``luma-job:ID``."""
    return isinstance(address, str) and re.fullmatch("luma-(file|job):[A-Za-z0-9_-]{1,128}", address) is not None


#: Domain suffixes that public DNS never resolves, including those of Kubernetes and of cloud-internal services.
_PRIVATE_ZONES = tuple(
    ".localhost .local .localdomain .internal .intranet .private .corp .home .home.arpa .lan .svc".split()
)


#: Networks whose addresses embed an IPv4 address in the last 32 bits: compatible, mapped, translated, and NAT64.
_EMBEDDING_IPV4 = tuple(
    ipaddress.IPv6Network(network) for network in ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96")
)


#: Local-use NAT64 (RFC 8215). Each network chooses where it embeds the IPv4 address.
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")


def is_private_host(host: str) -> bool:
    """
    Return whether a host's address or name shows that it is not on the public Internet.

    Names are not resolved, because the worker and the service may see different DNS.
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
    """Return the IPv4 address embedded in an IPv6 address by mapping, NAT64 or 6to4."""
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
