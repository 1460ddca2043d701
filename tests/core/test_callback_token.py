# SPDX-License-Identifier: Apache-2.0
"""Callback addresses and their tokens, the service's own signature, and the task id that a callback names."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from dataclasses import replace
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit
from uuid import UUID

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from airflow_provider_luma.connection import LumaConnection
from airflow_provider_luma.core.callback_token import (
    PATH,
    SIGNATURE_TOLERANCE,
    CallbackProof,
    callback_url,
    is_ours,
    is_signed,
    read_luma_task_id,
    token_of,
)
from airflow_provider_luma.core.decision import new_reference
from airflow_provider_luma.simulator.callbacks import signature

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
#: More than Airflow allows as the id of a connection.
conn_ids = st.text(st.characters(codec="utf-8"), min_size=1, max_size=250).filter(str.isprintable)


def url_of(conn_id: str = "luma_default", reference: str = REFERENCE, connection: LumaConnection = CONNECTION) -> str:
    url = callback_url(connection, conn_id, reference)
    assert url is not None
    return url


def query_of(**changes: str) -> str:
    return urlencode({**FIELDS, **changes})


def is_valid_proof(query: str) -> bool:
    """Tell whether a query proves that a callback came over the connection it names."""
    proof = CallbackProof.read(query)
    return proof is not None and proof.is_valid_for(CONNECTION)


class TestAddress:
    def test_address_leads_to_the_receiver_below_the_public_address(self):
        parts = urlsplit(url_of())
        assert (parts.scheme, parts.netloc, parts.path) == ("https", "airflow.example.com", PATH)
        assert [name for name, _ in parse_qsl(parts.query)] == ["conn_id", "reference", "token"]

    def test_address_keeps_the_path_of_the_public_address(self):
        connection = replace(CONNECTION, callback_base_url="https://example.com/team/airflow")
        url = url_of(connection=connection)
        assert urlsplit(url).path == f"/team/airflow{PATH}"
        assert is_ours(url, connection, REFERENCE)

    def test_there_is_no_address_without_a_callback_base_url(self):
        assert callback_url(replace(CONNECTION, callback_base_url=None), "luma_default", REFERENCE) is None

    def test_address_does_not_hold_the_api_key(self):
        assert KEY not in url_of()

    @given(conn_id=conn_ids, reference=references, key=keys)
    @example("a/b", REFERENCE, KEY)
    @example("a b+c", REFERENCE, KEY)
    @example("a&token=b", REFERENCE, KEY)
    @example("conn_id=b", REFERENCE, KEY)
    @example("ünï-雨-🎬", REFERENCE, KEY)
    @example("%2F%25?#;", REFERENCE, KEY)
    @example("x" * 250, REFERENCE, KEY)
    def test_address_is_a_valid_proof_for_any_connection_id_reference_and_key(self, conn_id, reference, key):
        connection = replace(CONNECTION, api_key=key)
        url = url_of(conn_id, reference, connection)
        proof = CallbackProof.read(urlsplit(url).query)
        assert proof == (conn_id, reference, token_of(url), None)
        assert proof.is_valid_for(connection)
        assert is_ours(url, connection)
        assert is_ours(url, connection, reference)

    @given(conn_id=conn_ids, reference=references)
    def test_address_is_plain_ascii_without_blanks(self, conn_id, reference):
        url = url_of(conn_id, reference)
        assert url.isascii() and url.isprintable() and " " not in url

    def test_address_of_a_submission_is_the_same_each_time(self):
        assert url_of() == url_of()


class TestAddressOfATry:
    """The address also names the try that submits."""

    TRY = UUID("0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b")
    URL = callback_url(CONNECTION, "luma_default", REFERENCE, TRY) or ""

    def test_address_names_the_try_by_its_uuid(self):
        assert CallbackProof.read(urlsplit(self.URL).query) == (
            *("luma_default", REFERENCE, token_of(self.URL)),
            "0190a1b2c3d47e5f8a9b0c1d2e3f4a5b",
        )

    @given(conn_id=conn_ids, reference=references, key=keys, try_id=st.uuids())
    def test_address_is_a_valid_proof_for_any_connection_id_reference_try_and_key(
        self, conn_id, reference, key, try_id
    ):
        connection = replace(CONNECTION, api_key=key)
        url = callback_url(connection, conn_id, reference, try_id) or ""
        proof = CallbackProof.read(urlsplit(url).query)
        assert proof is not None and proof.task_instance_id == try_id.hex
        assert proof.is_valid_for(connection)
        assert is_ours(url, connection, reference)

    def test_address_stays_short(self):
        assert len(callback_url(CONNECTION, "x" * 250, REFERENCE, self.TRY) or "") < 600

    @pytest.mark.parametrize(
        "altered",
        [
            URL.partition("&task_instance_id=")[0],
            URL[:-1] + "0",
            URL[:-1],
            URL + "0",
            URL[:-32],
            URL[:-32] + TRY.hex.upper(),
            URL[:-32] + str(TRY),
            URL + "&task_instance_id=" + TRY.hex,
            URL.replace("task_instance_id=", "try="),
            URL.replace(REFERENCE, "f" * 32),
            URL.replace("conn_id=luma_default", "conn_id=luma_other"),
            # What is signed, split at other places.
            f"{BASE}{PATH}?"
            + urlencode({"conn_id": f"of {REFERENCE} luma_default", "reference": TRY.hex, "token": token_of(URL)}),
        ],
    )
    def test_altered_address_is_not_ours(self, altered):
        assert not is_ours(altered, CONNECTION)

    def test_token_of_an_address_without_a_try_does_not_fit_one_with_it(self):
        assert token_of(self.URL) != TOKEN
        assert not is_valid_proof(query_of(task_instance_id=self.TRY.hex))

    def test_address_of_version_1_0_0_stays_valid(self):
        """Its job may be running while this package is upgraded."""
        message = f"airflow-provider-luma callback {REFERENCE} luma_default"
        token = hmac.new(KEY.encode(), message.encode(), hashlib.sha256).hexdigest()
        assert is_valid_proof(urlencode({"conn_id": "luma_default", "reference": REFERENCE, "token": token}))


class TestToken:
    def test_token_of_an_address_is_its_query_parameter(self):
        assert parse_qs(urlsplit(url_of()).query)["token"] == [TOKEN]
        assert len(TOKEN) == 64

    @given(one=st.tuples(keys, conn_ids, references), other=st.tuples(keys, conn_ids, references))
    def test_token_differs_for_every_key_connection_id_and_reference(self, one, other):
        assume(one != other)
        first, second = (
            token_of(url_of(conn_id, reference, replace(CONNECTION, api_key=key)))
            for key, conn_id, reference in (one, other)
        )
        assert first != second

    def test_token_changes_with_the_api_key(self):
        other = replace(CONNECTION, api_key=KEY + "0")
        assert token_of(url_of(connection=other)) != TOKEN
        assert not is_ours(url_of(), other)

    def test_token_changes_with_the_connection_id(self):
        assert token_of(url_of("luma_other")) != TOKEN
        assert not is_valid_proof(query_of(conn_id="luma_other"))

    def test_token_changes_with_the_submission(self):
        other = new_reference()
        assert token_of(url_of(reference=other)) != TOKEN
        assert not is_valid_proof(query_of(reference=other))

    def test_token_does_not_change_with_other_fields_of_the_connection(self):
        other = replace(CONNECTION, base_url="https://other.example.com", webhook_secret=SECRET, timeout=1.0)
        assert token_of(url_of(connection=other)) == TOKEN


class TestCallbackProof:
    def test_query_of_an_address_of_ours_is_a_valid_proof(self):
        assert is_valid_proof(query_of())

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
            query_of(token="\u0660" * 64),  # digits, but not ASCII
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
    def test_altered_query_is_no_valid_proof(self, query):
        assert not is_valid_proof(query)
        assert not is_ours(f"{BASE}{PATH}?{query}", CONNECTION)

    @given(st.text(max_size=300))
    @example("conn_id=\ud800&reference=" + REFERENCE + "&token=" + TOKEN)
    def test_query_of_any_text_is_rejected_without_an_error(self, query):
        """It comes from the wire, or from the service's record of a job."""
        assert not is_valid_proof(query)
        assert not is_ours(f"{BASE}{PATH}?{query}", CONNECTION)

    @given(st.dictionaries(st.sampled_from(["conn_id", "reference", "token", "x"]), st.text(max_size=80)))
    def test_query_with_the_right_fields_and_any_values_is_rejected_without_an_error(self, fields):
        assume(fields != FIELDS)
        query = "&".join(f"{name}={value}" for name, value in fields.items())
        assert not is_valid_proof(query)
        assert not is_ours(f"{BASE}{PATH}?{query}", CONNECTION)

    @given(at=st.integers(0, 63), digit=st.sampled_from("0123456789abcdef"))
    def test_token_with_one_wrong_digit_is_rejected(self, at, digit):
        assume(TOKEN[at] != digit)
        assert not is_valid_proof(query_of(token=TOKEN[:at] + digit + TOKEN[at + 1 :]))

    def test_order_of_the_fields_does_not_matter(self):
        assert is_valid_proof(urlencode(dict(reversed(FIELDS.items()))))


