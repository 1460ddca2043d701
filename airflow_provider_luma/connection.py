# SPDX-License-Identifier: Apache-2.0
"""
The settings of an Airflow connection of type ``luma``, parsed and checked in one place.

``luma://:API-KEY@`` is a complete connection. Host, schema and port locate the service (the host may be a full URL),
the password is the API key, and the extra holds settings for callbacks, and transport options as in the HTTP provider.
Nothing else in the extra is ever sent anywhere, and no ``repr`` contains a secret.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_provider_luma.core.addresses import is_private_host
from airflow_provider_luma.core.validation import check_positive
from airflow_provider_luma.exceptions import LumaAuthError, LumaValidationError
from airflow_provider_luma.services import SERVICES, kie
from airflow_provider_luma.services.base import Service

if TYPE_CHECKING:
    from airflow.sdk import Connection

#: Seconds until a call times out, unless the connection's extra says otherwise.
DEFAULT_TIMEOUT = 30.0

#: Seconds for which a signed input address is valid, unless the connection's extra says otherwise: the service might
#: fetch the video only once the job starts.
DEFAULT_SIGNATURE_EXPIRY = 6 * 3600.0

#: Shorter ones may expire before the service fetches the video. S3 and Google create longer ones, but refuse them.
SHORTEST_SIGNATURE, LONGEST_SIGNATURE = 60.0, 7 * 86_400.0

#: What to tell users whose connection is a URI (in the environment or a secrets backend) that lost its key.
URI_REMEDY = (
    "In a URI, percent-encode special characters of the API key (/ as %2F, # as %23, ? as %3F, @ as %40, % as %25), or "
    'use the JSON form: {"conn_type": "luma", "password": "API-KEY"}'
)


@dataclass(frozen=True)
class LumaConnection:
    """
    A connection of type ``luma``.

    :param base_url: the service's address, without a trailing slash
    :param api_key: the key of the Luma account
    :param timeout: seconds until a call times out
    :param proxies: proxy addresses by scheme, if any
    :param verify: whether the server's certificate is checked, or the CA bundle to check it with
    :param cert: a client certificate: one file, or certificate and key
    :param trust_env: whether the environment's proxy settings apply
    :param allow_redirects: whether API calls follow redirects; the service itself never redirects
    :param max_redirects: how many redirects to follow
    :param callback_base_url: public address of Airflow's API server, without a trailing slash; None to poll
    :param requests_per_second: how many status checks per second the account allows
    :param webhook_secret: the key with which the service signs callbacks, if the account has signing turned on
    :param submission_store: a folder on any storage that keeps the records of submissions; None for Airflow's own
    :param upload_url: where files are uploaded, without a trailing slash
    :param sign_inputs: seconds for which a signed address of an input video is valid; None to upload the video
    :param min_credits: the credits below which nothing is submitted; None to submit as long as the service accepts
    :param conn_id: the id by which tasks refer to it
    :param service_name: the service that it leads to: ``kie`` or ``luma``
    """

    base_url: str
    api_key: str = field(repr=False)
    timeout: float = DEFAULT_TIMEOUT
    proxies: dict[str, str] = field(default_factory=dict, repr=False)
    verify: bool | str = True
    cert: str | tuple[str, str] | None = None
    trust_env: bool = True
    allow_redirects: bool = False
    max_redirects: int = 10
    callback_base_url: str | None = None
    requests_per_second: float = kie.requests_per_second
    webhook_secret: str | None = field(default=None, repr=False)
    submission_store: str | None = None
    upload_url: str = kie.upload_host
    sign_inputs: float | None = None
    min_credits: float | None = None
    conn_id: str = ""
    service_name: str = kie.name

    @classmethod
    def of(cls, connection: Connection, conn_id: str | None = None) -> LumaConnection:
        """
        Read an Airflow connection.

        :param conn_id: the id by which it was requested, which goes into records and callbacks: a secrets backend may
            return a connection with a different one
        :raises LumaAuthError: it holds no usable API key
        :raises LumaValidationError: its address is unusable, or an option is invalid
        """
        conn_id = conn_id or connection.conn_id
        name = f"connection {conn_id!r}"
        extra = _extra(connection, name)
        service = _service(extra.get("service"), connection, name)
        base_url = _base_url(connection, service, name)
        return cls(
            base_url=base_url,
            api_key=_api_key(connection, name),
            timeout=_number(extra.get("timeout", DEFAULT_TIMEOUT), "timeout", name),
            proxies=_proxies(extra.get("proxies", extra.get("proxy")), name),
            verify=_verify(extra.get("verify", extra.get("verify_ssl", True))),
            cert=_cert(extra.get("cert"), name),
            trust_env=_is_true(extra.get("trust_env", True)),
            allow_redirects=_is_true(extra.get("allow_redirects", False)),
            max_redirects=_max_redirects(extra.get("max_redirects", 10), name),
            callback_base_url=_callback_base_url(extra.get("callback_base_url"), name),
            requests_per_second=_number(
                extra.get("requests_per_second", service.requests_per_second), "requests_per_second", name
            ),
            webhook_secret=_webhook_secret(extra.get("webhook_secret"), name),
            submission_store=_submission_store(extra.get("submission_store"), name),
            upload_url=_upload_url(extra.get("upload_host"), base_url, service, name),
            sign_inputs=_sign_inputs(extra.get("sign_inputs"), name),
            min_credits=_min_credits(extra.get("min_credits"), service, name),
            conn_id=conn_id,
            service_name=service.name,
        )

    @property
    def service(self) -> Service:
        """The service that the connection leads to."""
        return SERVICES[self.service_name]

    def service_problem(self, service_name: str | None) -> str | None:
        """
        Return what to tell a user whose job belongs to a different service from the connection's.

        :param service_name: the job's service; None for the connection's, whichever that is
        """
        if service_name in (None, self.service_name):
            return None
        return (
            f"connection {self.conn_id!r} leads to the service {self.service_name!r} now, but the job belongs to "
            f"{service_name!r}: point the connection back to it, or use another connection for new jobs"
        )

    @property
    def is_public(self) -> bool:
        """Whether the service is on the public Internet, and so cannot reach private addresses."""
        return not is_private_host(urlsplit(self.base_url).hostname or "")

    @property
    def callback_problem(self) -> str | None:
        """What is wrong with ``callback_base_url``, if Luma could never call there."""
        host = urlsplit(self.callback_base_url or "").hostname
        if host and self.is_public and is_private_host(host):
            return (
                f"callback_base_url in the connection's extra points to {host}, which Luma cannot reach from the "
                "public Internet: use the public address of the Airflow API server, or leave it empty to poll Luma"
            )
        return None


def missing_connection(conn_id: str) -> str:
    """
    Return what to tell a user whose connection Airflow cannot find.

    Airflow raises the same error for connections that it cannot parse. The text is not quoted: it may hold the key.
    """
    variable = f"AIRFLOW_CONN_{conn_id.upper()}"
    if os.environ.get(variable):
        return f"luma_conn_id={conn_id!r}: Airflow cannot read the connection in {variable}. {URI_REMEDY}"
    return (
        f"luma_conn_id={conn_id!r}: connection not found. Create one of type Luma in Airflow (Admin > Connections) "
        f"with your API key, or set {variable}='luma://:API-KEY@'. If it exists, Airflow cannot read it. {URI_REMEDY}"
    )


def _extra(connection: Connection, name: str) -> dict[str, Any]:
    # Not Connection.extra_dejson: that calls the supervisor, which fails in an event loop with other calls under way.
    try:
        extra = json.loads(connection.extra or "{}")
    except (ValueError, RecursionError):
        extra = None
    if not isinstance(extra, dict):
        # The text is not quoted: it may hold secrets.
        raise LumaValidationError(None, f"{name}: its extra is not a JSON object: correct it, or leave it empty")
    # If a delimiter in a URI's key is not percent-encoded, Airflow reads the rest of the key as schema or extra.
    if "@" in (connection.schema or "") or any("@" in option for option in extra):
        raise LumaAuthError(None, f"{name}: the API key in its URI is not percent-encoded. {URI_REMEDY}")
    # A field left empty in the form arrives as null or as an empty string.
    return {option: value for option, value in extra.items() if value not in (None, "")}


def _service(value: object, connection: Connection, name: str) -> Service:
    """Return the service that the extra names, or else the one whose host the connection has."""
    if value is None:
        host = (connection.host or "").strip().lower()
        return next((one for one in SERVICES.values() if _host_of(one.host) in re.split("[/:@]", host)), kie)
    service = SERVICES.get(value.strip().lower()) if isinstance(value, str) else None
    if service is None:
        raise LumaValidationError(
            None, f"{name}: service in its extra is {value!r}: give one of {', '.join(SERVICES)}, or leave it empty"
        )
    return service


def _host_of(url: str) -> str:
    return urlsplit(url).hostname or ""


def _base_url(connection: Connection, service: Service, name: str) -> str:
    host = (connection.host or "").strip() or service.host
    if host.count(":") > 1 and "://" not in host and not host.startswith("["):
        host = f"[{host}]"  # an IPv6 address
    scheme, path = connection.schema or "https", service.base_path
    if f"/{scheme}" == path:
        scheme = "https"  # Airflow reads the path of a URI as the schema
    url = host if "://" in host else f"{scheme}://{host}"
    # The host is not quoted: somebody may have entered the key there.
    what_it_is = f"{name}: its host must be a host name or an http(s) address such as {service.host}"
    try:
        parts = urlsplit(url)
        hostname, port = parts.hostname, parts.port
    except ValueError:  # its message quotes part of the host
        raise LumaValidationError(None, what_it_is) from None
    has_more = "@" in parts.netloc or parts.query or parts.fragment or re.search(r"[\s\\]", url)
    if parts.scheme not in ("http", "https") or not hostname or has_more:
        raise LumaValidationError(None, f"{what_it_is}, without a user, query or whitespace")
    if connection.port and port is None:
        parts = parts._replace(netloc=f"{parts.netloc}:{connection.port}")
    return parts.geturl().rstrip("/").removesuffix(path).rstrip("/")


def _callback_base_url(value: object, name: str) -> str | None:
    if value is None:
        return None
    url = value.strip().rstrip("/") if isinstance(value, str) else ""
    if not _is_http_address(url) or re.search(r"[?#@\s\\]", url):
        raise LumaValidationError(
            None,
            f"{name}: callback_base_url in its extra must be the public http(s) address of Airflow's API server, "
            "without a user or query, e.g. https://airflow.example.com",
        )
    return url


def _webhook_secret(value: object, name: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise LumaValidationError(None, f"{name}: webhook_secret in its extra must be a string, and not blank")
    return value.strip()


def _submission_store(value: object, name: str) -> str | None:
    folder = value.strip().rstrip("/") if isinstance(value, str) else ""
    if value is not None and not re.match(r"/.|[a-z][a-z0-9+.-]*://.", folder):
        raise LumaValidationError(
            None,
            f"{name}: submission_store in its extra must be a folder shared by all workers, e.g. "
            "s3://my_aws@bucket/luma or file:///shared/airflow/luma",
        )
    return folder or None


def _upload_url(value: object, base_url: str, service: Service, name: str) -> str:
    if value is None:
        return service.upload_host if base_url == service.host else base_url
    url = value.strip().rstrip("/") if isinstance(value, str) else ""
    url = url if "://" in url else f"https://{url}"
    if not _is_http_address(url) or re.search(r"[?#@\s\\]", url):
        raise LumaValidationError(
            None,
            f"{name}: upload_host in its extra must be an http(s) address such as {service.upload_host}",
        )
    return url


def _sign_inputs(value: object, name: str) -> float | None:
    if value is None or str(value).strip().lower() in ("false", "0"):
        return None
    if str(value).strip().lower() == "true":
        return DEFAULT_SIGNATURE_EXPIRY
    seconds = _number(value, "sign_inputs", name)
    if not SHORTEST_SIGNATURE <= seconds <= LONGEST_SIGNATURE:
        raise LumaValidationError(
            None,
            f"{name}: sign_inputs in its extra must be {SHORTEST_SIGNATURE:g} to {LONGEST_SIGNATURE:g} seconds, or "
            f"true for six hours, not {seconds:g}",
        )
    return seconds


def _min_credits(value: object, service: Service, name: str) -> float | None:
    if value in (None, 0, "0"):
        return None
    if not service.has_balance:
        raise LumaValidationError(
            None,
            f"{name}: remove min_credits from its extra, because the service {service.name!r} reports no balance",
        )
    return _number(value, "min_credits", name)


def _api_key(connection: Connection, name: str) -> str:
    key = (connection.password or "").strip()
    if not key:
        raise LumaAuthError(None, f"{name} has no API key. {URI_REMEDY}")
    if not (key.isascii() and key.isprintable()) or " " in key:
        # HTTP clients reject such a header with a message that quotes it, including the key.
        raise LumaAuthError(None, f"{name}: its API key contains invalid characters, such as a space or line break")
    return key


def _number(value: object, option: str, name: str) -> float:
    is_digits = isinstance(value, str) and value.isascii() and value.replace(".", "", 1).isdigit()
    number = float(value) if is_digits else value  # type: ignore[arg-type]
    check_positive(f"{name}: {option} in its extra", number)
    return float(number)  # type: ignore[arg-type]


def _proxies(value: object, name: str) -> dict[str, str]:
    proxies = {"all": value} if isinstance(value, str) else value or {}
    if not isinstance(proxies, dict) or not all(isinstance(proxy, str) for proxy in proxies.values()):
        raise LumaValidationError(
            None, f'{name}: proxies in its extra must be a URL, or an object of URLs by scheme: {{"https": ...}}'
        )
    bypassed = {"no_proxy": proxies.pop("no_proxy")} if "no_proxy" in (proxies := dict(proxies)) else {}
    proxies = {scheme: proxy if "://" in proxy else f"http://{proxy}" for scheme, proxy in proxies.items()}
    for proxy in proxies.values():
        if not _is_http_address(proxy):
            raise LumaValidationError(None, f"{name}: proxies in its extra must be http(s) URLs")
    return proxies | bypassed


def _is_http_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _verify(value: object) -> bool | str:
    if isinstance(value, str) and value.strip().lower() not in ("true", "false", "1", "0"):
        return _expanded(value)
    return _is_true(value)


def _cert(value: object, name: str) -> str | tuple[str, str] | None:
    parameter = f"{name}: cert in its extra"
    if value is None:
        return None
    if isinstance(value, str):
        return _expanded(value)
    if isinstance(value, list) and len(value) == 2 and all(isinstance(file, str) for file in value):
        return _expanded(value[0]), _expanded(value[1])
    raise LumaValidationError(None, f"{parameter} must be one file, or a list of two files: certificate and key")


def _expanded(path: str) -> str:
    # Existence is checked where the file is used: the API server also reads connections, and does not need the file.
    return os.path.expanduser(path)  # noqa: PTH111  (Path.expanduser raises if there is no such user)


def _max_redirects(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)) or not str(value).isdecimal():
        raise LumaValidationError(None, f"{name}: max_redirects in its extra must be a whole number, not {value!r}")
    return int(value)


def _is_true(value: object) -> bool:
    return value.strip().lower() in ("true", "1") if isinstance(value, str) else bool(value)
