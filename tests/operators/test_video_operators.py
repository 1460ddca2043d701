# SPDX-License-Identifier: Apache-2.0
"""A film is split and joined on any storage, whole or not at all, and what it costs is known before."""

from __future__ import annotations

import io
import signal
from collections.abc import Callable
from pathlib import Path

import av
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.links.luma import ERROR_KEY, REQUEST_KEY
from airflow_provider_luma.media import child_process
from airflow_provider_luma.media.film_work import FilmProgress
from airflow_provider_luma.media.split import plan_split
from airflow_provider_luma.operators.video import PLAN_KEY, VideoJoinOperator, VideoSplitOperator
from tests.support.clips import clip as make_clip
from tests.support.films import broken
from tests.support.films import film as make_film
from tests.support.operator_fixtures import new_context
from tests.support.storages import BUCKET
from tests.support.task_instance import XComSequence
from tests.support.task_logs import messages

pytestmark = pytest.mark.slow


def seconds(video: bytes) -> float:
    with av.open(io.BytesIO(video)) as container:
        return float((container.duration or 0) / av.time_base)


@pytest.fixture
def film(tmp_path) -> Path:
    """A film of 25 seconds."""
    path = tmp_path / "film.mp4"
    path.write_bytes(make_clip(seconds=25, sound="aac"))
    return path


def split(film: str, destination: str, **options: object) -> tuple[list[str], dict[str, object]]:
    context = new_context()
    clips = VideoSplitOperator(task_id="split", source=film, destination=destination, **options).execute(context)
    return clips, context["ti"].pushed


def test_film_is_split_on_a_disk_and_joined_again(film, tmp_path):
    clips, pushed = split(str(film), str(tmp_path / "clips"))
    assert [Path(clip.removeprefix("file://")).name for clip in clips] == [f"clip-000{n}.mp4" for n in range(3)]
    assert pushed["clip_count"] == 3
    contents = [Path(clip.removeprefix("file://")).read_bytes() for clip in clips]
    assert all(seconds(content) <= 10 for content in contents)
    assert sum(map(seconds, contents)) == pytest.approx(25, abs=0.01)

    target = tmp_path / "out" / "film.mp4"
    join = VideoJoinOperator(
        task_id="join",
        clips=[[clip] for clip in clips],
        source=str(film),
        destination=str(target),
        plan=pushed[PLAN_KEY],
    )
    assert join.execute(new_context()).endswith(str(target))
    assert seconds(target.read_bytes()) == pytest.approx(25, abs=0.1)
    assert sorted(path.name for path in target.parent.iterdir()) == ["film.mp4"], "nothing else is left"


def test_film_goes_from_bucket_to_bucket_whatever_its_name(film, bucket):
    bucket.s3.upload_file(str(film), BUCKET, "Take #1?.mp4")
    root = f"s3://my_s3@{BUCKET}"
    clips, _ = split(f"{root}/Take #1?.mp4", f"{root}/tmp [a::b]/Take #1?")
    assert clips == [f"{root}/tmp [a::b]/Take #1?/clip-000{n}.mp4" for n in range(3)]
    join = VideoJoinOperator(
        task_id="join", clips=clips, source=f"{root}/Take #1?.mp4", destination=f"{root}/out/Take #2?.mp4"
    )
    assert join.execute(new_context()) == f"{root}/out/Take #2?.mp4"
    written = bucket.s3.get_object(Bucket=BUCKET, Key="out/Take #2?.mp4")["Body"].read()
    assert seconds(written) == pytest.approx(25, abs=0.1)
    lineage = join.get_openlineage_facets_on_complete(None)
    assert [dataset.name for dataset in (*lineage.inputs[:1], *lineage.outputs)] == ["Take #1?.mp4", "out/Take #2?.mp4"]


def test_film_that_makes_too_many_clips_is_refused_before_one_is_written(film, tmp_path, task_log):
    with pytest.raises(AirflowFailException, match="makes 3 clips, but max_clips is 2"):
        split(str(film), str(tmp_path / "clips"), max_clips=2)
    assert not (tmp_path / "clips").exists()
    assert len(messages(task_log, "Clips to submit to Luma: 3")) == 1


