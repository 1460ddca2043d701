# SPDX-License-Identifier: Apache-2.0
"""The address of a callback, what proves that a call may ring, and what of its body is read."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from dataclasses import replace
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from airflow_provider_luma.callbacks import (
    FRESHNESS,
    PATH,
    Proof,
    callback_url,
    is_ours,
    is_signed,
    read_luma_task_id,
    token_of,
    unreachable_base,
)
from airflow_provider_luma.connection import LumaConnection
from airflow_provider_luma.simulator.callbacks import signature
from airflow_provider_luma.submission import new_reference

KEY = "sk-0123456789"
BASE = "https://airflow.example.com"
CONNECTION = LumaConnection("https://api.kie.ai", KEY, callback_base_url=BASE)
REFERENCE = "0123456789abcdef0123456789abcdef"
TOKEN = token_of(callback_url(CONNECTION, "luma_default", REFERENCE) or "")
FIELDS = {"conn_id": "luma_default", "reference": REFERENCE, "token": TOKEN}
NOW = 1_800_000_000
SECRET = "whsec-0123456789"

keys = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=80)
references = st.builds(new_reference)
#: What Airflow lets a connection be called is less than that.
conn_ids = st.text(st.characters(codec="utf-8"), min_size=1, max_size=250).filter(str.isprintable)


def url_of(conn_id: str = "luma_default", reference: str = REFERENCE, connection: LumaConnection = CONNECTION) -> str:
    url = callback_url(connection, conn_id, reference)
    assert url is not None
    return url


def query_of(**changes: str) -> str:
    return urlencode({**FIELDS, **changes})


def reads_as_proof(query: str) -> bool:
    """Whether a query would ring, over the connection it names."""
    proof = Proof.read(query)
    return proof is not None and proof.holds_for(CONNECTION)


class TestAddress:
    def test_it_leads_to_the_receiver_below_the_public_address(self):
        parts = urlsplit(url_of())
        assert (parts.scheme, parts.netloc, parts.path) == ("https", "airflow.example.com", PATH)
        assert [name for name, _ in parse_qsl(parts.query)] == ["conn_id", "reference", "token"]

    def test_also_below_a_path(self):
        connection = replace(CONNECTION, callback_base_url="https://example.com/team/airflow")
        url = url_of(connection=connection)
        assert urlsplit(url).path == f"/team/airflow{PATH}"
        assert is_ours(url, connection, REFERENCE)

    def test_without_a_base_there_is_none(self):
        assert callback_url(replace(CONNECTION, callback_base_url=None), "luma_default", REFERENCE) is None

    def test_the_key_is_not_in_it(self):
        assert KEY not in url_of()

    @given(conn_id=conn_ids, reference=references, key=keys)
    @example("a/b", REFERENCE, KEY)
    @example("a b+c", REFERENCE, KEY)
    @example("a&token=b", REFERENCE, KEY)
    @example("conn_id=b", REFERENCE, KEY)
    @example("ünï-雨-🎬", REFERENCE, KEY)
    @example("%2F%25?#;", REFERENCE, KEY)
    @example("x" * 250, REFERENCE, KEY)
    def test_it_proves_what_it_says(self, conn_id, reference, key):
        connection = replace(CONNECTION, api_key=key)
        url = url_of(conn_id, reference, connection)
        proof = Proof.read(urlsplit(url).query)
        assert proof == (conn_id, reference, token_of(url))
        assert proof.holds_for(connection)
        assert is_ours(url, connection)
        assert is_ours(url, connection, reference)

    @given(conn_id=conn_ids, reference=references)
    def test_it_is_plain_ascii_without_blanks(self, conn_id, reference):
        url = url_of(conn_id, reference)
        assert url.isascii() and url.isprintable() and " " not in url

    def test_it_says_the_same_each_time(self):
        assert url_of() == url_of()


class TestToken:
    def test_it_is_the_one_in_the_address(self):
        assert parse_qs(urlsplit(url_of()).query)["token"] == [TOKEN]
        assert len(TOKEN) == 64

    @given(one=st.tuples(keys, conn_ids, references), other=st.tuples(keys, conn_ids, references))
    def test_no_two_are_alike(self, one, other):
        assume(one != other)
        first, second = (
            token_of(url_of(conn_id, reference, replace(CONNECTION, api_key=key)))
            for key, conn_id, reference in (one, other)
        )
        assert first != second

    def test_it_changes_with_the_key(self):
        other = replace(CONNECTION, api_key=KEY + "0")
        assert token_of(url_of(connection=other)) != TOKEN
        assert not is_ours(url_of(), other)

    def test_it_changes_with_the_connections_id(self):
        assert token_of(url_of("luma_other")) != TOKEN
        assert not reads_as_proof(query_of(conn_id="luma_other"))

    def test_it_changes_with_the_submission(self):
        other = new_reference()
        assert token_of(url_of(reference=other)) != TOKEN
        assert not reads_as_proof(query_of(reference=other))

    def test_it_does_not_change_with_what_else_is_in_the_connection(self):
        other = replace(CONNECTION, base_url="https://other.example.com", webhook_secret=SECRET, timeout=1.0)
        assert token_of(url_of(connection=other)) == TOKEN


class TestForgeries:
    def test_the_right_query_is_read(self):
        assert reads_as_proof(query_of())

    @pytest.mark.parametrize(
        "query",
        [
            "",
            "&",
            "=",
            "conn_id",
            "token=" + TOKEN,
            urlencode({"conn_id": "luma_default", "reference": REFERENCE}),
            query_of(token=""),
            query_of(conn_id=""),
            query_of(reference=""),
            query_of(token=TOKEN[:-1]),
            query_of(token=TOKEN + "0"),
            query_of(token=TOKEN.upper()),
            query_of(token="0" * 64),
            query_of(token=TOKEN + "\n"),
            query_of(token="\u0660" * 64),  # digits, though none of ours
            query_of(reference=REFERENCE.upper()),
            query_of(reference=REFERENCE[:-1]),
            query_of(reference=REFERENCE + "\n"),
            query_of(reference="../../../etc/passwd"),
            query_of(conn_id="x" * 251),
            query_of(conn_id="luma_default\x00"),
            query_of(conn_id="luma_default\n"),
            query_of() + f"&token={TOKEN}",
            query_of() + "&token=",
            query_of() + "&conn_id=luma_default",
            query_of() + "&more=1",
            query_of() + "&",
            query_of().replace("&", ";"),
            query_of().replace("token=", "Token="),
            urlencode({**FIELDS, "more": 1}),
            urlencode([("conn_id", "luma_default"), ("conn_id", "luma_default"), ("token", TOKEN)]),
            "?" + query_of(),
            query_of(conn_id="luma").replace("conn_id=luma", "conn_id=%ff"),
            "&".join("x=1" for _ in range(100_000)),
        ],
        ids=lambda query: query[:60],
    )
    def test_others_are_not(self, query):
        assert not reads_as_proof(query)
        assert not is_ours(f"{BASE}{PATH}?{query}", CONNECTION)

    @given(st.text(max_size=300))
    @example("conn_id=\ud800&reference=" + REFERENCE + "&token=" + TOKEN)
    def test_whatever_is_asked_is_answered(self, query):
        """A query may hold anything: from the wire, or in what the service says of a job."""
        assert not reads_as_proof(query)
        assert not is_ours(f"{BASE}{PATH}?{query}", CONNECTION)

    @given(st.dictionaries(st.sampled_from(["conn_id", "reference", "token", "x"]), st.text(max_size=80)))
    def test_also_in_the_right_form(self, fields):
        assume(fields != FIELDS)
        query = "&".join(f"{name}={value}" for name, value in fields.items())
        assert not reads_as_proof(query)
        assert not is_ours(f"{BASE}{PATH}?{query}", CONNECTION)

    @given(at=st.integers(0, 63), digit=st.sampled_from("0123456789abcdef"))
    def test_no_digit_of_the_token_may_be_wrong(self, at, digit):
        assume(TOKEN[at] != digit)
        assert not reads_as_proof(query_of(token=TOKEN[:at] + digit + TOKEN[at + 1 :]))

    def test_the_order_does_not_matter(self):
        assert reads_as_proof(urlencode(dict(reversed(FIELDS.items()))))


class TestIsOurs:
    def test_for_any_submission_or_its_own(self):
        assert is_ours(url_of(), CONNECTION)
        assert is_ours(url_of(), CONNECTION, REFERENCE)

    def test_not_for_another_submission(self):
        assert not is_ours(url_of(), CONNECTION, new_reference())

    def test_with_another_key_none_is(self):
        assert not is_ours(url_of(), replace(CONNECTION, api_key="another"), REFERENCE)

    @pytest.mark.parametrize("url", [None, "", "nonsense", "https://", "http://[", "http://[::1", "//", "\ud800"])
    def test_nothing_or_nonsense(self, url):
        assert not is_ours(url, CONNECTION)

    @pytest.mark.parametrize("path", ["", "/", "/callback", "/luma", "/luma/callback/", "/luma/callback.json", "/hook"])
    def test_not_at_another_path(self, path):
        assert not is_ours(f"{BASE}{path}?{query_of()}", CONNECTION)

    @pytest.mark.parametrize("base", ["http://airflow.example.com", "https://old.example.com:8443/airflow"])
    def test_wherever_the_api_server_was_when_it_was_made(self, base):
        """The token proves it, not the address: that may have changed since."""
        assert is_ours(f"{base}{PATH}?{query_of()}", CONNECTION, REFERENCE)

    def test_a_users_own_webhook_is_not(self):
        assert not is_ours("https://hooks.example.com/luma/callback?token=abc", CONNECTION)

    def test_a_fragment_is_no_query(self):
        assert not is_ours(f"{BASE}{PATH}#{query_of()}", CONNECTION)


class TestUnreachableBase:
    @pytest.mark.parametrize(
        "base",
        [
            "http://localhost:8080",
            "http://127.0.0.1",
            "http://10.1.2.3:8080/airflow",
            "http://192.168.0.1",
            "http://[::1]:8080",
            "http://airflow",
            "http://airflow.local",
        ],
    )
    def test_a_public_service_cannot_call_a_private_address(self, base):
        problem = unreachable_base(replace(CONNECTION, callback_base_url=base))
        assert problem is not None
        assert "callback_base_url" in problem
        assert (urlsplit(base).hostname or "") in problem

    @pytest.mark.parametrize("base", [None, BASE, "https://airflow.example.com:8443/x", "http://93.184.216.34"])
    def test_a_public_address_is_fine_and_so_is_none(self, base):
        assert unreachable_base(replace(CONNECTION, callback_base_url=base)) is None

    @pytest.mark.parametrize("base", [None, BASE, "http://127.0.0.1:8080"])
    def test_a_service_nearby_may_call_anywhere(self, base):
        nearby = replace(CONNECTION, base_url="http://127.0.0.1:9000", callback_base_url=base)
        assert unreachable_base(nearby) is None


def body(data: object, **more: object) -> bytes:
    return json.dumps({"code": 200, "msg": "Video modified successfully.", "data": data, **more}).encode()


class TestReadLumaTaskId:
    @pytest.mark.parametrize(
        ("data", "luma_task_id"),
        [
            ({"taskId": "abc"}, "abc"),
            ({"task_id": "abc"}, "abc"),
            ({"taskId": "abc", "task_id": "def"}, "abc"),
            ({"taskId": None, "task_id": "def"}, "def"),
            ({"taskId": "", "task_id": "def"}, "def"),
            ({"taskId": "ünï 雨", "resultUrls": ["https://e.com/v.mp4"], "promptJson": "{"}, "ünï 雨"),
            ({"taskId": "x" * 250}, "x" * 250),
        ],
        ids=str,
    )
    def test_as_the_service_spells_it(self, data, luma_task_id):
        assert read_luma_task_id(body(data)) == luma_task_id

    def test_a_failed_job_too(self):
        assert read_luma_task_id(body({"taskId": "abc"}, code=501, msg="no people, please")) == "abc"

    @pytest.mark.parametrize(
        "data",
        [
            None,
            [],
            ["taskId"],
            "taskId",
            7,
            {},
            {"taskId": None},
            {"taskId": ""},
            {"taskId": " "},
            {"taskId": "\t\n"},
            {"taskId": 7},
            {"taskId": True},
            {"taskId": ["abc"]},
            {"taskId": {"taskId": "abc"}},
            {"taskid": "abc"},
            {"taskId": "x" * 251},
            {"taskId": "a\x00b"},
            {"taskId": "a\nb"},
            {"taskId": "a\x1b[31mb"},
            {"taskId": "\ud800"},
            {"task_id": "abc\udfff"},
        ],
        ids=lambda data: ascii(data)[:40],
    )
    def test_none(self, data):
        assert read_luma_task_id(body(data)) is None

    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            b"null",
            b"OK",
            b"<html>",
            b"\xff\xfe\x00",
            b"\x80",
            b'{"data": {"taskId": "abc"}',
            b'["data"]',
            b'"data"',
            b'{"taskId": "abc"}',
            b"taskId=abc",
            b'{"data": {"taskId": "abc"}} more',
            b"1" * 10_000,
            b"[" * 200_000,
            b'{"data":' * 50_000,
            b'{"data": {"taskId": "' + b"x" * 250_000 + b'"}}',
        ],
        ids=lambda raw: repr(raw[:30]),
    )
    def test_no_such_document(self, raw):
        assert read_luma_task_id(raw) is None

    def test_a_lone_surrogate_in_utf_8_is_none(self):
        assert read_luma_task_id(b'{"data": {"taskId": "\xed\xa0\x80"}}') is None

    @given(st.binary(max_size=300))
    def test_any_bytes(self, raw):
        assert read_luma_task_id(raw) is None

    @given(
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["data", "taskId", "task_id", "x"]), inner, max_size=3)
            ),
            max_leaves=8,
        )
    )
    def test_any_document(self, document):
        """What is read can be written: to a log, to a database."""
        luma_task_id = read_luma_task_id(json.dumps(document).encode())
        if luma_task_id is not None:
            assert document["data"].get("taskId") == luma_task_id or document["data"]["task_id"] == luma_task_id
            assert luma_task_id.strip()
            assert luma_task_id.encode() and "\x00" not in luma_task_id


def headers(timestamp: object = NOW, *, luma_task_id: str = "abc", secret: str = SECRET) -> dict[str, str]:
    return {
        "x-webhook-timestamp": str(timestamp),
        "x-webhook-signature": signature(luma_task_id, str(timestamp), secret),
    }


def holds(given: dict[str, str], *, luma_task_id: str = "abc", now: float = NOW) -> bool:
    return is_signed(given, luma_task_id, SECRET, now)


class TestIsSigned:
    def test_it_is_the_signature_of_the_services_pages(self):
        """HMAC-SHA256 over id and time, joined by a dot, in base64."""
        mac = hmac.new(SECRET.encode(), f"abc.{NOW}".encode(), hashlib.sha256)
        assert headers()["x-webhook-signature"] == base64.b64encode(mac.digest()).decode()
        assert holds(headers())

    @given(luma_task_id=st.text(st.characters(codec="utf-8"), max_size=60), secret=st.text("abc 雨", min_size=1))
    def test_what_the_service_signs_holds(self, luma_task_id, secret):
        given = headers(int(time.time()), luma_task_id=luma_task_id, secret=secret)
        assert is_signed(given, luma_task_id, secret, time.time())

    def test_not_for_another_job(self):
        assert not holds(headers(), luma_task_id="abd")

    def test_not_with_another_secret(self):
        assert not holds(headers(secret="another"))

    def test_not_for_another_time(self):
        assert not holds({**headers(), "x-webhook-timestamp": str(NOW + 1)})

    @pytest.mark.parametrize("off", [-FRESHNESS, -299.5, 0, 299.5, FRESHNESS])
    def test_a_time_that_is_near_enough(self, off):
        assert holds(headers(), now=NOW + off)

    @pytest.mark.parametrize("off", [-301, -300.5, 300.5, 301, 86_400])
    def test_a_time_that_is_not(self, off):
        assert not holds(headers(), now=NOW + off)

    @pytest.mark.parametrize(
        "timestamp",
        [
            "",
            " ",
            "now",
            f" {NOW}",
            f"{NOW}\n",
            f"+{NOW}",
            f"-{NOW}",
            f"{NOW}.0",
            f"{NOW:_}",
            f"{NOW}000",
            hex(NOW),
            "1.8e9",
            "inf",
            "nan",
            "9" * 5000,
            "".join(chr(0x0660 + int(digit)) for digit in str(NOW)),
            "".join(chr(0xFF10 + int(digit)) for digit in str(NOW)),
            "²" * 10,
        ],
        ids=lambda timestamp: ascii(timestamp)[:30],
    )
    def test_a_time_that_is_none(self, timestamp):
        """Signed as it stands, so it is the time itself that is refused."""
        assert not holds(headers(timestamp))

    @pytest.mark.parametrize("missing", ["x-webhook-timestamp", "x-webhook-signature"])
    def test_a_header_that_is_missing(self, missing):
        given = headers()
        del given[missing]
        assert not holds(given)

    def test_no_headers(self):
        assert not holds({})

    @pytest.mark.parametrize("given", ["", " ", "ÿ" * 44, "雨", "=" * 44, "A" * 43 + "=", "A" * 100_000])
    def test_a_signature_that_is_none(self, given):
        assert not holds({**headers(), "x-webhook-signature": given})

    def test_in_hex_it_is_another_encoding(self):
        mac = base64.b64decode(headers()["x-webhook-signature"])
        assert not holds({**headers(), "x-webhook-signature": mac.hex()})

    @given(timestamp=st.text(st.characters(max_codepoint=255)), given=st.text(st.characters(max_codepoint=255)))
    def test_any_headers(self, timestamp, given):
        """A header on the wire is bytes, read as Latin-1."""
        assert not holds({"x-webhook-timestamp": timestamp, "x-webhook-signature": given})
