# SPDX-License-Identifier: Apache-2.0
"""Videos: which inputs are taken, what comes out, and how result files and uploads are served."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import av
import httpx
import numpy as np
import pytest

from airflow_provider_luma.simulator import Settings, Simulator, inputs
from airflow_provider_luma.simulator.service import Service
from airflow_provider_luma.simulator.studio import Studio


def frames(video: bytes) -> np.ndarray:
    """Decode every fifth picture."""
    with av.open(io.BytesIO(video)) as container:
        decoded = islice(container.decode(video=0), 0, None, 5)
        return np.stack([frame.to_ndarray(format="rgb24") for frame in decoded]).astype(np.int16)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).mean())


def refusal(client, url: str) -> str:
    answer = client.submit(videoUrl=url)
    assert answer.status_code == 422
    assert client.luma.accepted == 0
    assert client.luma.credits == 1000
    return answer.json()["msg"]


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_inputs_that_cannot_be_reached(client, web):
    assert "not reachable" in refusal(client, f"http://127.0.0.1:{closed_port()}/clip.mp4")
    assert "not reachable" in refusal(client, f"http://{'a' * 70}.invalid/clip.mp4")
    assert "HTTP 404" in refusal(client, web.url("/nothing.mp4"))


@pytest.mark.parametrize(
    "url", ["ftp://host/clip.mp4", "clip.mp4", "file:///etc/passwd", "http://", "http://[", "http://h:x/"]
)
def test_inputs_that_are_no_web_url(client, url):
    assert "http or https" in refusal(client, url)


def test_an_input_that_does_not_come(start):
    client = start(fetch_timeout=0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "within 0.2 seconds" in refusal(client, f"http://127.0.0.1:{silent.getsockname()[1]}/clip.mp4")


def test_inputs_that_are_no_video(client, web, make_clip):
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{client.luma.sample_url}\n#EXT-X-ENDLIST\n"
    assert "cannot be decoded" in refusal(client, web.put("/list", playlist.encode()))
    assert not client.luma.calls[1:]
    assert "cannot be decoded" in refusal(client, web.put("/page", b"<html>not a video</html>" * 100))
    assert "cannot be decoded" in refusal(client, web.put("/empty", b""))
    assert "cannot be decoded" in refusal(client, web.put("/half", make_clip()[:500]))
    assert "cannot be decoded" in refusal(client, web.put("/mkv", make_clip("mkv")))


@pytest.mark.parametrize(("seconds", "code"), [(10.0, 200), (10.4, 200), (10.8, 422)])
def test_ten_seconds_at_most(client, web, make_clip, seconds, code):
    answer = client.submit(videoUrl=web.put("/clip", make_clip(seconds=seconds))).json()
    assert answer["code"] == code
    assert code == 200 or f"lasts {seconds} seconds" in answer["msg"]


def test_inputs_that_are_too_large(client, web, make_clip, monkeypatch):
    monkeypatch.setattr(inputs, "MAX_VIDEO_BYTES", 400)
    assert "larger than 500 MB" in refusal(client, web.put("/clip", make_clip()))


@pytest.mark.parametrize(("kind", "codec"), [("mp4", "libx264"), ("mov", "libx264"), ("avi", "mpeg4")])
def test_containers_that_are_taken(client, web, make_clip, kind, codec):
    clip = make_clip(kind, codec=codec)
    url = client.result_url(videoUrl=web.put("/clip", clip))
    before, after = frames(clip), frames(client.plain.get(url).content)
    assert before.shape == after.shape
    assert difference(before, after) > 25


def test_redirects_are_followed(client, web, make_clip):
    web.put("/clip", make_clip())
    assert client.submit(videoUrl=web.url("/moved")).json()["code"] == 200


def test_the_result_is_a_real_video_that_visibly_differs(client):
    before, after = client.plain.get(client.luma.sample_url).content, client.plain.get(client.result_url()).content
    assert difference(frames(before), frames(after)) > 40
    other = client.plain.get(client.result_url(prompt="Make it rain")).content
    assert difference(frames(after), frames(other)) > 5
    with av.open(io.BytesIO(after)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (video.width, video.height, video.frames) == (640, 360, 75)
        assert audio.codec_context.name == "aac"
        assert container.duration / av.time_base == pytest.approx(3.0, abs=0.1)
    assert after.index(b"moov") < after.index(b"mdat")


def test_even_grey_differs_and_odd_sizes_work(client, web, make_clip):
    clip = make_clip("avi", size=(65, 37), grey=127, codec="ffv1", sound="mp3")
    result = client.plain.get(client.result_url(videoUrl=web.put("/clip", clip))).content
    before, after = frames(clip), frames(result)
    assert after.shape == (2, 36, 64, 3)
    assert difference(before[:, :36, :64], after) > 5
    with av.open(io.BytesIO(result)) as container:
        assert container.streams.audio[0].codec_context.name == "aac"


@pytest.mark.parametrize(
    ("matrix", "turns"), [((0, 1, 0, -1, 0, 0), 3), ((0, -1, 0, 1, 0, 0), 1), ((-1, 0, 0, 0, -1, 0), 2)]
)
def test_films_of_a_turned_phone_come_out_upright(client, web, matrix, turns):
    clip = client.plain.get(client.luma.sample_url).content
    upright = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    turned = struct.pack(">9i", *(number << 16 for number in matrix), 0, 0, 1 << 30)
    head, found, tail = clip.partition(upright)  # the movie's own matrix
    before, _, after = tail.partition(upright)  # the video track's
    url = web.put("/clip", head + found + before + turned + after)
    plain = frames(client.plain.get(client.result_url()).content)
    result = frames(client.plain.get(client.result_url(videoUrl=url)).content)
    inside = np.s_[:, 30:-30, 30:-30]
    assert difference(np.rot90(plain, turns, axes=(1, 2))[inside], result[inside]) < 4


def test_samples_differ_from_each_other_and_stay_the_same(client):
    names = ["sample.mp4", "sample-2.mp4", "sample-3.mp4", "sample-4.mp4"]
    clips = [client.get(f"/files/{name}").content for name in names]
    assert len(set(clips)) == 4
    assert [client.get(f"/files/{name}").content for name in names] == clips
    assert client.get("/files/sample-5.mp4").status_code == 404
    assert difference(frames(clips[0])[:1], frames(clips[1])[:1]) > 15


def test_a_hundred_jobs_of_one_clip_cost_one_render(start):
    client = start(processing_seconds=0.1)
    before = client.luma.renders
    with ThreadPoolExecutor(20) as pool:
        task_ids = list(pool.map(lambda _: client.submitted(prompt="The same a hundred times"), range(100)))
    urls = [client.finished(task_id)["response"]["resultUrls"][0] for task_id in task_ids]
    assert len(set(urls)) == 100
    assert client.luma.accepted == 100
    assert client.luma.renders == before + 1


def test_calls_are_answered_while_a_render_runs(start, web, make_clip):
    client = start()
    clip = web.put("/clip", make_clip(seconds=9, size=(1280, 720)))
    task_id = client.submitted(videoUrl=clip)
    waits = []
    while client.luma.jobs[0].flag == 0:
        waits.append(client.status(task_id).elapsed.total_seconds())
    assert len(waits) > 3
    assert max(waits) < 1


def test_result_files_need_no_key_and_support_ranges(client):
    url = client.result_url()
    whole = client.plain.get(url)
    assert (whole.status_code, whole.headers["Content-Type"]) == (200, "video/mp4")
    assert int(whole.headers["Content-Length"]) == len(whole.content)
    part = client.plain.get(url, headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, whole.content[100:200])
    assert part.headers["Content-Range"] == f"bytes 100-199/{len(whole.content)}"
    rest = client.plain.get(url, headers={"Range": "bytes=500-"})
    assert rest.content == whole.content[500:]
    assert client.plain.get(url, headers={"Range": f"bytes={len(whole.content)}-"}).status_code == 416
    head = client.plain.head(url)
    assert (head.status_code, head.headers["Content-Length"], head.content) == (200, str(len(whole.content)), b"")
    assert not any(call.carried_authorization for call in client.luma.calls if call.on == "file")
    client.get(url)
    last = client.luma.calls[-1]
    assert last.carried_authorization
    assert "simulator-key" not in json.dumps(last.as_dict())


def test_results_expire(client):
    url = client.result_url()
    client.luma.configure(result_ttl=0)
    assert client.plain.get(url).status_code == 404
    assert client.post("/api/v1/common/download-url", json={"url": url}).json()["code"] == 422


def test_temporary_download_urls(client):
    url = client.result_url()
    temporary = client.post("/api/v1/common/download-url", json={"url": url}).json()["data"]
    assert temporary != url
    assert client.plain.get(temporary).content == client.plain.get(url).content
    client.luma.configure(download_url_ttl=0)
    expired = client.post("/api/v1/common/download-url", json={"url": url}).json()["data"]
    assert client.plain.get(expired).status_code == 404
    assert client.plain.get(temporary).status_code == 200


@pytest.mark.parametrize(
    "body", [{}, {"url": None}, {"url": 5}, {"url": ["x"]}, {"url": "http://example.org/a.mp4"}, []]
)
def test_temporary_urls_are_for_its_own_results_only(client, body):
    client.result_url()
    assert client.post("/api/v1/common/download-url", json=body).json()["code"] == 422


def test_uploads(client, make_clip):
    clip = make_clip()
    form = {"uploadPath": "in/clips", "fileName": "a b.mp4"}
    answer = client.post("/api/file-stream-upload", data=form, files={"file": ("x.mp4", clip)}).json()
    assert answer["success"] is True
    assert answer["code"] == 200
    data = answer["data"]
    assert (data["fileName"], data["filePath"], data["fileSize"]) == ("a b.mp4", "in/clips/a b.mp4", len(clip))
    assert data["mimeType"] == "video/mp4"
    assert client.plain.get(data["downloadUrl"]).content == clip
    assert client.submit(videoUrl=data["downloadUrl"]).json()["code"] == 200
    client.post("/api/file-stream-upload", data=form, files={"file": ("x.mp4", b"new")})
    assert client.plain.get(data["downloadUrl"]).content == b"new"
    client.luma.configure(upload_ttl=0)
    assert client.plain.get(data["downloadUrl"]).status_code == 404


def test_uploads_from_a_url(client, web):
    body = {"fileUrl": web.put("/page.txt", b"text"), "uploadPath": "in"}
    data = client.post("/api/file-url-upload", json=body).json()["data"]
    assert data["fileName"] == "page.txt"
    assert client.plain.get(data["downloadUrl"]).content == b"text"
    body["fileUrl"] = web.url("/nothing")
    assert client.post("/api/file-url-upload", json=body).json()["code"] == 422


@pytest.mark.parametrize("name", ["../../x", "a/b", "..", "/"])
def test_uploads_stay_where_they_belong(client, name):
    form = {"uploadPath": "in", "fileName": name}
    answer = client.post("/api/file-stream-upload", data=form, files={"file": ("x", b"1")}).json()
    assert answer["code"] == 422


def test_stopping_during_a_render_is_quick_and_leaves_no_folder(web, make_clip, tmp_path, monkeypatch, until):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    clip = web.put("/clip", make_clip(seconds=10, size=(1280, 720)))
    with Simulator(Settings(fetch_timeout=20)) as luma:
        body = {"prompt": "x", "videoUrl": clip}
        headers = {"Authorization": "Bearer simulator-key"}
        httpx.post(f"{luma.base_url}/api/v1/modify/generate", json=body, headers=headers, timeout=20)
        assert luma.accepted == 1
        until(lambda: luma.renders)
        assert list(tmp_path.glob("luma-simulator-*"))
    assert not list(tmp_path.glob("luma-simulator-*"))


async def test_a_sample_is_written_once_however_many_ask_for_it(tmp_path, monkeypatch) -> None:
    written = []
    write = Path.write_bytes

    def write_and_tell(path: Path, data: bytes) -> int:
        written.append(path)
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", write_and_tell)
    async with httpx.AsyncClient() as client:
        studio = Studio(Service(Settings()), tmp_path, client)
        paths = await asyncio.gather(*(studio.sample("sample.mp4") for _ in range(8)))
        await studio.close()
    assert written == [tmp_path / "sample.mp4"]
    assert set(paths) == set(written)
