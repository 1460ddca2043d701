# SPDX-License-Identifier: Apache-2.0
"""
Probes: what the test of a connection sends to its own callback address, and what the receiver answers. No I/O.

On the way a probe is what a callback is, and its token is of another kind: a probe's is none for a callback, and the
other way round. The receiver resumes nothing for a probe and records nothing. It says what has arrived, and proves that
it holds the API key; only who holds it too is answered. A probe is valid for minutes, so that one in a proxy's log is
worthless.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode

from airflow_provider_luma.core import callback_token

#: Repeats the query, so that a probe whose query was cut on the way is recognised all the same.
HEADER = "X-Luma-Probe"

#: Seconds that a probe's time may deviate from the receiver's: the clocks of two machines differ, too.
PROBE_LIFETIME = 300.0

#: Bytes of a probe's body, about twice what a callback has.
BODY_BYTES = 8192

#: What may not have arrived as it was sent.
QUERY, BODY, SIGNATURE = "query", "body", "signature"


class Probe(NamedTuple):
    """
    What a probe's address says.

    :ivar conn_id: the connection that a callback would come over
    :ivar probe: when the probe was made, in seconds since the epoch, and a number that is used once
    :ivar token: proves that whoever made it holds the connection's API key
    """

    conn_id: str
    probe: str
    token: str

    @classmethod
    def make(cls, connection: callback_token.Keys, conn_id: str, now: float) -> Probe:
        """Make a probe, with the connection's API key."""
        probe = f"{int(now)}-{secrets.token_hex(16)}"
        return cls(conn_id, probe, _mac(connection, "probe", probe, conn_id))

    @classmethod
    def read(cls, query: str, now: float) -> Probe | None:
        """Read the query of a probe's address; None if it is none, or too old."""
        try:
            pairs = parse_qsl(query, strict_parsing=True, max_num_fields=len(cls._fields), errors="strict")
        except ValueError:
            return None
        values = dict(pairs)
        if set(values) != set(cls._fields):
            return None
        probe = cls(**values)
        has_form = (
            len(probe.conn_id) <= callback_token.MAX_ID_LENGTH
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
        return body.encode().ljust(BODY_BYTES)

    def headers(self, connection: callback_token.Keys, now: float) -> dict[str, str]:
        """Return the headers: those of a callback, with the service's signature if the connection asks for it."""
        headers = {"Content-Type": "application/json", HEADER: self.query}
        if connection.webhook_secret:
            timestamp = str(int(now))
            headers["X-Webhook-Timestamp"] = timestamp
            headers["X-Webhook-Signature"] = callback_token.signature(self.probe, timestamp, connection.webhook_secret)
        return headers

    def is_valid_for(self, connection: callback_token.Keys) -> bool:
        """Tell whether the token was created with this connection's API key."""
        return hmac.compare_digest(self.token, _mac(connection, "probe", self.probe, self.conn_id))

    def answer(
        self, connection: callback_token.Keys, query: str, headers: Mapping[str, str], body: bytes, now: float
    ) -> str:
        """Write the receiver's answer: what has not arrived as it was sent, and the proof of who says so."""
        secret = connection.webhook_secret
        has_arrived = {
            QUERY: Probe.read(query, now) == self,
            BODY: body == self.body,
            SIGNATURE: not secret or callback_token.is_signed(headers, self.probe, secret, now),
        }
        faults = ",".join(part for part, is_whole in has_arrived.items() if not is_whole)
        return f"{faults} {_mac(connection, f'probe-answer {faults}', self.probe, self.conn_id)}"

    def read_answer(self, connection: callback_token.Keys, answer: str) -> list[str] | None:
        """Return what has not arrived as it was sent; None if the receiver has not written that answer."""
        faults, _, mac = answer.partition(" ")
        expected = _mac(connection, f"probe-answer {faults}", self.probe, self.conn_id)
        if not hmac.compare_digest(mac.encode(), expected.encode()):
            return None
        return [fault for fault in faults.split(",") if fault]


def _mac(connection: callback_token.Keys, purpose: str, probe: str, conn_id: str) -> str:
    # The purpose comes first, as it does in a callback's token, and only the last part is of any form.
    message = f"airflow-provider-luma {purpose} {probe} {conn_id}"
    return hmac.new(connection.api_key.encode(), message.encode(), hashlib.sha256).hexdigest()
