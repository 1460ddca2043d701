# SPDX-License-Identifier: Apache-2.0
"""
Signed callback addresses (HMAC-SHA256), and verification of kie.ai's own webhook signature. No I/O.

The address names the connection, the submission, and the try that submits (by its Airflow UUID), and carries a token:
an HMAC over all three, keyed with the API key. The submitting worker and the API server both read that key from the
connection, so nothing has to be stored to detect a forged callback. The UUID is the primary key by which the receiver
finds the submission's record. Unlike DAG and task names, it reveals nothing in the access logs of proxies.

A callback is authenticated, but its body is not trusted: it only says which tasks to resume, and these check the job's
status themselves. kie.ai's own signature (https://docs.kie.ai/common-api/webhook-verification) covers only the task id
and a timestamp. It is checked in addition to the token if the connection has a ``webhook_secret``.

Testing a connection sends a probe to the same address. It looks like a callback, but their tokens are not
interchangeable, and the receiver neither resumes nor records anything for a probe.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Mapping
from typing import NamedTuple, Protocol
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit
from uuid import UUID

#: Path of the callback receiver below the API server's public address. The service needs access to no other path.
PATH = "/luma/callback"

#: Seconds by which a signature's timestamp may deviate, as the service's documentation recommends.
SIGNATURE_TOLERANCE = 300.0

#: Seconds by which a probe's timestamp may deviate: enough for clock skew, too short to replay it from a proxy's log.
PROBE_LIFETIME = 300.0

#: Size of a probe's body in bytes, about twice that of a callback.
PROBE_BYTES = 8192

MAX_ID_LENGTH = 250


class Keys(Protocol):
    """The parts of a connection that sign and verify callbacks."""

    @property
    def api_key(self) -> str:
        """The key of the Luma account."""

    @property
    def callback_base_url(self) -> str | None:
        """The public address of Airflow's API server."""

    @property
    def webhook_secret(self) -> str | None:
        """The key with which the service signs callbacks."""


class CallbackProof(NamedTuple):
    """
    The contents of a callback's address: the connection, the submission, and the token that authenticates them.

    :param task_instance_id: the try that submitted, as 32 hexadecimal digits; None in addresses of version 1.0.0
    """

    conn_id: str
    reference: str
    token: str
    task_instance_id: str | None = None

    @classmethod
    def read(cls, query: str) -> CallbackProof | None:
        """Read the query of a callback's address; None if it is not one of ours."""
        try:
            values = parse_qs(
                query, keep_blank_values=True, strict_parsing=True, max_num_fields=len(cls._fields), errors="strict"
            )
        except ValueError:
            return None
        if {*values, "task_instance_id"} != set(cls._fields) or any(len(value) != 1 for value in values.values()):
            return None
        proof = cls(**{name: value[0] for name, value in values.items()})
        has_form = (
            0 < len(proof.conn_id) <= MAX_ID_LENGTH
            and proof.conn_id.isprintable()  # a lone surrogate cannot be encoded, and so cannot be signed
            and re.fullmatch(r"[0-9a-f]{32}", proof.reference)
            and re.fullmatch(r"[0-9a-f]{64}", proof.token)
            and (proof.task_instance_id is None or re.fullmatch(r"[0-9a-f]{32}", proof.task_instance_id))
        )
        return proof if has_form else None

    def is_valid_for(self, connection: Keys) -> bool:
        """Return whether the token was created with this connection's API key."""
        return hmac.compare_digest(self.token, _token(connection, self.conn_id, self.reference, self.task_instance_id))


class Probe(NamedTuple):
    """
    The contents of a probe's address. Version 1.1.0 sends the same, and expects the same response.

    :param probe: when the probe was made, in seconds since the epoch, and a nonce
    :param token: proof that the sender holds the connection's API key
    """

    conn_id: str
    probe: str
    token: str

    @classmethod
    def make(cls, connection: Keys, conn_id: str, now: float) -> Probe:
        """Create a probe, signed with the connection's API key."""
        probe = f"{int(now)}-{secrets.token_hex(16)}"
        return cls(conn_id, probe, _mac(connection, f"probe {probe} {conn_id}"))

    @classmethod
    def read(cls, query: str, now: float) -> Probe | None:
        """Read the query of a probe's address; None if it is not a probe, or too old."""
        try:
            values = dict(parse_qsl(query, strict_parsing=True, max_num_fields=len(cls._fields), errors="strict"))
        except ValueError:
            return None
        if set(values) != set(cls._fields):
            return None
        probe = cls(**values)
        has_form = (
            len(probe.conn_id) <= MAX_ID_LENGTH
            and probe.conn_id.isprintable()
            and re.fullmatch(r"[0-9]{1,12}-[0-9a-f]{32}", probe.probe)
            and re.fullmatch(r"[0-9a-f]{64}", probe.token)
        )
        return probe if has_form and abs(now - int(probe.probe.partition("-")[0])) <= PROBE_LIFETIME else None

    @property
    def query(self) -> str:
        """The query of the probe's address."""
        return urlencode(self._asdict())

    @property
    def body(self) -> bytes:
        """The body, which has to arrive intact."""
        body = json.dumps({"code": 200, "msg": "probe", "data": {"taskId": self.probe}})
        return body.encode().ljust(PROBE_BYTES)

    def headers(self, connection: Keys, now: float) -> dict[str, str]:
        """Return a callback's headers, with the service's signature if the connection has a webhook secret."""
        headers, timestamp = {"Content-Type": "application/json"}, str(int(now))
        if connection.webhook_secret:
            headers["X-Webhook-Timestamp"] = timestamp
            headers["X-Webhook-Signature"] = signature(self.probe, timestamp, connection.webhook_secret)
        return headers

    def is_valid_for(self, connection: Keys) -> bool:
        """Return whether the token was created with this connection's API key."""
        return hmac.compare_digest(self.token, _mac(connection, f"probe {self.probe} {self.conn_id}"))

    def answer(self, connection: Keys) -> bytes:
        """Return the receiver's response to an intact probe: proof that the receiver holds the API key."""
        # Version 1.1.0 reports damage before the leading space and between the two spaces; here, both are empty.
        return f" {_mac(connection, f'probe-answer  {self.probe} {self.conn_id}')}".encode()


