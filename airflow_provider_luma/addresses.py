# SPDX-License-Identifier: Apache-2.0
"""
Addresses of files: their parts, and what of them may be shown.

On the web, ``?`` and ``#`` begin a query and a fragment. In a storage, or on a disk, they are characters like any
other, as are brackets, percent signs and colons: the name of a file is taken as it is.
"""

from __future__ import annotations

import re
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


def without_secrets(url: object) -> str:
    """Return a web address fit for a log: the query of a signed URL, and what stands before an @, are credentials."""
    return _without_userinfo(re.split("[?#]", str(url), maxsplit=1)[0])


def shown_address(address: object) -> str:
    """
    Return the address of a file fit for a log.

    The name of a file in a storage, or on a disk, is whole; anything else is taken for a web address.
    """
    text = str(address)
    in_storage = split_address(text).scheme or re.match("/(?!/)", text)
    return _without_userinfo(text) if in_storage and not is_web_address(text) else without_secrets(text)


def _without_userinfo(address: str) -> str:
    return re.sub(r"^([a-z][a-z0-9+.-]*:)?//+[^/]*@", r"\1//", address.lstrip(), flags=re.IGNORECASE)
