# SPDX-License-Identifier: Apache-2.0
"""What is refused before anything is sent: prompts, addresses, ids and numbers that the service could never take."""

from __future__ import annotations

import re
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_luma.core import validation
from airflow_provider_luma.exceptions import LumaValidationError


class TestPrompt:
    """The service takes English only. Whether a text is English is not checked, but that its script is Latin."""

    @pytest.mark.parametrize(
        "prompt",
        [
            "make it a rainy night",
            "x",
            "  surrounded by blanks\n",
            "café, naïve, Straße, señor, Łódź, İstanbul",
            "𝓼𝓽𝔂𝓵𝓮𝓭 𝖋𝖔𝖓𝖙𝖘",
            "ｆｕｌｌ ｗｉｄｔｈ",
            "ﬁre and ﬂames",
            "🌧️ 🎬 rain",
            "🌧️",
            "24",
            "1980s film look, 50% slower, €5, № 5, ½",
            "“quotes” — dashes … and 100°",
            "a 5 µm macro shot",
            "a neon π on the wall, β particles, 10 kΩ and Δt",
            "𝛽-version (α, ω)",
        ],
    )
    def test_prompt_in_the_latin_script_is_allowed(self, prompt):
        validation.check_prompt(prompt)
        validation.check_english(prompt)

    @pytest.mark.parametrize(
        "prompt", [None, "", " ", "\n\t", "\u3000", 5, [], b"rain"], ids=lambda prompt: ascii(prompt)
    )
    def test_blank_prompt_or_none_is_refused(self, prompt):
        with pytest.raises(LumaValidationError, match="prompt") as caught:
            validation.check_prompt(prompt)
        assert "describe how to change the video" in str(caught.value)
        assert caught.value.code is None

    @pytest.mark.parametrize(
        ("prompt", "quoted"),
        [
            ("сделай дождь", "сделай"),
            ("让它下雨", "让它下雨"),
            ("雨にして", "雨にして"),
            ("비가 오게", "비가"),
            ("اجعلها تمطر", "اجعلها"),
            ("בגשם", "בגשם"),
            ("κάνε βροχή", "κ"),
            ("make it με rain", "με"),
            ("a wall of ΠΩ", "ΠΩ"),
            ("बारिश", "ब"),
            ("make it раin", "ра"),
        ],
    )
    def test_prompt_in_another_script_is_refused_and_quoted(self, prompt, quoted):
        with pytest.raises(LumaValidationError, match="prompt") as caught:
            validation.check_english(prompt)
        assert quoted in str(caught.value)
        assert "translate" in str(caught.value)

    def test_long_prompt_in_another_script_is_quoted_briefly(self):
        with pytest.raises(LumaValidationError) as caught:
            validation.check_english("雨" * 5000)
        assert len(str(caught.value)) < 300

    @pytest.mark.parametrize("half", ["\ud83d", "\x00"], ids=ascii)
    def test_prompt_with_half_a_character_or_nul_is_refused(self, half):
        with pytest.raises(LumaValidationError, match="prompt contains a NUL or a lone surrogate"):
            validation.check_prompt(f"rain {half}")

    @given(st.text())
    def test_any_prompt_is_allowed_or_refused_with_a_validation_error(self, prompt):
        with suppress(LumaValidationError):
            validation.check_prompt(prompt)
            validation.check_english(prompt)

    @given(st.text(st.characters(codec="ascii")))
    @example(".md")
    @example("night.txt\n")
    @example("night.md")
    @example("prompts/night.txt")
    @example("make it look like night.md")
    @example("a.txt b")
    @example("night.MD")
    @example("\x1c")
    @example("rain\x00.md")
    def test_ascii_prompt_is_refused_only_if_it_is_blank_or_names_a_file_or_holds_a_nul(self, prompt):
        is_blank = re.fullmatch(r"\s*", prompt)
        is_file = re.fullmatch(r"\s*\S*\.(txt|md)\s*", prompt)
        if is_blank or is_file or "\0" in prompt:
            with pytest.raises(LumaValidationError, match="prompt"):
                validation.check_prompt(prompt)
        else:
            validation.check_prompt(prompt)
            validation.check_english(prompt)


CONTAINERS = ("mp4", "mov", "avi")

CHECKS = {"video_url": validation.check_video_url, "callback_url": validation.check_callback_url}


