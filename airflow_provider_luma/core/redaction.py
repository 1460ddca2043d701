# SPDX-License-Identifier: Apache-2.0
"""Everything that takes secrets out of text: signatures and tokens in addresses, users and passwords, the API key."""

from __future__ import annotations

import re

from airflow_provider_luma.core.addresses import is_web_address, split_address

# The patterns of messages are compiled at their first use: most DAG files never use them.

#: User and password before the host.
_USER_IN_ADDRESS = r"(?<=//)[^/\s?#]*@"

#: The token in a callback's address.
_SIGNED_CALLBACK = r"(?i)(?<=token)(=|%3D)[0-9a-f]{64}"

#: A web address, up to its query and with it. Each character is looked at once: a text may have 256 kB.
_ADDRESS_WITH_QUERY = r"""(?i)(https?:(?:\\*/){2}[^\s"'<>?]*+)(\?[^\s"'<>]*+)?"""


#: What tells that the query of an address gives its bearer access, as storages and clouds write it.
_GIVES_ACCESS = r"(?i)\bx-amz-|\bx-goog-|signature|\bsig=|token|credential"


#: A signature in whatever else is made of such an address: percent-encoded, cut off, or as JSON in a text.
_SIGNATURE = (
    r"""(?i)((?:signature|security-token|(?:[?&;\s"'(]|%(?:25)*(?:2[0267]|3F)|u0026|u003f|^)sig)(?:=|\\u003d|%(?:25)*3D))"""
    r"""(?:(?!%(?:25)*26)[^\s"'<>&\\])+"""
)


def without_credentials(text: str) -> str:
    """Return a text whose addresses have lost users, passwords, signatures, and the token of a callback."""
    text = re.sub(_USER_IN_ADDRESS, "", without_signatures(text))
    return re.sub(_SIGNED_CALLBACK, r"\1***", text)


def without_signatures(text: str) -> str:
    """Return a text whose web addresses have lost their queries where these hold a signature, a token, or the like."""

    def without_access(address: re.Match[str]) -> str:
        return address[1] if re.search(_GIVES_ACCESS, address[2] or "") else address[0]

    return re.sub(_SIGNATURE, r"\1***", re.sub(_ADDRESS_WITH_QUERY, without_access, text))


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


# Compiled at their first use, as most DAG files never need them.


#: Characters of an API key below which it is not looked for in answers: it could be a word in them. Real ones have 32.
MIN_KEY_LENGTH = 8


#: Levels of JSON escapes undone when looking for the key: the service nests JSON documents in JSON strings.
MAX_NESTED_ESCAPES = 5


#: A JSON escape sequence.
_JSON_ESCAPE = r"\\(?:u([0-9a-fA-F]{4})|(.))"


def without_key(text: str, api_key: str) -> str:
    """Return a text without the API key, should it repeat that, in whatever case: hosts are written in lower case."""
    return re.sub(re.escape(api_key), "***", text, flags=re.IGNORECASE) if len(api_key) >= MIN_KEY_LENGTH else text


def body_without_key(body: bytes, api_key: str) -> bytes:
    """Return a body without the API key; nothing of one that repeats it with escapes, or not in UTF-8."""
    if len(api_key) < MIN_KEY_LENGTH:
        return body
    body = body.replace(api_key.encode(), b"***")
    if b"\\" not in body and b"\0" not in body:
        return body
    text = body.replace(b"\0", b"").decode("utf-8", "replace")  # UTF-16 and UTF-32, wherever they begin
    for _ in range(MAX_NESTED_ESCAPES):
        if api_key.lower() in text.lower():
            return b"an answer that repeats the API key"
        text = re.sub(_JSON_ESCAPE, lambda escape: chr(int(escape[1], 16)) if escape[1] else escape[2], text)
    return body
