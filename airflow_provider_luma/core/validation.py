# SPDX-License-Identifier: Apache-2.0
"""
Input validation before anything is sent. Each error names the parameter and the remedy.

Pure functions without I/O. DAG files import this module at every parse, so it imports no service.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from airflow_provider_luma.core.addresses import is_luma_file, is_private_host, is_web_address
from airflow_provider_luma.core.wire import plain_text
from airflow_provider_luma.exceptions import LumaValidationError

#: Extensions of prompt files.
PROMPT_FILE_EXTENSIONS = (".txt", ".md")

#: Extensions of files that are not videos. A web address with any other ending (``.php``, ``.v2``) may lead to a
#: video; only the service can find out.
_NO_VIDEO_EXTENSIONS = frozenset(
    "aac avif bmp csv doc docx flac gif gz heic heif html htm jpeg jpg json m3u8 m4a mp3 mpd pdf png rar rm svg tar "
    "tif tiff txt wav webp xml zip".split()
)

#: Extensions of videos. A service accepts some of them; films in other formats can be split into clips that it accepts.
VIDEO_EXTENSIONS = frozenset(
    "3g2 3gp asf avi f4v flv m2ts m4v mkv mov mp4 mpeg mpg mts mxf ogg ogv ts vob webm wmv".split()
)


def check_prompt(prompt: object) -> None:
    """
    Check the prompt of a submission.

    :raises LumaValidationError: it is blank, is a file name, or cannot be stored
    """
    if not isinstance(prompt, str) or not prompt.strip():
        raise LumaValidationError(
            None, f"prompt is {prompt!r}: describe how to change the video, e.g. 'make it a rainy night'"
        )
    if len(prompt.split()) == 1 and prompt.rstrip().endswith(PROMPT_FILE_EXTENSIONS):
        raise LumaValidationError(
            None,
            f"prompt is {prompt!r}, the name of a file. Such a file is read only if its name is a literal in the DAG "
            "file, or is returned by a decorated function; a template can include it: "
            "{% include 'prompts/night.md' %}",
        )
    check_text("prompt", prompt)


def check_english(prompt: str) -> None:
    """
    Check that a prompt is in Latin script. A single Greek letter counts as a symbol, such as π or Ω.

    :raises LumaValidationError: it is not
    """
    foreign = [
        letter
        for before, letter, after in zip(f" {prompt}", prompt, f"{prompt[1:]} ", strict=False)
        if letter.isalpha() and not _is_latin(letter) and (not _is_greek(letter) or _is_greek(before + after))
    ]
    if foreign:
        raise LumaValidationError(
            None,
            f"prompt contains {''.join(foreign[:20])!r}, but the service accepts English only: translate the prompt",
        )


def _is_latin(letter: str) -> bool:
    # Modifier letters, such as one form of the apostrophe, count as Latin.
    return unicodedata.category(letter) == "Lm" or "LATIN" in _name(letter)


def _is_greek(letters: str) -> bool:
    return any("GREEK" in _name(letter) for letter in letters)


def _name(letter: str) -> str:
    # The compatibility form maps styled and full-width letters to their plain alphabet.
    return unicodedata.name(unicodedata.normalize("NFKC", letter)[0], "")


def check_text(parameter: str, text: str) -> None:
    """
    Check that a text can be stored.

    :raises LumaValidationError: it cannot
    """
    if plain_text(text) != text:
        raise LumaValidationError(
            None, f"{parameter} contains a NUL or a lone surrogate, such as half an emoji: remove it"
        )


def check_video_url(
    video_url: object, *, containers: Collection[str] | None = None, service_is_public: bool = False
) -> None:
    """
    Check the address of an input video.

    :param containers: extensions that the service accepts; None if the service is not known yet
    :param service_is_public: whether the service is on the Internet, and so cannot reach private addresses
    :raises LumaValidationError: the service could never read a video from there
    """
    _check_url("video_url", video_url, service_is_public=service_is_public)
    suffix = PurePosixPath(unquote(urlsplit(str(video_url)).path)).suffix
    _check_extension("video_url", suffix, str(video_url), containers)


def check_video_address(
    video_url: object, *, containers: Collection[str] | None = None, service_is_public: bool = False
) -> None:
    """
    Check the address of an input video: a public address, a file in storage, or a video at Luma's own API.

    :param containers: extensions that the service accepts; None if the service is not known yet
    :param service_is_public: whether the service is on the Internet, and so cannot reach private addresses
    :raises LumaValidationError: it cannot lead to a video that the service accepts
    """
    if is_luma_file(video_url):
        if containers is not None:
            raise LumaValidationError(
                None,
                f"video_url is {video_url}, a video at Luma's own API, but the connection leads to another service: "
                "use the connection of the account that it belongs to",
            )
    elif isinstance(video_url, str) and is_web_address(video_url):
        check_video_url(video_url, containers=containers, service_is_public=service_is_public)
    else:
        check_file_address("video_url", video_url, containers=containers, or_public=True)


def check_file_address(
    parameter: str, address: object, *, containers: Collection[str] | None = None, or_public: bool = False
) -> None:
    """
    Check the address of a video in storage.

    :param containers: extensions that the service accepts; None for a film, or if the service is not known yet
    :param or_public: whether the parameter also accepts public addresses, which are checked elsewhere
    :raises LumaValidationError: it is not an absolute path or address, or its extension is not accepted
    """
    text = str(address) if hasattr(address, "as_uri") else address
    public = ", or a public address that starts with http:// or https://" if or_public else ""
    what_it_is = f"{parameter} must be a file in storage, such as /data/clip.mp4 or s3://my_aws@bucket/clip.mp4{public}"
    if not isinstance(text, str) or not text.strip():
        raise LumaValidationError(None, f"{what_it_is}, not {address!r}")
    check_text(parameter, text)
    if is_web_address(text):
        raise LumaValidationError(
            None, f"{what_it_is}. Pass a public clip as video_url; download a film first: {text!r}"
        )
    check_no_outer_blanks(parameter, text)
    if not is_absolute(text):
        raise LumaValidationError(None, f"{what_it_is}: {text!r}")
    _check_extension(parameter, PurePosixPath(text).suffix, text, containers)


def is_absolute(address: str) -> bool:
    """Return whether an address names the same file in every process."""
    # After only two slashes, local storage reads a path relative to the process's working directory, whatever that is.
    return re.match(r"/.|(?!(?:file|local)://[^/])[a-z][a-z0-9+.-]*://.", address, re.IGNORECASE) is not None


def check_no_outer_blanks(parameter: str, address: object) -> None:
    """
    Check that a path or address has no leading or trailing blanks. A leading one makes an absolute path relative.

    :raises LumaValidationError: it starts or ends with a blank
    """
    text = str(address)
    if text != text.strip():
        raise LumaValidationError(None, f"{parameter} starts or ends with whitespace: remove it ({text!r})")


def _check_extension(parameter: str, suffix: str, address: str, containers: Collection[str] | None) -> None:
    extension = suffix[1:].lower()
    if extension in _NO_VIDEO_EXTENSIONS:
        raise LumaValidationError(
            None, f"{parameter} ends in .{extension}, but must be a video, such as an MP4, MOV or AVI ({address!r})"
        )
    if containers is not None and extension in VIDEO_EXTENSIONS.difference(containers):
        *others, last = [container.upper() for container in containers]
        taken = f"{', '.join(others)} and {last}" if others else last
        raise LumaValidationError(
            None,
            f"{parameter} ends in .{extension}, but the service accepts only {taken}: convert the video first "
            f"({address!r})",
        )


def check_callback_url(callback_url: object, *, service_is_public: bool = False) -> None:
    """
    Check the address for the service to call when a job ends.

    :raises LumaValidationError: the service could never call this address
    """
    _check_url("callback_url", callback_url, service_is_public=service_is_public)


def check_watermark(watermark: object) -> None:
    """
    Check the text to put into the video.

    :raises LumaValidationError: it is neither None nor a text that can be stored
    """
    if watermark is not None and not isinstance(watermark, str):
        raise LumaValidationError(None, f"watermark must be a string or None, not {watermark!r}")
    check_text("watermark", watermark or "")


def check_luma_task_id(luma_task_id: object) -> None:
    """
    Check the id of a job. It is opaque, so only its type can be checked.

    :raises LumaValidationError: it is missing, or cannot be stored
    """
    if not isinstance(luma_task_id, str) or not luma_task_id.strip():
        raise LumaValidationError(
            None,
            f"luma_task_id is {luma_task_id!r}: pass the id that a submission returned, "
            'e.g. submit.output["luma_task_id"]',
        )
    check_text("luma_task_id", luma_task_id)


def check_positive(parameter: str, number: object) -> None:
    """
    Check a number, such as a number of seconds.

    :raises LumaValidationError: it is not a number above zero
    """
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 < number < float("inf"):
        raise LumaValidationError(None, f"{parameter} must be a number above 0, not {number!r}")


def _check_url(parameter: str, url: object, *, service_is_public: bool) -> None:
    if not isinstance(url, str) or not url.strip():
        raise LumaValidationError(None, f"{parameter} must be a public http(s) address, not {url!r}")
    check_text(parameter, url)
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise LumaValidationError(None, f"{parameter} is not a valid address ({error}): {url!r}") from error
    if parts.scheme not in ("http", "https"):
        raise LumaValidationError(
            None,
            f"{parameter} must start with http:// or https://, because the service uses it over the Internet: {url!r}",
        )
    if not host or re.search(r"[\s\\\x00-\x1f\x7f]", url):
        raise LumaValidationError(None, f"{parameter} has no host, or contains whitespace or backslashes: {url!r}")
    if service_is_public and is_private_host(host):
        raise LumaValidationError(
            None,
            f"{parameter} points to {host}, which Luma cannot reach from the public Internet: "
            "use a public or signed address",
        )