@pytest.mark.parametrize(
    ("seconds", "max_clips", "warnings"),
    [(600, None, 0), (601, None, 1), (601, 61, 0)],
)
def test_log_warns_of_many_clips_if_nothing_limits_them(seconds, max_clips, warnings, tmp_path, task_log):
    path = tmp_path / "film.mp4"
    path.write_bytes(make_clip(seconds=seconds, rate=5, size=(16, 16)))
    operator = VideoSplitOperator(
        task_id="split", source=str(path), destination=str(tmp_path / "clips"), max_clips=max_clips
    )
    with path.open("rb") as file:
        operator._announce(plan_split(file, 10), "film.mp4", new_context())
    logged = messages(task_log, "film.mp4 makes 61 clips. Modifying them takes 61 submissions")
    assert len(logged) == warnings
    assert all("Set max_clips" in message for message in logged)


@pytest.fixture
def service(luma, set_connection) -> Callable[[str], str]:
    """Let the connection lead to a service; return its id."""

    def _lead_to(name: str) -> str:
        set_connection(luma.base_url, service=name)
        return "luma_default"

    return _lead_to


@pytest.mark.parametrize(("name", "lengths"), [("kie", [8.3, 8.4, 8.3]), ("luma", [12.5, 12.5])])
def test_clips_are_as_long_as_the_service_of_the_connection_accepts(film, tmp_path, service, name, lengths):
    clips, pushed = split(str(film), str(tmp_path / "clips"), luma_conn_id=service(name))
    contents = [Path(clip.removeprefix("file://")).read_bytes() for clip in clips]
    assert [seconds(content) for content in contents] == pytest.approx(lengths, abs=0.05)
    assert pushed[PLAN_KEY]["clips"] == len(lengths)


def test_clip_seconds_that_only_some_services_accept_are_checked_with_the_connection(film, tmp_path, service):
    says = "clip_seconds is 15, but the service 'kie' of connection 'luma_default' accepts clips of at most 10 s"
    with pytest.raises(AirflowFailException, match=says):
        split(str(film), str(tmp_path / "clips"), clip_seconds=15, luma_conn_id=service("kie"))
    assert not (tmp_path / "clips").exists()
    clips, _ = split(str(film), str(tmp_path / "clips"), clip_seconds=15, luma_conn_id=service("luma"))
    assert len(clips) == 2


def test_clip_seconds_that_no_service_accepts_are_refused_when_the_dag_is_parsed():
    with pytest.raises(LumaValidationError, match="clip_seconds is 19, but no service accepts clips over 18 s"):
        VideoSplitOperator(task_id="split", source="/data/film.mp4", destination="/data/clips", clip_seconds=19)


@pytest.mark.parametrize(
    ("name", "options", "dollars"),
    [
        ("luma", None, 8.64),
        ("luma", {"video": {"resolution": "360p"}}, 4.32),
        ("luma", {"video": {"resolution": "2160p"}}, None),
        ("kie", None, None),
    ],
)
def test_price_of_a_film_is_told_before_its_clips_are_written(
    film, tmp_path, service, task_log, name, options, dollars
):
    _, pushed = split(str(film), str(tmp_path / "clips"), luma_conn_id=service(name), options=options)
    assert pushed[PLAN_KEY].get("us_dollars") == dollars
    logged = messages(task_log, "Estimated price of")
    expected = f"Estimated price of 2 clips: {dollars} US dollars, if prices have not changed"
    assert logged == ([] if dollars is None else [expected])


@pytest.mark.parametrize("kind", ["mkv", "ts"])
def test_film_of_another_container_is_split_and_joined(kind, tmp_path):
    source = tmp_path / f"film.{kind}"
    source.write_bytes(make_film(kind, frames=60, sound="aac"))
    clips, pushed = split(str(source), str(tmp_path / "clips"))
    assert clips[0].endswith("clip-0000.mp4")
    target = tmp_path / "out.mp4"
    VideoJoinOperator(
        task_id="join", clips=clips, source=str(source), destination=str(target), plan=pushed[PLAN_KEY]
    ).execute(new_context())
    assert seconds(target.read_bytes()) == pytest.approx(2, abs=0.05)


