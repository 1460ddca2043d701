# SPDX-License-Identifier: Apache-2.0
"""Removes secrets from text: signatures and tokens in addresses, user names and passwords, the API key."""

from __future__ import annotations

import re

from airflow_provider_luma.core.addresses import is_web_address, split_address

# Patterns are compiled on first use, because most DAG files never need them.

#: User and password before the host.
_USER_IN_ADDRESS = r"(?<=//)[^/\s?#]*@"

#: The token in a callback's address.
_SIGNED_CALLBACK = r"(?i)(?<=token)(=|%3D)[0-9a-f]{64}"

#: A web address (group 1) and its query (group 2), if any. Scans each character only once: a text may have 256 kB.
_ADDRESS_WITH_QUERY = r"""(?i)(https?:(?:\\*/){2}[^\s"'<>?]*+)(\?[^\s"'<>]*+)?"""


#: Parts of queries that grant access to anyone with the address, as object stores and clouds write them.
_GIVES_ACCESS = r"(?i)\bx-amz-|\bx-goog-|signature|\bsig=|token|credential"


#: A signature in any other form of such an address: percent-encoded, truncated, or as JSON within text.
_SIGNATURE = (
    r"""(?i)((?:signature|security-token|(?:[?&;\s"'(]|%(?:25)*(?:2[0267]|3F)|u0026|u003f|^)sig)(?:=|\\u003d|%(?:25)*3D))"""
    r"""(?:(?!%(?:25)*26)[^\s"'<>&\\])+"""
)


def without_credentials(text: str) -> str:
    """Return the text without user names, passwords, signatures and callback tokens in its addresses."""
    text = re.sub(_USER_IN_ADDRESS, "", without_signatures(text))
    return re.sub(_SIGNED_CALLBACK, r"\1***", text)


def without_signatures(text: str) -> str:
    """Return the text without those queries of web addresses that contain a signature, a token, or the like."""

    def without_access(address: re.Match[str]) -> str:
        return address[1] if re.search(_GIVES_ACCESS, address[2] or "") else address[0]

    return re.sub(_SIGNATURE, r"\1***", re.sub(_ADDRESS_WITH_QUERY, without_access, text))


def without_queries(text: str) -> str:
    """Return the text without the queries of its web addresses."""
    return re.sub(_ADDRESS_WITH_QUERY, r"\1", text)


def without_secrets(url: object) -> str:
    """Return a web address fit for a log, without its query or anything before an @: these may be credentials."""
    return _without_userinfo(re.split("[?#]", str(url), maxsplit=1)[0])


def shown_address(address: object) -> str:
    """
    Return the address of a file, fit for a log.

    Storage addresses and local paths keep their whole name; anything else is treated as a web address.
    """
    text = str(address)
    in_storage = split_address(text).scheme or re.match("/(?!/)", text)
    return _without_userinfo(text) if in_storage and not is_web_address(text) else without_secrets(text)


def _without_userinfo(address: str) -> str:
    return re.sub(r"^([a-z][a-z0-9+.-]*:)?//+[^/]*@", r"\1//", address.lstrip(), flags=re.IGNORECASE)


#: API keys shorter than this are not searched for in responses: they could be ordinary words. kie.ai's have 32.
MIN_KEY_LENGTH = 8


#: Levels of JSON escapes to undo when searching for the key: kie.ai puts JSON documents into JSON strings.
MAX_NESTED_ESCAPES = 5


#: A JSON escape sequence.
_JSON_ESCAPE = r"\\(?:u([0-9a-fA-F]{4})|(.))"


def without_key(text: str, api_key: str) -> str:
    """Return the text without the API key, ignoring case, because host names are lower-cased."""
    return re.sub(re.escape(api_key), "***", text, flags=re.IGNORECASE) if len(api_key) >= MIN_KEY_LENGTH else text


def body_without_key(body: bytes, api_key: str) -> bytes:
    """Return the body without the API key; a placeholder if the key appears in escapes or another encoding."""
    if len(api_key) < MIN_KEY_LENGTH:
        return body
    body = body.replace(api_key.encode(), b"***")
    if b"\\" not in body and b"\0" not in body:
        return body
    text = body.replace(b"\0", b"").decode("utf-8", "replace")  # so that a key in UTF-16 or UTF-32 is found
    for _ in range(MAX_NESTED_ESCAPES):
        if api_key.lower() in text.lower():
            return b"a response that repeats the API key"
        text = re.sub(_JSON_ESCAPE, lambda escape: chr(int(escape[1], 16)) if escape[1] else escape[2], text)
    return body
