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

from airflow_provider_luma.core.addresses import is_private_host, is_web_address, split_address
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

#: Extensions allowed for a film that we write: it is an MP4, and players and services go by the extension.
_FILM_EXTENSIONS = (".mp4", ".m4v")

#: Schemes of object stores, whose files have a key and no folders.
OBJECT_STORES = frozenset({"s3", "s3a", "s3n", "gs", "gcs", "abfs", "abfss", "az", "adl", "wasb", "oss"})

#: Maximum bytes of a name on a disk and of an object's key, and the bytes that a temporary name adds.
_MAX_NAME_BYTES, _MAX_KEY_BYTES, _TEMPORARY_BYTES = 255, 1024, 15


def check_prompt(prompt: object) -> None:
    """
    Check the prompt of a submission.

    :raises LumaValidationError: it is blank, is a file name, or cannot be stored
    """
    if not isinstance(prompt, str) or not prompt.strip():
        raise LumaValidationError(
            None, f"prompt is {prompt!r}: say in English how to change the video, e.g. 'make it a rainy night'"
        )
    if len(prompt.split()) == 1 and prompt.rstrip().endswith(PROMPT_FILE_EXTENSIONS):
        raise LumaValidationError(
            None,
            f"prompt is {prompt!r}, the name of a file, which is read only where it stands in the DAG file as it is, "
            "or is returned by a decorated function: a template can include it, {% include 'prompts/night.md' %}",
        )
    _check_text("prompt", prompt)


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
            f"prompt holds {''.join(foreign[:20])!r}, and the service takes English only: translate the prompt",
        )


def _is_latin(letter: str) -> bool:
    # An apostrophe typed as a modifier letter counts as English, too.
    return unicodedata.category(letter) == "Lm" or "LATIN" in _name(letter)


def _is_greek(letters: str) -> bool:
    return any("GREEK" in _name(letter) for letter in letters)


def _name(letter: str) -> str:
    # The compatibility form maps styled and full-width letters to their plain alphabet.
    return unicodedata.name(unicodedata.normalize("NFKC", letter)[0], "")