class TestIsOurs:
    def test_address_is_ours_for_any_submission_and_for_its_own(self):
        assert is_ours(url_of(), CONNECTION)
        assert is_ours(url_of(), CONNECTION, REFERENCE)

    def test_address_is_not_that_of_another_submission(self):
        assert not is_ours(url_of(), CONNECTION, new_reference())

    def test_address_is_not_ours_with_another_api_key(self):
        assert not is_ours(url_of(), replace(CONNECTION, api_key="another"), REFERENCE)

    @pytest.mark.parametrize("url", [None, "", "nonsense", "https://", "http://[", "http://[::1", "//", "\ud800"])
    def test_what_is_no_address_is_not_ours(self, url):
        assert not is_ours(url, CONNECTION)

    @pytest.mark.parametrize("path", ["", "/", "/callback", "/luma", "/luma/callback/", "/luma/callback.json", "/hook"])
    def test_address_with_another_path_is_not_ours(self, path):
        assert not is_ours(f"{BASE}{path}?{query_of()}", CONNECTION)

    @pytest.mark.parametrize("base", ["http://airflow.example.com", "https://old.example.com:8443/airflow"])
    def test_address_is_ours_whatever_the_public_address_was_at_the_submission(self, base):
        assert is_ours(f"{base}{PATH}?{query_of()}", CONNECTION, REFERENCE)

    def test_host_of_any_length_and_script_is_read_at_once(self):
        """The event loop is that of all triggers of all DAGs: an address that Luma tells must not hold it up."""
        accents = "\N{COMBINING ACUTE ACCENT}\N{COMBINING GRAVE ACCENT BELOW}" * 30_000
        url = f"https://{accents}{PATH}?{query_of()}"
        started = time.thread_time()
        assert is_ours(url, CONNECTION)
        assert time.thread_time() - started < 0.5

    def test_webhook_of_a_user_is_not_ours(self):
        assert not is_ours("https://hooks.example.com/luma/callback?token=abc", CONNECTION)

    def test_fragment_is_not_read_as_the_query(self):
        assert not is_ours(f"{BASE}{PATH}#{query_of()}", CONNECTION)


