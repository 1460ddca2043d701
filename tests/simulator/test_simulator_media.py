# SPDX-License-Identifier: Apache-2.0
"""Specification of videos: accepted inputs, rendered results, sample clips and result files."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest

from airflow_provider_luma.simulator import Settings, Simulator, media
from airflow_provider_luma.simulator.account import Account
from airflow_provider_luma.simulator.job_runner import JobRunner
from airflow_provider_luma.simulator.services import kie

pytestmark = pytest.mark.slow


def frames(video: bytes) -> np.ndarray:
    """Decode every fifth frame."""
    with av.open(io.BytesIO(video)) as container:
        decoded = islice(container.decode(video=0), 0, None, 5)
        return np.stack([frame.to_ndarray(format="rgb24") for frame in decoded]).astype(np.int16)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).mean())


def refusal(client, url: str) -> str:
    response = client.submit(videoUrl=url)
    assert response.status_code == 422
    assert client.luma.accepted == 0
    assert client.luma.credits == 1000
    return response.json()["msg"]


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_an_unreachable_video_url_is_refused(client, web_server):
    assert "not reachable" in refusal(client, f"http://127.0.0.1:{closed_port()}/clip.mp4")
    assert "not reachable" in refusal(client, f"http://{'a' * 70}.invalid/clip.mp4")
    assert "HTTP 404" in refusal(client, web_server.url("/nothing.mp4"))


@pytest.mark.parametrize(
    "url", ["ftp://host/clip.mp4", "clip.mp4", "file:///etc/passwd", "http://", "http://[", "http://h:x/"]
)
def test_a_video_url_that_is_not_an_http_url_is_refused(client, url):
    assert "http or https" in refusal(client, url)


def test_an_input_video_that_exceeds_the_fetch_timeout_is_refused(make_client):
    client = make_client(fetch_timeout=0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "within 0.2 seconds" in refusal(client, f"http://127.0.0.1:{silent.getsockname()[1]}/clip.mp4")


def test_an_input_that_cannot_be_decoded_as_mp4_mov_or_avi_is_refused(client, web_server, make_clip):
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{client.luma.sample_url}\n#EXT-X-ENDLIST\n"
    assert "cannot be decoded" in refusal(client, web_server.serve("/list", playlist.encode()))
    assert not client.luma.calls[1:]
    assert "cannot be decoded" in refusal(client, web_server.serve("/page", b"<html>not a video</html>" * 100))
    assert "cannot be decoded" in refusal(client, web_server.serve("/empty", b""))
    assert "cannot be decoded" in refusal(client, web_server.serve("/half", make_clip()[:500]))
    assert "cannot be decoded" in refusal(client, web_server.serve("/mkv", make_clip("mkv")))


@pytest.mark.parametrize(("seconds", "code"), [(10.0, 200), (10.4, 200), (10.8, 422)])
def test_an_input_video_may_last_ten_seconds_with_half_a_second_of_tolerance(
    client, web_server, make_clip, seconds, code
):
    content = client.submit(videoUrl=web_server.serve("/clip", make_clip(seconds=seconds))).json()
    assert content["code"] == code
    assert code == 200 or f"lasts {seconds} seconds" in content["msg"]


def test_an_input_video_above_the_size_limit_is_refused(client, web_server, make_clip, monkeypatch):
    monkeypatch.setattr(kie, "MAX_VIDEO_BYTES", 400)
    assert "larger than" in refusal(client, web_server.serve("/clip", make_clip()))


@pytest.mark.parametrize(("kind", "codec"), [("mp4", "libx264"), ("mov", "libx264"), ("avi", "mpeg4")])
def test_mp4_mov_and_avi_inputs_are_accepted_and_visibly_changed(client, web_server, make_clip, kind, codec):
    clip = make_clip(kind, codec=codec)
    url = client.result_url(videoUrl=web_server.serve("/clip", clip))
    before, after = frames(clip), frames(client.anonymous.get(url).content)
    assert before.shape == after.shape
    assert difference(before, after) > 25


def test_redirects_of_a_video_url_are_followed(client, web_server, make_clip):
    web_server.serve("/clip", make_clip())
    assert client.submit(videoUrl=web_server.url("/moved")).json()["code"] == 200


def test_the_result_is_a_playable_mp4_that_visibly_differs_by_input_and_prompt(client):
    before = client.anonymous.get(client.luma.sample_url).content
    after = client.anonymous.get(client.result_url()).content
    assert difference(frames(before), frames(after)) > 40
    other = client.anonymous.get(client.result_url(prompt="Make it rain")).content
    assert difference(frames(after), frames(other)) > 5
    with av.open(io.BytesIO(after)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (video.width, video.height, video.frames) == (640, 360, 75)
        assert audio.codec_context.name == "aac"
        assert container.duration / av.time_base == pytest.approx(3.0, abs=0.1)
    assert after.index(b"moov") < after.index(b"mdat")


def test_a_grey_input_of_odd_size_is_visibly_changed_and_cropped_to_an_even_size(client, web_server, make_clip):
    clip = make_clip("avi", size=(65, 37), grey=127, codec="ffv1", sound="mp3")
    result = client.anonymous.get(client.result_url(videoUrl=web_server.serve("/clip", clip))).content
    before, after = frames(clip), frames(result)
    assert after.shape == (2, 36, 64, 3)
    assert difference(before[:, :36, :64], after) > 5
    with av.open(io.BytesIO(result)) as container:
        assert container.streams.audio[0].codec_context.name == "aac"


@pytest.mark.parametrize(
    ("matrix", "quarter_rotations"), [((0, 1, 0, -1, 0, 0), 3), ((0, -1, 0, 1, 0, 0), 1), ((-1, 0, 0, 0, -1, 0), 2)]
)
def test_rotation_metadata_of_the_input_is_applied_to_the_result(client, web_server, matrix, quarter_rotations):
    clip = client.anonymous.get(client.luma.sample_url).content
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    rotation = struct.pack(">9i", *(number << 16 for number in matrix), 0, 0, 1 << 30)
    # The first identity matrix is the movie's, the second one the video track's.
    head, movie_matrix, tail = clip.partition(identity)
    before, _, after = tail.partition(identity)
    url = web_server.serve("/clip", head + movie_matrix + before + rotation + after)
    unrotated = frames(client.anonymous.get(client.result_url()).content)
    result = frames(client.anonymous.get(client.result_url(videoUrl=url)).content)
    inside = np.s_[:, 30:-30, 30:-30]
    assert difference(np.rot90(unrotated, quarter_rotations, axes=(1, 2))[inside], result[inside]) < 4


def test_sample_clips_differ_from_each_other_and_never_change(client):
    names = ["sample.mp4", "sample-2.mp4", "sample-3.mp4", "sample-4.mp4"]
    clips = [client.get(f"/files/{name}").content for name in names]
    assert len(set(clips)) == 4
    assert [client.get(f"/files/{name}").content for name in names] == clips
    assert client.get("/files/sample-5.mp4").status_code == 404
    assert difference(frames(clips[0])[:1], frames(clips[1])[:1]) > 15


def test_many_jobs_with_the_same_clip_and_prompt_share_one_render(make_client):
    client = make_client(processing_seconds=0.1)
    before = client.luma.renders
    with ThreadPoolExecutor(20) as pool:
        task_ids = list(pool.map(lambda _: client.submit_and_get_id(prompt="The same many times"), range(40)))
    urls = [client.wait_for_end(task_id)["response"]["resultUrls"][0] for task_id in task_ids]
    assert len(set(urls)) == 40
    assert client.luma.accepted == 40
    assert client.luma.renders == before + 1


def test_requests_are_answered_while_a_render_runs(client, monkeypatch):
    render, begun, may_end = media.render, threading.Event(), threading.Event()

    def held(*arguments: Any, **options: Any) -> None:
        begun.set()
        may_end.wait(120)
        render(*arguments, **options)

    monkeypatch.setattr(media, "render", held)
    task_id = client.submit_and_get_id(prompt="Take your time")
    try:
        assert begun.wait(60)
        assert client.status(task_id).json()["data"]["successFlag"] == 0
        assert client.anonymous.get(client.luma.sample_url).status_code == 200
    finally:
        may_end.set()
    assert client.wait_for_end(task_id)["successFlag"] == 1


def test_result_files_need_no_api_key_and_support_range_requests(client):
    url = client.result_url()
    whole = client.anonymous.get(url)
    assert (whole.status_code, whole.headers["Content-Type"]) == (200, "video/mp4")
    assert int(whole.headers["Content-Length"]) == len(whole.content)
    part = client.anonymous.get(url, headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, whole.content[100:200])
    assert part.headers["Content-Range"] == f"bytes 100-199/{len(whole.content)}"
    rest = client.anonymous.get(url, headers={"Range": "bytes=500-"})
    assert rest.content == whole.content[500:]
    assert client.anonymous.get(url, headers={"Range": f"bytes={len(whole.content)}-"}).status_code == 416
    head = client.anonymous.head(url)
    assert (head.status_code, head.headers["Content-Length"], head.content) == (200, str(len(whole.content)), b"")
    assert not any(call.carried_authorization for call in client.luma.calls if call.on == "file")
    client.get(url)
    last = client.luma.calls[-1]
    assert last.carried_authorization
    assert "simulator-key" not in json.dumps(last.as_dict())


def test_result_files_expire_after_result_ttl(client):
    url = client.result_url()
    client.luma.configure(result_ttl=0)
    assert client.anonymous.get(url).status_code == 404
    assert client.post("/api/v1/common/download-url", json={"url": url}).json()["code"] == 422


def test_a_temporary_download_url_serves_the_result_until_it_expires(client):
    url = client.result_url()
    temporary = client.post("/api/v1/common/download-url", json={"url": url}).json()["data"]
    assert temporary != url
    assert client.anonymous.get(temporary).content == client.anonymous.get(url).content
    client.luma.configure(download_url_ttl=0)
    expired = client.post("/api/v1/common/download-url", json={"url": url}).json()["data"]
    assert client.anonymous.get(expired).status_code == 404
    assert client.anonymous.get(temporary).status_code == 200


@pytest.mark.parametrize(
    "body", [{}, {"url": None}, {"url": 5}, {"url": ["x"]}, {"url": "http://example.org/a.mp4"}, []]
)
def test_a_temporary_download_url_is_refused_for_anything_but_a_result_file(client, body):
    client.result_url()
    assert client.post("/api/v1/common/download-url", json=body).json()["code"] == 422


def test_stopping_ends_a_render_and_removes_the_temporary_folder(tmp_path, monkeypatch, wait_until):
    render, begun, cancelled = media.render, threading.Event(), threading.Event()

    def held(source: Path, target: Path, prompt: str, is_cancelled: Callable[[], bool], **options: Any) -> None:
        begun.set()
        wait_until(is_cancelled)
        try:
            render(source, target, prompt, is_cancelled, **options)
        except media.RenderCancelled:
            cancelled.set()
            raise

    monkeypatch.setattr(media, "render", held)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Simulator(Settings(fetch_timeout=60)) as luma:
        body = {"prompt": "x", "videoUrl": luma.sample_url}
        headers = {"Authorization": "Bearer simulator-key"}
        httpx.post(f"{luma.base_url}/api/v1/modify/generate", json=body, headers=headers, timeout=60)
        assert begun.wait(60)
        assert list(tmp_path.glob("luma-simulator-*"))
    assert cancelled.is_set()
    assert not list(tmp_path.glob("luma-simulator-*"))


async def test_a_sample_clip_is_written_once_for_concurrent_requests(tmp_path, monkeypatch) -> None:
    written_paths = []
    write_bytes = Path.write_bytes

    def write_and_record(path: Path, data: bytes) -> int:
        written_paths.append(path)
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", write_and_record)
    async with httpx.AsyncClient() as client:
        runner = JobRunner(Account(Settings()), tmp_path, client)
        paths = await asyncio.gather(*(runner.sample("sample.mp4") for _ in range(8)))
        await runner.close()
    assert written_paths == [tmp_path / "sample.mp4"]
    assert set(paths) == set(written_paths)
