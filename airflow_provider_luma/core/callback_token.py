# SPDX-License-Identifier: Apache-2.0
"""
Signed callback addresses (HMAC-SHA256), and the verification of the service's own webhook signature. No I/O.

The address names the connection, the submission and the try that submits, by its UUID in Airflow, and carries a token:
an HMAC over all three under the API key, which the submitting worker and the API server can both read from the
connection, and which cannot be guessed. So nothing has to be stored to tell a callback from a forgery. The UUID is the
primary key by which the receiver finds the submission's record, and tells nobody else anything: names of DAGs and tasks
would show in the access logs of proxies.

A callback is authenticated, but its body is not trusted: it only says which tasks to resume, and they ask Luma
themselves. The service's own signature (https://docs.kie.ai/common-api/webhook-verification) covers the task id and a
time and nothing else, and is checked beside the token wherever the connection holds a ``webhook_secret``.

The test of a connection sends a probe to the same address. It looks like a callback, but neither's token is valid as
the other's, and the receiver resumes and records nothing for it.
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

#: Where the API server takes callbacks, below its public address. The only path that Luma has to reach.
PATH = "/luma/callback"

#: Seconds that a signature's time may deviate, as the service's pages recommend.
SIGNATURE_TOLERANCE = 300.0

#: Seconds that a probe's time may deviate: one in a proxy's log is soon worthless, and two clocks differ.
PROBE_LIFETIME = 300.0

#: Bytes of a probe's body, about twice what a callback has.
PROBE_BYTES = 8192

MAX_ID_LENGTH = 250


class Keys(Protocol):
    """What of a connection signs callbacks and verifies them."""

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
    What a callback's address says: for which submission over which connection, and the token that proves it.

    :param task_instance_id: the try that has submitted, as 32 hexadecimal digits; None in addresses of version 1.0.0
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
            and proof.conn_id.isprintable()  # a lone surrogate, which JSON may hold, has no bytes to sign
            and re.fullmatch(r"[0-9a-f]{32}", proof.reference)
            and re.fullmatch(r"[0-9a-f]{64}", proof.token)
            and (proof.task_instance_id is None or re.fullmatch(r"[0-9a-f]{32}", proof.task_instance_id))
        )
        return proof if has_form else None

    def is_valid_for(self, connection: Keys) -> bool:
        """Tell whether the token was created with this connection's API key."""
        return hmac.compare_digest(self.token, _token(connection, self.conn_id, self.reference, self.task_instance_id))


class Probe(NamedTuple):
    """
    What a probe's address says. Version 1.1.0 sends the same, and expects the same answer.

    :param probe: when the probe was made, in seconds since the epoch, and a number that is used once
    :param token: proves that whoever made it holds the connection's API key
    """

    conn_id: str
    probe: str
    token: str

    @classmethod
    def make(cls, connection: Keys, conn_id: str, now: float) -> Probe:
        """Make a probe, with the connection's API key."""
        probe = f"{int(now)}-{secrets.token_hex(16)}"
        return cls(conn_id, probe, _mac(connection, f"probe {probe} {conn_id}"))

    @classmethod
    def read(cls, query: str, now: float) -> Probe | None:
        """Read the query of a probe's address; None if it is not one, or too old."""
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
        """What is sent, and has to arrive."""
        body = json.dumps({"code": 200, "msg": "probe", "data": {"taskId": self.probe}})
        return body.encode().ljust(PROBE_BYTES)

    def headers(self, connection: Keys, now: float) -> dict[str, str]:
        """Return the headers of a callback, with the service's signature if the connection asks for it."""
        headers, timestamp = {"Content-Type": "application/json"}, str(int(now))
        if connection.webhook_secret:
            headers["X-Webhook-Timestamp"] = timestamp
            headers["X-Webhook-Signature"] = signature(self.probe, timestamp, connection.webhook_secret)
        return headers

    def is_valid_for(self, connection: Keys) -> bool:
        """Tell whether the token was created with this connection's API key."""
        return hmac.compare_digest(self.token, _mac(connection, f"probe {self.probe} {self.conn_id}"))

    def answer(self, connection: Keys) -> bytes:
        """Return what the receiver answers to a probe that has arrived whole: the proof that it holds the API key."""
        # 1.1.0 lists what was damaged in front of the blank, and between the two in the message: here, nothing.
        return f" {_mac(connection, f'probe-answer  {self.probe} {self.conn_id}')}".encode()