class TestBaseUrlProblem:
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
    def test_private_base_url_is_a_problem_for_the_public_service(self, base):
        problem = replace(CONNECTION, callback_base_url=base).callback_problem
        assert problem is not None
        assert "callback_base_url" in problem
        assert (urlsplit(base).hostname or "") in problem

    @pytest.mark.parametrize("base", [None, BASE, "https://airflow.example.com:8443/x", "http://93.184.216.34"])
    def test_public_base_url_or_none_is_no_problem(self, base):
        assert replace(CONNECTION, callback_base_url=base).callback_problem is None

    @pytest.mark.parametrize("base", [None, BASE, "http://127.0.0.1:8080"])
    def test_private_base_url_is_no_problem_for_a_private_service(self, base):
        nearby = replace(CONNECTION, base_url="http://127.0.0.1:9000", callback_base_url=base)
        assert nearby.callback_problem is None


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
    def test_task_id_is_read_in_both_spellings(self, data, luma_task_id):
        assert read_luma_task_id(body(data)) == luma_task_id

    def test_task_id_of_a_failed_job_is_read(self):
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
    def test_body_whose_task_id_is_unusable_names_no_task(self, data):
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
    def test_body_that_is_no_such_json_document_names_no_task(self, raw):
        assert read_luma_task_id(raw) is None

    def test_lone_surrogate_in_utf_8_names_no_task(self):
        assert read_luma_task_id(b'{"data": {"taskId": "\xed\xa0\x80"}}') is None

    @given(st.binary(max_size=300))
    def test_any_bytes_name_no_task_and_raise_nothing(self, raw):
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
    def test_any_json_document_gives_a_task_id_that_logs_and_databases_take_or_none(self, document):
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