@pytest.mark.parametrize(("parameter", "check"), CHECKS.items(), ids=CHECKS)
class TestUrls:
    """Addresses that the service is to fetch or call."""

    @pytest.mark.parametrize(
        "url",
        [
            "https://example.com/v.mp4",
            "http://example.com/v.mp4",
            "HTTPS://EXAMPLE.COM/v.mp4",
            "https://example.com",
            "https://example.com:8443/v.mp4",
            "https://user:secret@example.com/v.mp4",
            "https://bucket.s3.amazonaws.com/v.mp4?X-Amz-Signature=a%20b&x=1#t=3",
            "https://93.184.215.14/v.mp4",
            "https://[2606:2800:21f:cb07:6820:80da:af6b:8b2c]/v.mp4",
            "https://exämple.com/vidéo.mp4",
            "https://example.com./v.mp4",
        ],
    )
    def test_public_address_is_allowed(self, parameter, check, url):
        check(url, service_is_public=True)

    @pytest.mark.parametrize(
        ("url", "remedy"),
        [
            (None, "must be a public"),
            ("", "must be a public"),
            ("  ", "must be a public"),
            (5, "must be a public"),
            (["https://example.com"], "must be a public"),
            ("ftp://example.com/v.mp4", "http:// or https://"),
            ("s3://bucket/v.mp4", "http:// or https://"),
            ("file:///etc/passwd", "http:// or https://"),
            ("javascript:alert(1)", "http:// or https://"),
            ("example.com/v.mp4", "http:// or https://"),
            ("/videos/v.mp4", "http:// or https://"),
            ("//example.com/v.mp4", "http:// or https://"),
            ("http://", "no host"),
            ("http:///v.mp4", "no host"),
            ("https://:8080/v.mp4", "no host"),
            ("https://example.com/a b.mp4", "whitespace"),
            (" https://example.com/v.mp4", "whitespace"),
            ("https://example.com/v.mp4\n", "whitespace"),
            ("https://example.com/\tv.mp4", "whitespace"),
            ("https://example.com/\x00", "NUL"),
            ("https://example.com:99999/v.mp4", "not a valid address"),
            ("https://example.com:port/v.mp4", "not a valid address"),
            ("https://[::1/v.mp4", "not a valid address"),
        ],
        ids=repr,
    )
    def test_text_that_is_no_http_address_is_refused_with_a_remedy(self, parameter, check, url, remedy):
        with pytest.raises(LumaValidationError) as caught:
            check(url)
        assert parameter in str(caught.value)
        assert remedy in str(caught.value)
        assert caught.value.code is None

    @pytest.mark.parametrize(
        "host",
        [
            "localhost",
            "LOCALHOST",
            "localhost.",
            "sub.localhost",
            "intranet",
            "minio",
            "files.local",
            "files.internal",
            "nas.lan",
            "nas.home.arpa",
            "127.0.0.1",
            "127.0.0.1.",
            "127.1",
            "0x7f.1",
            "0X7F000001",
            "2130706433",
            "017700000001",
            "0.0.0.0",
            "10.0.0.5",
            "10.1",
            "172.16.3.4",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "224.0.0.1",
            "[::1]",
            "[::]",
            "[fe80::1]",
            "[fe80::1%25eth0]",
            "[fc00::1]",
            "[ff02::1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:10.0.0.1]",
            "[::ffff:a00:1]",
            "[::10.0.0.1]",
            "[::ffff:0:10.0.0.1]",
            "[64:ff9b::10.0.0.1]",
            "[64:ff9b::a9fe:a9fe]",
            "[64:ff9b:1::10.0.0.1]",
            "[64:ff9b:1:a00:0:100::]",
            "[2002:a00:1::]",
            "[2002:7f00:1::1]",
            "[2001:0:808:808::f5ff:fffe]",
            "[fec0::1]",
            "metadata.google.internal",
            "x.svc.cluster.local",
            "service.namespace.svc",
            "127。0。0。1",
            "ｌｏｃａｌｈｏｓｔ",
        ],
    )
    def test_private_host_is_refused_only_for_the_public_service(self, parameter, check, host):
        url = f"http://{host}/v.mp4"
        check(url, service_is_public=False)
        with pytest.raises(LumaValidationError) as caught:
            check(url, service_is_public=True)
        assert parameter in str(caught.value)
        assert "public" in str(caught.value)

    @pytest.mark.parametrize(
        "host",
        [
            "example.com",
            "localhost.example.com",
            "internal.example.com",
            "10.0.0.5.example.com",
            "8.8.8.8",
            "[::ffff:8.8.8.8]",
            "[64:ff9b::8.8.8.8]",
            "[2002:808:808::1]",
            "[2606:4700::1111]",
            "face.cafe",
            "1.local.example.org",
        ],
    )
    def test_public_host_that_resembles_a_private_one_is_allowed(self, parameter, check, host):
        check(f"http://{host}/v.mp4", service_is_public=True)

    @given(url=st.text() | st.text().map("https://{}".format) | st.text().map("http://[{}".format))
    def test_any_text_is_allowed_or_refused_with_a_validation_error(self, parameter, check, url):
        with suppress(LumaValidationError):
            check(url, service_is_public=True)


