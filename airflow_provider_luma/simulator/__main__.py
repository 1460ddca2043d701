# SPDX-License-Identifier: Apache-2.0
"""Command line interface: ``python -m airflow_provider_luma.simulator``."""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args, get_origin

from pydantic import ValidationError

from . import INSTALL
from .settings import SECRET_FIELDS, Settings

if TYPE_CHECKING:
    from .server import Simulator

_DESCRIPTION = """\
A local simulator of Luma video modification, at kie.ai and by Luma's own API. It answers like the real services, spends
no credits, and renders real videos that visibly differ from their input. The options below set its timing and faults.
Everything it stores is deleted when it stops.
"""
_FAULTS = """\
faults:
  A fault is written ON:KIND[,NAME=VALUE...]. It hits every matching call or job, unless every, skip or times limit it.

  on     submit, status, upload, file (result files)
         credit, download_url (kie.ai)
         file_create, file_complete, file_status, file_list, file_delete (Luma's own API; upload is the PUT of a file)
         job (accepted jobs instead of calls)
  kind   refuse           with code=N; message=TEXT; retry_after=SECONDS; style=status or style=body (kie.ai);
                          limit=jobs or limit=requests, the kind of a 429 (Luma's own API)
         html             an HTML page with HTTP status code=N (default: 500)
         edge_block       the HTTP 403 of an edge that refuses unusual clients
         empty            HTTP status code=N (default: 200) without a body
         redirect         HTTP status code=N (default: 303), back to the same address
         truncated        the first half of the response, with a matching Content-Length
         cut              the connection is closed without a byte
         cut_body         the connection is closed half-way through the response
         wrong_length     Content-Length announces more than is sent
         hang             seconds=N before the normal response
         null_data, wrong_data            the envelope's data (Luma's own API: the body) is null, or a string
         unknown_flag, response_string    status: successFlag is flag=N (default: 9), response is JSON in a string;
                                          with Luma's own API, state is state_N, and output JSON in a string
         hostile_text     status: texts with half an emoji and NUL, numbers beyond 64 bits, NaN, deep nesting
         no_range         file: a range request is answered with the whole file
         create_failed, generate_failed, callback_failed, no_urls
                          job: its outcome; message=TEXT; code=N (kie.ai); failure_code=CODE (Luma's own API)
  which  every=N (each N-th call or job), skip=N (not the first N), times=N (N times at most),
         after_accept=true (submit: the job is accepted and billed, then the fault hits the response; upload,
         file_create, file_complete, file_delete: the call takes effect first),
         after_bytes=N (when N bytes of the request's body have arrived, before the rest)

secrets:
  The API key and the webhook secret can also be set by the environment variables LUMA_SIMULATOR_API_KEY and
  LUMA_SIMULATOR_WEBHOOK_SECRET, which other users of the machine cannot read.

examples:
  python -m airflow_provider_luma.simulator --processing-seconds 20 --credits 35
  python -m airflow_provider_luma.simulator --fault submit:refuse,code=429,times=2 --fault status:html,every=5
  python -m airflow_provider_luma.simulator --outcome generate_failed --error-message "The video is too dark."
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser with one option for each field of Settings, so that the two always agree."""
    parser = argparse.ArgumentParser(
        prog="python -m airflow_provider_luma.simulator",
        usage="%(prog)s [options]",
        description=_DESCRIPTION,
        epilog=_FAULTS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="Address to listen on (default: 127.0.0.1).")
    parser.add_argument("--port", type=int, default=8765, help="Port to listen on, 0 for any free one (default: 8765).")
    for name, field in Settings.model_fields.items():
        if name == "faults":
            continue
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help(field.description, field.default)}
        if field.annotation is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif choices := [value for value in get_args(field.annotation) if isinstance(value, str)]:
            options["choices"] = choices
        else:
            options["metavar"] = _metavar(field.annotation)
        parser.add_argument("--" + name.replace("_", "-"), **options)
    parser.add_argument(
        "--fault",
        dest="faults",
        action="append",
        metavar="ON:KIND[,NAME=VALUE...]",
        default=argparse.SUPPRESS,
        help=_help(f"{Settings.model_fields['faults'].description} Repeatable; see below.", None),
    )
    return parser


def _help(description: str | None, default: Any) -> str:
    suffix = "" if default is None or isinstance(default, bool) else f" (default: {default})"
    return f"{description}{suffix}".replace("%", "%%")


def _metavar(annotation: Any) -> str:
    types = get_args(annotation) if get_origin(annotation) else (annotation,)
    return "TEXT" if str in types else "N"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the simulator until SIGINT or SIGTERM."""
    parser = build_parser()
    values = {**_secrets_of_environment(), **vars(parser.parse_args(arguments))}
    host, port = values.pop("host"), values.pop("port")
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        parser.error("; ".join(_option_error(details) for details in error.errors()))
    missing = [name for name in ("av", "numpy") if importlib.util.find_spec(name) is None]
    if missing:
        needed = " and ".join(missing)
        parser.exit(1, f"The simulator renders real videos and needs {needed}: {INSTALL}\n")
    try:
        _run(settings, host, port)
    except (OSError, OverflowError) as error:
        parser.exit(1, f"The simulator cannot listen on {host} port {port}: {error}\n")


def _secrets_of_environment() -> dict[str, str]:
    """Return the secrets set by environment variables, which other users of the machine cannot read."""
    variables = {name: f"LUMA_SIMULATOR_{name.upper()}" for name in SECRET_FIELDS}
    return {name: os.environ[variable] for name, variable in variables.items() if os.environ.get(variable)}


def _option_error(error: Any) -> str:
    """Format one of pydantic's errors with the name of the option in place of the field."""
    location = [part for part in error["loc"] if isinstance(part, str)]
    option = "--fault" if location[0] == "faults" else "--" + location[0].replace("_", "-")
    return f"{' '.join([option, *location[1:]])}: {error['msg'].removeprefix('Value error, ')}"


def _run(settings: Settings, host: str, port: int) -> None:
    from .server import Simulator  # imported late, because it needs PyAV

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with Simulator(settings, host=host, port=port) as simulator:
        sys.stdout.write(_startup_message(simulator))
        sys.stdout.flush()
        stop.wait()


def _startup_message(simulator: Simulator) -> str:
    key = simulator.settings.api_key
    shown = key if key == Settings.model_fields["api_key"].default else "YOUR-KEY"
    host_and_port = simulator.base_url.removeprefix("http://")
    return (
        f"Luma simulator ready at {simulator.base_url}\n"
        f"  Luma's own API:     {simulator.luma_base_url}\n"
        f"  sample clip:        {simulator.sample_url}\n"
        f"  Airflow connection: export AIRFLOW_CONN_LUMA_DEFAULT='luma://:{shown}@{host_and_port}/http'\n"
        f"  stop:               Ctrl+C\n"
    )


if __name__ == "__main__":
    main()