def is_valid(given: dict[str, str], *, luma_task_id: str = "abc", now: float = NOW) -> bool:
    return is_signed(given, luma_task_id, SECRET, now)


class TestIsSigned:
    def test_signature_is_computed_as_the_services_pages_say(self):
        """HMAC-SHA256 over id and time, joined by a dot, in base64."""
        mac = hmac.new(SECRET.encode(), f"abc.{NOW}".encode(), hashlib.sha256)
        assert headers()["x-webhook-signature"] == base64.b64encode(mac.digest()).decode()
        assert is_valid(headers())

    @given(luma_task_id=st.text(st.characters(codec="utf-8"), max_size=60), secret=st.text("abc 雨", min_size=1))
    def test_signature_of_the_service_is_valid_for_any_task_id_and_secret(self, luma_task_id, secret):
        given = headers(int(time.time()), luma_task_id=luma_task_id, secret=secret)
        assert is_signed(given, luma_task_id, secret, time.time())

    def test_signature_of_another_job_is_invalid(self):
        assert not is_valid(headers(), luma_task_id="abd")

    def test_signature_with_another_secret_is_invalid(self):
        assert not is_valid(headers(secret="another"))

    def test_signature_of_another_time_is_invalid(self):
        assert not is_valid({**headers(), "x-webhook-timestamp": str(NOW + 1)})

    @pytest.mark.parametrize("off", [-SIGNATURE_TOLERANCE, -299.5, 0, 299.5, SIGNATURE_TOLERANCE])
    def test_time_within_five_minutes_is_valid(self, off):
        assert is_valid(headers(), now=NOW + off)

    @pytest.mark.parametrize("off", [-301, -300.5, 300.5, 301, 86_400])
    def test_time_more_than_five_minutes_off_is_invalid(self, off):
        assert not is_valid(headers(), now=NOW + off)

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
    def test_timestamp_that_is_no_plain_number_is_invalid_even_if_signed(self, timestamp):
        assert not is_valid(headers(timestamp))

    @pytest.mark.parametrize("missing", ["x-webhook-timestamp", "x-webhook-signature"])
    def test_missing_header_is_invalid(self, missing):
        given = headers()
        del given[missing]
        assert not is_valid(given)

    def test_no_headers_at_all_are_invalid(self):
        assert not is_valid({})

    @pytest.mark.parametrize("given", ["", " ", "ÿ" * 44, "雨", "=" * 44, "A" * 43 + "=", "A" * 100_000])
    def test_text_that_is_no_signature_is_invalid(self, given):
        assert not is_valid({**headers(), "x-webhook-signature": given})

    def test_signature_in_hex_instead_of_base64_is_invalid(self):
        mac = base64.b64decode(headers()["x-webhook-signature"])
        assert not is_valid({**headers(), "x-webhook-signature": mac.hex()})

    @given(timestamp=st.text(st.characters(max_codepoint=255)), given=st.text(st.characters(max_codepoint=255)))
    def test_any_header_values_are_invalid_and_raise_nothing(self, timestamp, given):
        """A header on the wire is bytes, read as Latin-1."""
        assert not is_valid({"x-webhook-timestamp": timestamp, "x-webhook-signature": given})
