# SPDX-License-Identifier: Apache-2.0
"""A file's first bytes show its container, or that it is not a video."""

from __future__ import annotations

import pytest

from airflow_provider_luma.media.signatures import container_of, demuxers_of, no_video_kind
from tests.support.clips import clip


@pytest.mark.parametrize(
    ("kind", "codec", "name"),
    [
        ("mp4", "libx264", "mp4"),
        ("mov", "libx264", "mov"),
        ("avi", "mpeg4", "avi"),
        ("mkv", "libx264", "mkv"),
        ("webm", "libvpx", "webm"),
    ],
)
def test_container_is_known_by_the_name_that_services_call_it(kind, codec, name):
    head = clip(kind, codec=codec)[:64]
    container = container_of(head)
    assert container
    assert name in container.names
    assert no_video_kind(head) is None


def test_container_of_anything_else_is_unknown():
    assert container_of(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR") is None
    assert container_of(b"") is None


def test_ffmpeg_gets_the_demuxers_of_the_containers_that_a_service_takes_and_no_others():
    assert demuxers_of(("mp4", "mov", "avi")) == "avi,mov,mp4,m4a,3gp,3g2,mj2"
    assert demuxers_of(("mp4",)) == "mov,mp4,m4a,3gp,3g2,mj2"
    assert demuxers_of(("avi",)) == "avi"