def callback_url(connection: Keys, conn_id: str, reference: str, task_instance_id: UUID | None = None) -> str | None:
    """
    Return the address that Luma is to call when a submission's job has ended; None without ``callback_base_url``.

    :param conn_id: the connection's id, by which the API server finds it again
    :param reference: the submission's :attr:`~airflow_provider_luma.core.decision.SubmissionRecord.reference`
    :param task_instance_id: the try that submits; without it, a callback costs the more, the more records there are
    """
    if connection.callback_base_url is None:
        return None
    of_try = task_instance_id.hex if task_instance_id is not None else None
    proof = CallbackProof(conn_id, reference, _token(connection, conn_id, reference, of_try), of_try)
    fields = {name: value for name, value in proof._asdict().items() if value is not None}
    return f"{connection.callback_base_url}{PATH}?{urlencode(fields)}"


def token_of(url: str) -> str:
    """Return the token in an address of :func:`callback_url`, so that logs can mask it."""
    return parse_qs(urlsplit(url).query)["token"][0]


def is_ours(url: str | None, connection: Keys, reference: str | None = None, *, conn_id: str | None = None) -> bool:
    """
    Tell whether a job's callback address is one of :func:`callback_url`.

    :param url: what the service says of the job
    :param reference: the one submission it must belong to; None for any
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
    # Not urlsplit: it normalises a host that is not ASCII, which takes half a minute for one of 120,000 accents.
    address, _, query = (url or "").partition("?")
    return CallbackProof.read(query) if address.endswith(PATH) else None


def read_luma_task_id(body: bytes) -> str | None:
    """Return the id of the job that a callback is about; None if the body names none."""
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
    # A lone surrogate is valid JSON, and no database takes it.
    return luma_task_id if luma_task_id.isprintable() else None


def is_signed(headers: Mapping[str, str], luma_task_id: str, webhook_secret: str, now: float) -> bool:
    """
    Tell whether the service has signed a callback within the last five minutes.

    :param headers: the callback's headers, found by lower-case names
    :param now: seconds since the epoch
    """
    timestamp = headers.get("x-webhook-timestamp", "")
    if not re.fullmatch(r"\d{1,12}", timestamp, re.ASCII) or abs(now - int(timestamp)) > SIGNATURE_TOLERANCE:
        return False
    given = headers.get("x-webhook-signature", "")
    return hmac.compare_digest(given.encode(), signature(luma_task_id, timestamp, webhook_secret).encode())


def signature(luma_task_id: str, timestamp: str, webhook_secret: str) -> str:
    """Return what the service signs a callback with."""
    mac = hmac.new(webhook_secret.encode(), f"{luma_task_id}.{timestamp}".encode(), hashlib.sha256)
    return base64.b64encode(mac.digest()).decode()


def _token(connection: Keys, conn_id: str, reference: str, task_instance_id: str | None) -> str:
    # Reference and UUID have a fixed form, so nothing else gives the same message.
    submission = reference if task_instance_id is None else f"by {task_instance_id} of {reference}"
    return _mac(connection, f"callback {submission} {conn_id}")


def _mac(connection: Keys, message: str) -> str:
    # A message begins with its purpose, and all but its last part have a fixed form.
    return hmac.new(connection.api_key.encode(), f"airflow-provider-luma {message}".encode(), "sha256").hexdigest()
