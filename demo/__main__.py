# SPDX-License-Identifier: Apache-2.0
"""
The demo that ``make demo`` runs: a real Airflow modifies a clip.

With ``--cluster`` (``make demo-cluster``), Airflow runs with PostgreSQL, Redis, Celery, two workers and two triggerers.
Without an API key, the simulator replaces Luma. Environment variables:

* ``LUMA_API_KEY``: the key of a kie.ai account; with it, the demo calls kie.ai and spends credits
* ``LUMA_VIDEO``: the clip, a file on this machine; a film that is too long for Luma is split into clips
* ``LUMA_VIDEO_URL``: the public address of the clip (with an API key, this or ``LUMA_VIDEO`` is required)
* ``LUMA_PROMPT``: how to change the clip, in English
* ``DEMO_ONCE=1``: exit after the DAG run, with exit code 0 if it succeeded
* ``DEMO_HOME``: the folder for everything the demo writes (``.demo`` if unset); each version of Airflow has its own
  database there, because an older Airflow cannot use the database of a newer one
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, NoReturn
from urllib.parse import urlencode
from urllib.request import urlretrieve

import av
import av.error

from harness.cluster import AirflowCluster, services
from harness.local_airflow import ENDING, AirflowProblem, LocalAirflow

DAGS = Path(__file__).parent.parent / "dags"
PROMPT = "Make it a rainy night with neon lights"
SECONDS_AT_SIMULATOR = 25
AIRFLOW = ".".join(version("apache-airflow-core").split(".")[:2])
LONGEST_CLIP = 10.5
READY = "Luma simulator ready at "

HOW_TO_USE_LUMA = """\
With a kie.ai account, on a clip of your own (this spends credits):
    LUMA_API_KEY=... LUMA_VIDEO=/path/to/clip.mp4 make demo"""


def main(*, cluster: bool = False) -> int:
    """Run the demo; return its exit code."""
    for ending in ENDING:  # SIGINT as well: a shell starts background jobs with it ignored
        signal.signal(ending, _interrupt)
    api_key, file = os.environ.get("LUMA_API_KEY", ""), os.environ.get("LUMA_VIDEO", "")
    video = str(Path(file).absolute()) if file else os.environ.get("LUMA_VIDEO_URL", "")
    if api_key and not video:
        print("LUMA_API_KEY is set, but no clip: set LUMA_VIDEO to a file, or LUMA_VIDEO_URL to a public address.")
        return 2
    if file and not Path(file).is_file():
        print(f"LUMA_VIDEO is {file}, but there is no such file.")
        return 2
    home = Path(os.environ.get("DEMO_HOME", ".demo")).absolute()
    home.mkdir(parents=True, exist_ok=True)
    try:
        if api_key:
            return run(home, {"conn_type": "luma", "password": api_key}, video, file or None, cluster=cluster)
        webhook_secret = secrets.token_hex(16)
        with simulator(home / "simulator.txt", webhook_secret) as address:
            connection = {
                "conn_type": "luma",
                "host": address,
                "password": "simulator-key",
                "extra": {"webhook_secret": webhook_secret},
            }
            sample = f"{address}/files/sample.mp4"
            if not file:
                urlretrieve(sample, home / "clip.mp4")  # noqa: S310  (our own simulator)
            return run(home, connection, video or sample, file or str(home / "clip.mp4"), cluster=cluster)
    except AirflowProblem as problem:
        say(f"The demo failed: {problem}")
        return 1
    except KeyboardInterrupt:
        say("Stopped.")
        return 130


def run(home: Path, connection: dict[str, Any], video: str, file: str | None, *, cluster: bool) -> int:
    """
    Start Airflow, run the DAG, and keep Airflow running until Ctrl-C.

    :param video: the clip that is modified: a file, or a public address
    :param file: a clip on this machine, for the examples that take one
    :param cluster: run two Celery workers and two triggerers
    :returns: the exit code
    """
    environment = {"LUMA_VIDEO_URL": video, "LUMA_DESTINATION": f"file://{home}/videos"}
    if file:
        environment["LUMA_VIDEO"] = str(Path(file).absolute())
    with ExitStack() as running:
        local = prepare(home, environment, running, cluster=cluster)
        if "host" in connection:
            # The simulator is on this machine and can call Airflow; Luma itself cannot.
            connection["extra"]["callback_base_url"] = local.url
            own = {**connection, "extra": {"service": "luma"}}
            local.environment["AIRFLOW_CONN_LUMA_AGENTS"] = json.dumps(own)
        local.environment["AIRFLOW_CONN_LUMA_DEFAULT"] = json.dumps(connection)
        succeeded = show(running.enter_context(local), video, with_simulator="host" in connection)
        if os.environ.get("DEMO_ONCE") == "1":
            return 0 if succeeded else 1
        say("Airflow keeps running for you to explore. Ctrl-C ends it.")
        threading.Event().wait()
    return 0


def prepare(home: Path, environment: dict[str, str], running: ExitStack, *, cluster: bool) -> LocalAirflow:
    """Return an Airflow to start; the services that it needs run until ``running`` closes."""
    if not cluster:
        say("Starting Airflow (about half a minute) ...")
        return LocalAirflow(home / f"airflow-{AIRFLOW}", DAGS, environment)
    say("Starting PostgreSQL, Redis, and Airflow with two Celery workers and two triggerers (about a minute) ...")
    return AirflowCluster(home / "cluster", DAGS, environment, *running.enter_context(services()))


def show(airflow: LocalAirflow, video: str, *, with_simulator: bool) -> bool:
    """Run the example DAG on a video, and print where to see the result; return whether it succeeded."""
    airflow.run("pools", "set", "--include-deferred", "luma", "20", "Jobs running at Luma")
    say(f"Airflow is up: {airflow.url} (no login needed)")
    example = Example.of(video)
    run_id = airflow.trigger(example.dag_id, **example.params)
    say(f"Run {run_id} of the DAG {example.dag_id}: {airflow.url}/dags/{example.dag_id}/runs/{run_id}")
    query = urlencode({"dag_id": example.dag_id, "run_id": run_id, **example.modify})
    say(f"Before and after, side by side: {airflow.url}/luma/result?{query}")
    if "map_index" in example.modify:
        say(f"All clips: {airflow.url}/luma/gallery?{query}")
    succeeded = follow(airflow, example.dag_id, run_id)
    report(airflow, example, run_id, succeeded=succeeded, with_simulator=with_simulator)
    return succeeded


def follow(airflow: LocalAirflow, dag_id: str, run_id: str) -> bool:
    """Print the progress of the run until it ends; return whether it succeeded."""
    printed: dict[str, str] = {}
    printed_at = time.monotonic()
    while True:
        for task in airflow.tasks(dag_id, run_id):
            number = f"[{task['map_index']}]" if task["map_index"] >= 0 else ""
            name, state = task["task_id"] + number, task["state"] or "none"
            if printed.get(name) != state and state != "none":
                printed[name] = state
                printed_at = time.monotonic()
                say(f"  {name}: {_explained(state)}")
        state = airflow.run_state(dag_id, run_id)
        if state in ("success", "failed"):
            return state == "success"
        if time.monotonic() - printed_at > 10:
            printed_at = time.monotonic()
            say("  ... still waiting for Luma" if "deferred" in printed.values() else "  ... still running")
        time.sleep(1)


def report(airflow: LocalAirflow, example: Example, run_id: str, *, succeeded: bool, with_simulator: bool) -> None:
    """Print the result, and what to do next."""
    if succeeded:
        written = airflow.xcom(example.dag_id, run_id, example.last)
        for file in [written] if isinstance(written, str) else written:
            say(f"Done. The modified video: {file.removeprefix('file://')}")
    else:
        say(f"The run failed:\n{airflow.story(example.dag_id, run_id)}")
    say(f"The Airflow UI: {airflow.url}   (logs: {airflow.logs})")
    if with_simulator:
        say(HOW_TO_USE_LUMA)


@dataclass(frozen=True)
class Example:
    """
    A run of an example DAG.

    :param dag_id: the example DAG
    :param params: the params of the run
    :param modify: the task that modifies the video, or its first clip
    :param last: the task that returns the file, or a list with it
    """

    dag_id: str
    params: dict[str, str]
    modify: dict[str, object]
    last: str

    @classmethod
    def of(cls, video: str) -> Example:
        """Choose the example for a video: for a clip, or for a film that is too long for Luma."""
        prompt = os.environ.get("LUMA_PROMPT", PROMPT)
        if video.startswith("/") and _seconds(video) > LONGEST_CLIP:
            modify = {"task_id": "film.modify", "map_index": 0}
            return cls("luma_long_video", {"source": video, "prompt": prompt}, modify, "film.join")
        return cls("luma_modify", {"video_url": video, "prompt": prompt}, {"task_id": "modify"}, "download")


def _seconds(file: str) -> float:
    try:
        with av.open(file) as container:
            return (container.duration or 0) / av.time_base
    except av.error.FFmpegError:
        return 0.0  # the task will report what is wrong with the file


@contextmanager
def simulator(output: Path, webhook_secret: str) -> Iterator[str]:
    """Run the simulator on a free port; yield its address."""
    command = [sys.executable, "-m", "airflow_provider_luma.simulator", "--port", "0"]
    command += ["--processing-seconds", str(SECONDS_AT_SIMULATOR)]
    environment = {**os.environ, "LUMA_SIMULATOR_WEBHOOK_SECRET": webhook_secret}
    with output.open("wb") as errors:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith(READY):
            raise AirflowProblem(f"the simulator did not start; see {output}")
        threading.Thread(target=_drain, args=(process.stdout,), daemon=True).start()
        address = line.removeprefix(READY).strip()
        say(f"LUMA_API_KEY is not set, so a simulator replaces Luma: {address}")
        yield address
    finally:
        process.terminate()
        process.wait(timeout=10)


def say(text: str) -> None:
    """Print without buffering, even into a pipe."""
    print(text, flush=True)


def _explained(state: str) -> str:
    return "deferred: Luma is processing the video, and no worker slot is in use" if state == "deferred" else state


def _drain(stream: IO[str]) -> None:
    for _ in stream:
        pass


def _interrupt(*_: object) -> NoReturn:
    for ending in ENDING:  # a second Ctrl-C must not end the shutdown before everything has stopped
        signal.signal(ending, signal.SIG_IGN)
    with suppress(OSError):  # the terminal may be closed; print() is not reentrant
        os.write(1, b"\nStopping ...\n")
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(cluster=sys.argv[1:] == ["--cluster"]))