class TestVideoExtension:
    @pytest.mark.parametrize(
        "path",
        [
            "v.mp4",
            "V.MP4",
            "v.mov",
            "v.Mov",
            "v.avi",
            "v.AVI",
            "v%2Emp4",
            "video.php",
            "video.php?name=v.webm",
            "video",
            "",
            "watch?v=abc.webm",
            "v.mp4#x.webm",
            "api/v1.2/video",
            "folder.webm/video",
            ".hidden",
        ],
    )
    def test_video_url_without_an_extension_of_another_kind_is_allowed(self, path):
        validation.check_video_url(f"https://example.com/{path}")

    @pytest.mark.parametrize(
        "path", ["v.webm", "V.WEBM", "v.mkv", "v.gif", "pic.jpg", "PIC.JPEG", "s.mp3", "v%2Ewebm", "v.mp4.zip"]
    )
    def test_video_url_of_another_kind_of_file_is_refused(self, path):
        with pytest.raises(LumaValidationError, match="video_url") as caught:
            validation.check_video_url(f"https://example.com/{path}", containers=CONTAINERS)
        for word in ("MP4", "MOV", "AVI"):
            assert word in str(caught.value)

    def test_callback_url_may_have_any_extension(self):
        validation.check_callback_url("https://example.com/hook.json")


@pytest.mark.parametrize("watermark", [None, "", "mine", "雨"])
def test_watermark_is_any_text_or_none(watermark):
    validation.check_watermark(watermark)


@pytest.mark.parametrize("watermark", [5, True, ["mine"], b"mine"], ids=repr)
def test_watermark_that_is_no_text_is_refused(watermark):
    with pytest.raises(LumaValidationError, match="watermark"):
        validation.check_watermark(watermark)


@pytest.mark.parametrize("half", ["\ud83d", "\x00"], ids=ascii)
@pytest.mark.parametrize(
    ("parameter", "check", "value"),
    [
        ("watermark", validation.check_watermark, "mine"),
        ("luma_task_id", validation.check_luma_task_id, "abc"),
        ("video_url", validation.check_video_url, "https://example.com/v.mp4?x="),
        ("callback_url", validation.check_callback_url, "https://example.com/"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_text_with_half_a_character_or_nul_is_refused_and_its_parameter_named(parameter, check, value, half):
    check(value)
    with pytest.raises(LumaValidationError, match=f"{parameter} contains a NUL or a lone surrogate"):
        check(value + half)


@pytest.mark.parametrize("luma_task_id", ["774d9a7dd608a0e49293903095e45a4c", "x", "luma-42"])
def test_task_id_is_any_text(luma_task_id):
    validation.check_luma_task_id(luma_task_id)


@pytest.mark.parametrize("luma_task_id", [None, "", "  ", 5, [], {"luma_task_id": "x"}])
def test_task_id_that_is_blank_or_no_text_is_refused(luma_task_id):
    with pytest.raises(LumaValidationError, match="luma_task_id"):
        validation.check_luma_task_id(luma_task_id)


@pytest.mark.parametrize("seconds", [1, 0.1, 1e9])
def test_positive_number_of_seconds_is_allowed(seconds):
    validation.check_positive("timeout", seconds)


@pytest.mark.parametrize("seconds", [0, -1, None, "30", True, float("nan"), float("inf"), [], 0.0])
def test_what_is_no_positive_number_of_seconds_is_refused(seconds):
    with pytest.raises(LumaValidationError, match="timeout"):
        validation.check_positive("timeout", seconds)


@pytest.mark.parametrize(
    "address",
    ["file://clip.mp4", "FILE://data/clip.mp4", "local://~/clip.mp4", "file://localhost/clip.mp4", "file:/a.mp4"],
)
def test_file_that_depends_on_the_folder_of_the_process_is_refused(address):
    with pytest.raises(LumaValidationError, match="source must be a file in storage, such as /data/clip.mp4"):
        validation.check_file_address("source", address)


@pytest.mark.parametrize(
    "extension",
    "mp4 mov avi mkv webm ts m2ts mts m4v 3gp 3g2 mxf mpg mpeg vob flv f4v wmv asf ogv MKV".split(),
)
def test_film_of_any_container_is_accepted(extension):
    validation.check_file_address("source", f"s3://b/film.{extension}")


@pytest.mark.parametrize("extension", ["m3u8", "mpd", "mp3", "wav", "png", "gif", "avif", "heic", "txt", "zip", "M3U8"])
def test_what_is_no_film_is_refused_by_its_extension(extension):
    with pytest.raises(LumaValidationError, match=rf"source ends in .{extension.lower()}, but must be a video"):
        validation.check_file_address("source", f"s3://b/film.{extension}")


@pytest.mark.parametrize("extension", ["mkv", "webm", "ts", "m4v", "3gp", "mxf"])
@pytest.mark.parametrize("folder", ["s3://b", "https://example.com"])
def test_clip_that_the_service_does_not_take_is_refused_by_its_extension_once_the_service_is_known(extension, folder):
    validation.check_video_address(f"{folder}/clip.{extension}")
    with pytest.raises(LumaValidationError, match="the service accepts only MP4, MOV and AVI: convert"):
        validation.check_video_address(f"{folder}/clip.{extension}", containers=CONTAINERS)


@pytest.mark.parametrize("address", ["file:///clip.mp4", "local:///clip.mp4", "FILE:///clip.mp4", "s3://b/clip.mp4"])
def test_file_in_a_storage_is_accepted(address):
    validation.check_file_address("source", address)