def test_playlist_is_refused_when_the_dag_is_parsed():
    with pytest.raises(LumaValidationError, match="source ends in .m3u8"):
        VideoSplitOperator(task_id="split", source="/data/film.m3u8", destination="/data/clips")


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "there is no such file"), (b"no film", "source"), (make_clip(codec=None, sound="aac"), "no video")],
    ids=["missing", "a text", "sound alone"],
)
def test_film_that_cannot_be_split_fails_the_task_without_using_its_retries(tmp_path, content, says):
    if content is not None:
        (tmp_path / "film.mp4").write_bytes(content)
    with pytest.raises(AirflowFailException, match=says):
        split(str(tmp_path / "film.mp4"), str(tmp_path / "clips"))
    assert not (tmp_path / "clips").exists()


def test_join_that_fails_leaves_the_file_that_was_there(film, tmp_path):
    clips, pushed = split(str(film), str(tmp_path / "clips"))
    target = tmp_path / "film.mp4.out.mp4"
    target.write_bytes(b"an earlier film")
    Path(clips[1].removeprefix("file://")).write_bytes(make_clip(seconds=1))
    join = VideoJoinOperator(
        task_id="join", clips=clips, source=str(film), destination=str(target), plan=pushed[PLAN_KEY]
    )
    with pytest.raises(AirflowFailException, match="clip-0001"):
        join.execute(new_context())
    assert target.read_bytes() == b"an earlier film"
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


def test_xcoms_of_the_clips_are_asked_for_no_more_than_there_are(film, tmp_path):
    clips = XComSequence([[str(film)]])
    join = VideoJoinOperator(task_id="join", clips=clips, source=str(film), destination=f"{tmp_path}/joined.mp4")
    join.execute(new_context())
    join.get_openlineage_facets_on_complete(None)
    assert clips.not_found == 0


def test_join_warns_of_what_is_not_kept(tmp_path, task_log):
    film = tmp_path / "film.mp4"
    film.write_bytes(make_clip(seconds=1, sound="ac3").replace(b"ac-3", b"zzzz"))
    clips, pushed = split(str(film), str(tmp_path / "clips"))
    VideoJoinOperator(
        task_id="join", clips=clips, source=str(film), destination=str(tmp_path / "out.mp4"), plan=pushed[PLAN_KEY]
    ).execute(new_context())
    assert len(messages(task_log, "film.mp4: audio track", "is not kept")) == 1


def test_split_warns_of_what_it_had_to_repair(tmp_path, task_log):
    film = tmp_path / "film.avi"
    film.write_bytes(broken(make_film("avi", frames=20, codec="mjpeg", pix_fmt="yuvj420p"), 10))
    split(str(film), str(tmp_path / "clips"))
    assert len(messages(task_log, "film.avi: broken frames, replaced by the frame before: 1")) == 1


def test_film_that_was_changed_since_it_was_split_is_not_joined(film, tmp_path):
    clips, pushed = split(str(film), str(tmp_path / "clips"))
    film.write_bytes(make_clip(seconds=24, sound="aac"))
    join = VideoJoinOperator(
        task_id="join", clips=clips, source=str(film), destination=str(tmp_path / "out.mp4"), plan=pushed[PLAN_KEY]
    )
    with pytest.raises(AirflowFailException, match="has changed since it was split"):
        join.execute(new_context())


def test_result_page_of_a_join_tells_source_and_failure_without_secrets(bucket, tmp_path):
    context = new_context()
    source = f"s3://my_s3@{BUCKET}/nowhere/film.mp4"
    join = VideoJoinOperator(task_id="join", clips=[], source=source, destination=str(tmp_path / "out.mp4"))
    with pytest.raises(AirflowFailException, match="no such file"):
        join.execute(context)
    pushed = context["ti"].pushed
    assert pushed["_link_LumaResultLink"].startswith("/luma/result?dag_id=films&")
    source = f"s3://{BUCKET}/nowhere/film.mp4"
    assert pushed[REQUEST_KEY] == {"kind": "film", "source": source, "modify_task_ids": []}
    assert pushed[ERROR_KEY]["msg"].endswith("/nowhere/film.mp4: there is no such file")
    assert "my_s3" not in str(pushed)