def callback_url(connection: Keys, conn_id: str, reference: str, task_instance_id: UUID | None = None) -> str | None:
    """
    Return the address that the service calls when a job has ended; None without ``callback_base_url``.

    :param conn_id: the connection's id, by which the API server finds it again
    :param reference: the submission's :attr:`~airflow_provider_luma.core.decision.SubmissionRecord.reference`
    :param task_instance_id: the try that submits; without it, the cost of a callback grows with the number of records
    """
    if connection.callback_base_url is None:
        return None
    of_try = task_instance_id.hex if task_instance_id is not None else None
    proof = CallbackProof(conn_id, reference, _token(connection, conn_id, reference, of_try), of_try)
    fields = {name: value for name, value in proof._asdict().items() if value is not None}
    return f"{connection.callback_base_url}{PATH}?{urlencode(fields)}"


def token_of(url: str) -> str:
    """Return the token in an address made by :func:`callback_url`, so that logs can mask it."""
    return parse_qs(urlsplit(url).query)["token"][0]


def is_ours(url: str | None, connection: Keys, reference: str | None = None, *, conn_id: str | None = None) -> bool:
    """
    Return whether a job's callback address was made by :func:`callback_url`.

    :param url: the callback address that the service reports for the job
    :param reference: the submission it must belong to; None for any
    :param conn_id: the connection that it must name; None for any with this API key
    """
    proof = _proof_in(url)
    if proof is None or reference not in (None, proof.reference) or conn_id not in (None, proof.conn_id):
        return False
    return proof.is_valid_for(connection)


def reference_of(url: str | None) -> str | None:
    """Return the submission that a job's callback address is for; None if the address is not one of ours."""
    proof = _proof_in(url)
    return proof.reference if proof is not None else None


def _proof_in(url: str | None) -> CallbackProof | None:
    # Not urlsplit: it normalises non-ASCII hosts, which takes half a minute for a host of 120,000 accented letters.
    address, _, query = (url or "").partition("?")
    return CallbackProof.read(query) if address.endswith(PATH) else None


def read_luma_task_id(body: bytes) -> str | None:
    """Return the id of the job that a callback is about; None if the body has no id."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    data = document.get("data") if isinstance(document, dict) else None
    if not isinstance(data, dict):
        return None
    # Other products of the service spell it task_id (https://docs.kie.ai/luma-api/generate-luma-modify-video-callbacks).
    luma_task_id = data.get("taskId") or data.get("task_id")
    if not isinstance(luma_task_id, str) or not luma_task_id.strip() or len(luma_task_id) > MAX_ID_LENGTH:
        return None
    # A lone surrogate is valid JSON, but no database accepts it.
    return luma_task_id if luma_task_id.isprintable() else None


def is_signed(headers: Mapping[str, str], luma_task_id: str, webhook_secret: str, now: float) -> bool:
    """
    Return whether the service has signed a callback within the last five minutes.

    :param headers: the callback's headers, with lower-case names
    :param now: seconds since the epoch
    """
    timestamp = headers.get("x-webhook-timestamp", "")
    if not re.fullmatch(r"\d{1,12}", timestamp, re.ASCII) or abs(now - int(timestamp)) > SIGNATURE_TOLERANCE:
        return False
    given = headers.get("x-webhook-signature", "")
    return hmac.compare_digest(given.encode(), signature(luma_task_id, timestamp, webhook_secret).encode())


def signature(luma_task_id: str, timestamp: str, webhook_secret: str) -> str:
    """Return a callback's signature, computed as the service does."""
    mac = hmac.new(webhook_secret.encode(), f"{luma_task_id}.{timestamp}".encode(), hashlib.sha256)
    return base64.b64encode(mac.digest()).decode()


def _token(connection: Keys, conn_id: str, reference: str, task_instance_id: str | None) -> str:
    # Reference and UUID have a fixed form, so no other input yields the same message.
    submission = reference if task_instance_id is None else f"by {task_instance_id} of {reference}"
    return _mac(connection, f"callback {submission} {conn_id}")


def _mac(connection: Keys, message: str) -> str:
    # A message starts with its purpose, and every part but the last has a fixed form.
    return hmac.new(connection.api_key.encode(), f"airflow-provider-luma {message}".encode(), "sha256").hexdigest()