def _check_text(parameter: str, text: str) -> None:
    if plain_text(text) != text:
        raise LumaValidationError(
            None, f"{parameter} holds half a character (a lone surrogate, as of a cut emoji) or a NUL: remove it"
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
    Check the address of an input video: a public address, or a file in storage.

    :param containers: extensions that the service accepts; None if the service is not known yet
    :param service_is_public: whether the service is on the Internet, and so cannot reach private addresses
    :raises LumaValidationError: it cannot lead to a video that the service accepts
    """
    if isinstance(video_url, str) and is_web_address(video_url):
        check_video_url(video_url, containers=containers, service_is_public=service_is_public)
    else:
        check_file_address("video_url", video_url, containers=containers)


def check_file_address(parameter: str, address: object, *, containers: Collection[str] | None = None) -> None:
    """
    Check the address of a video in storage.

    :param containers: extensions that the service accepts; None for a film, or if the service is not known yet
    :raises LumaValidationError: it is not an absolute path or address, or names a file of another kind
    """
    text = str(address) if hasattr(address, "as_uri") else address
    what_it_is = (
        f"{parameter} must be a file in a storage, such as /data/clip.mp4, file:///data/clip.mp4 or "
        "s3://my_aws@bucket/clip.mp4"
    )
    if not isinstance(text, str) or not text.strip():
        raise LumaValidationError(None, f"{parameter} is {address!r}: {what_it_is}, or a public http(s) address")
    _check_text(parameter, text)
    if is_web_address(text):
        raise LumaValidationError(None, f"{what_it_is}; a public address needs no upload: {text!r}")
    check_no_outer_blanks(parameter, text)
    if not _is_absolute(text):
        raise LumaValidationError(
            None, f"{what_it_is}, or a public address that begins with http:// or https://: {text!r}"
        )
    _check_extension(parameter, PurePosixPath(text).suffix, text, containers)


def _is_absolute(address: str) -> bool:
    # After only two slashes, local storage reads a path relative to the process's working directory, whatever that is.
    return re.match(r"/.|(?!(?:file|local)://[^/])[a-z][a-z0-9+.-]*://.", address, re.IGNORECASE) is not None


def check_no_outer_blanks(parameter: str, address: object) -> None:
    """
    Check that a path or address has no blanks around it. A leading blank makes an absolute path relative.

    :raises LumaValidationError: it begins or ends with a blank
    """
    text = str(address)
    if text != text.strip():
        raise LumaValidationError(None, f"{parameter} begins or ends with a blank: remove it ({text!r})")


def check_film_destination(parameter: str, destination: object, *, relative: bool = False) -> None:
    """
    Check the file that a film is to be written to: its name must end in ``.mp4`` or ``.m4v``.

    :param relative: accept a path relative to the working directory of the task
    :raises LumaValidationError: it does not name such a file
    """
    text = str(destination or "")
    example = "name a file in a storage that ends in .mp4, such as s3://my_aws@bucket/film.mp4"
    if not text.strip():
        raise LumaValidationError(None, f"{parameter} is {destination!r}: {example}")
    _check_text(parameter, text)
    check_no_outer_blanks(parameter, text)
    if is_web_address(text):
        raise LumaValidationError(None, f"{parameter} is a web address, where no film can be written: {example}")
    scheme, separator, rest = text.partition("://")
    path = rest.partition("/")[2] if separator and scheme.lower() not in ("file", "local") else text
    if path.endswith("/") or not path:
        raise LumaValidationError(None, f"{parameter} is a folder or a bucket: {example} ({text!r})")
    if PurePosixPath(path).suffix.lower() not in _FILM_EXTENSIONS:
        raise LumaValidationError(
            None, f"{parameter} does not end in .mp4 or .m4v, and the film is an MP4: {example} ({text!r})"
        )
    if not relative and not _is_absolute(text):
        raise LumaValidationError(None, f"{parameter} is relative to the worker's current folder: {example} ({text!r})")
    check_destination(text, parameter)


def names_a_file(destination: str) -> bool:
    """Return whether a destination is a file: its last part ends in an extension such as ``.mp4``."""
    name = split_address(destination).name
    return re.search(r"[^/]\.(?=[0-9]*[A-Za-z])[A-Za-z0-9]{2,5}\Z", name) is not None


def check_destination(destination: object, parameter: str = "destination") -> None:
    """
    Check the length of the names in a destination. A file's temporary name is longer than its final one.

    :param destination: a folder, or a file as defined by :func:`names_a_file`
    :raises LumaValidationError: a name is too long
    """
    destination = str(destination or "")
    scheme, _, path = split_address(destination)
    if scheme.lower() in OBJECT_STORES:
        names, what, longest = [path], "a key", _MAX_KEY_BYTES
    else:
        names, what, longest = path.split("/"), "a name", _MAX_NAME_BYTES
    for index, name in enumerate(names, 1):
        allowed = longest - (_TEMPORARY_BYTES if index == len(names) and names_a_file(destination) else 0)
        size = len(name.encode(errors="surrogateescape"))
        if size > allowed:
            raise LumaValidationError(
                None,
                f"{parameter}: {what} of {size} bytes is too long: shorten it to {allowed} ({name[:60]!r}…)",
            )


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
            f"{parameter} ends in .{extension}, but the service takes {taken} only: convert the video first "
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
        raise LumaValidationError(None, f"watermark is {watermark!r}: give a text, or none")
    _check_text("watermark", watermark or "")


def check_luma_task_id(luma_task_id: object) -> None:
    """
    Check the id of a job. It is opaque, so only its type can be checked.

    :raises LumaValidationError: it is missing, or cannot be stored
    """
    if not isinstance(luma_task_id, str) or not luma_task_id.strip():
        raise LumaValidationError(
            None,
            f"luma_task_id is {luma_task_id!r}: give the id that a submission returned, "
            'e.g. submit.output["luma_task_id"]',
        )
    _check_text("luma_task_id", luma_task_id)


def check_positive(parameter: str, number: object) -> None:
    """
    Check a number, such as a number of seconds.

    :raises LumaValidationError: it is not a number above zero
    """
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 < number < float("inf"):
        raise LumaValidationError(None, f"{parameter} is {number!r}: give a number above 0")


def _check_url(parameter: str, url: object, *, service_is_public: bool) -> None:
    if not isinstance(url, str) or not url.strip():
        raise LumaValidationError(None, f"{parameter} is {url!r}: give a public http(s) address")
    _check_text(parameter, url)
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise LumaValidationError(None, f"{parameter} is no valid address ({error}): {url!r}") from error
    if parts.scheme not in ("http", "https"):
        raise LumaValidationError(
            None,
            f"{parameter} must begin with http:// or https://, since the service fetches it over the web: {url!r}",
        )
    if not host or re.search(r"[\s\\\x00-\x1f\x7f]", url):
        raise LumaValidationError(None, f"{parameter} names no host, or holds blanks or backslashes: {url!r}")
    if service_is_public and is_private_host(host):
        raise LumaValidationError(
            None,
            f"{parameter} points to {host}, which Luma on the public Internet cannot reach: "
            "use a public or signed address",
        )