@pytest.mark.parametrize("missing", [0, 1])
def test_join_wants_every_clip_of_the_plan(film, tmp_path, missing):
    clips, pushed = split(str(film), str(tmp_path / "clips"))
    join = VideoJoinOperator(
        task_id="join",
        clips=clips[:missing],
        source=str(film),
        destination=str(tmp_path / "out.mp4"),
        plan=pushed[PLAN_KEY],
    )
    with pytest.raises(AirflowFailException, match="clips"):
        join.execute(new_context())


def test_join_says_what_to_do_with_clips_of_an_earlier_split(film, tmp_path):
    """The clips are paid for; Airflow keeps the XComs of map indexes that a longer split had made."""
    clips, pushed = split(str(film), str(tmp_path / "clips"))
    join = VideoJoinOperator(
        task_id="join",
        clips=[[clip] for clip in [*clips, *clips]],
        source=str(film),
        destination=str(tmp_path / "out.mp4"),
        plan=pushed[PLAN_KEY],
    )
    with pytest.raises(
        AirflowFailException, match=f"delete the return_value XComs .* from map index {len(clips)} on, and clear"
    ):
        join.execute(new_context())


def at_first_frame(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Do something while a film is decoded, when the first frame is reported."""
    acts = [act]
    monkeypatch.setattr(FilmProgress, "__call__", lambda *_: acts and acts.pop()())


def signal_decoder(number: signal.Signals) -> None:
    (process,) = child_process._running
    process.send_signal(number)


@pytest.mark.parametrize(
    ("number", "error", "says"),
    [
        (signal.SIGSEGV, AirflowFailException, r"^source \(.*film.mp4\) crashes FFmpeg \(SIGSEGV\)"),
        (signal.SIGKILL, ChildProcessError, r"source \(.*film.mp4\): .* was killed \(SIGKILL\)"),
    ],
)
def test_crash_in_decoding_uses_no_retry_and_lack_of_memory_does(film, tmp_path, monkeypatch, number, error, says):
    at_first_frame(monkeypatch, lambda: signal_decoder(number))
    with pytest.raises(error, match=says):
        split(str(film), str(tmp_path / "clips"))
    assert list(tmp_path.rglob("*.part")) == []


@pytest.mark.parametrize("step", ["split", "join"])
def test_task_that_is_killed_stops_at_once_and_leaves_nothing(film, tmp_path, monkeypatch, step):
    target = tmp_path / "out.mp4"
    operator = VideoSplitOperator(task_id="split", source=str(film), destination=str(tmp_path / "clips"))
    if step == "join":
        clips, pushed = split(str(film), str(tmp_path / "clips"))
        operator = VideoJoinOperator(
            task_id="join", clips=clips, source=str(film), destination=str(target), plan=pushed[PLAN_KEY]
        )
    at_first_frame(monkeypatch, operator.on_kill)
    with pytest.raises(ChildProcessError, match="Either the task was ended"):
        operator.execute(new_context())
    assert child_process._running == set()
    assert not target.exists()
    assert list(tmp_path.rglob("*.part")) == []


def test_clip_that_takes_more_than_its_film_may_fails_the_join_without_a_retry(film, tmp_path):
    clips, pushed = split(str(film), str(tmp_path / "clips"))
    Path(clips[2].removeprefix("file://")).write_bytes(make_clip(seconds=2, rate=1, size=(4096, 2176)))
    join = VideoJoinOperator(
        task_id="join", clips=clips, source=str(film), destination=str(tmp_path / "out.mp4"), plan=pushed[PLAN_KEY]
    )
    with pytest.raises(AirflowFailException, match=r"clip-0002.mp4\) has pictures of 4096 by 2176 pixels"):
        join.execute(new_context())
    assert not (tmp_path / "out.mp4").exists()
