# SPDX-License-Identifier: Apache-2.0
"""
The clips of a batch, and the names of their videos.

Names of clips are untrusted: no video may be written outside of the destination, over a clip, or over another video.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

from fsspec.utils import glob_translate  # type: ignore[import-untyped]

from airflow_provider_luma.core.addresses import is_luma_file, is_web_address, split_address
from airflow_provider_luma.core.redaction import shown_address, without_secrets
from airflow_provider_luma.core.validation import VIDEO_EXTENSIONS, check_text, is_absolute
from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.files.destination_names import OBJECT_STORES
from airflow_provider_luma.files.destinations import folder_to_write, is_inside, location
from airflow_provider_luma.files.source import url_path
from airflow_provider_luma.files.storage import as_path, file_in, files_in
from airflow_provider_luma.files.stored_file import StoredFile, content_version

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath
    from airflow.sdk.types import Logger

#: Extensions of clips, where no pattern says which files of a folder are clips.
_CLIP_EXTENSIONS = ("mp4", "mov", "avi")

_REMEDY = "give a folder, or a list with the addresses of clips"


class Clip(NamedTuple):
    """
    A clip, and the video to be made of it.

    :param address: the clip's address
    :param name: its path below the folder that was given; in a list of clips, its file name
    :param video: where the video goes
    """

    address: str
    name: str
    video: ObjectStoragePath

    @property
    def shown(self) -> str:
        """The address without a query, which may be a signature."""
        return without_secrets(self.address) if is_web_address(self.address) else self.address


def find_clips(clips: object, pattern: str | None, folder: ObjectStoragePath, log: Logger) -> list[Clip]:
    """
    Return the clips of a batch; those of a folder are sorted by name.

    :param clips: a folder, or the addresses of clips
    :param pattern: which files of a folder are clips
    :param folder: where the videos go
    :raises LumaValidationError: there is no such folder, or two clips would have the same video
    :raises AirflowException: the storage is unavailable
    """
    if isinstance(clips, str):
        found = _clips_in(clips, pattern, folder, log)
    elif pattern is not None:
        raise LumaValidationError(
            None, "pattern selects files of a folder, but clips is a list: omit pattern, or give a folder"
        )
    elif not isinstance(clips, list):
        raise LumaValidationError(None, f"clips is of type {type(clips).__name__}: {_REMEDY}")
    else:
        found = [_named(address) for address in clips]
    for _, name in found:
        check_text("clips", name)
    result = [Clip(address, name, file_in(folder, _video_name(name))) for address, name in found]
    _refuse_collisions(result)
    return result


def version_of(clip: str) -> str:
    """
    Return what distinguishes a clip's content from earlier and later content; empty if there is no such clip.

    :param clip: its address
    :raises AirflowException: the storage is unavailable
    """
    try:
        return content_version(clip, partial(StoredFile.find, clip, "clips"))
    except LumaValidationError:  # the task that modifies the clip reports it
        return ""


def _clips_in(address: str, pattern: str | None, videos: ObjectStoragePath, log: Logger) -> list[tuple[str, str]]:
    """Return the addresses and names of the clips in a folder."""
    if address.lstrip().startswith(("[", "{")):
        raise LumaValidationError(
            None,
            "clips is the text of a list, as a template renders it: pass the output of a task, or set "
            "render_template_as_native_obj in the DAG",
        )
    if is_web_address(address) or PurePosixPath(address).suffix[1:].lower() in VIDEO_EXTENSIONS:
        raise LumaValidationError(None, f"clips is {shown_address(address)!r}, which is not a folder: {_REMEDY}")
    if not is_absolute(address):
        raise LumaValidationError(None, f"clips is {address!r}, which is not absolute: {_REMEDY}")
    is_clip = _matcher(pattern)
    folder = folder_to_write("clips", address, log)
    names = [name for name in files_in(folder, deep="/" in (pattern or "")) if is_clip(name)]
    if not names and folder.protocol not in OBJECT_STORES and not folder.fs.isdir(folder.path):
        raise LumaValidationError(None, f"clips: there is no folder {shown_address(folder)}: {_REMEDY}")
    if location(folder) == location(videos):
        raise LumaValidationError(
            None, f"destination: {shown_address(videos)} is the folder of the clips: choose another, e.g. a subfolder"
        )
    clips = [(file_in(folder, name), name) for name in names]
    # Otherwise each run would modify the videos of the run before it.
    found = [(str(clip), name) for clip, name in clips if not is_inside(clip, videos) or is_inside(folder, videos)]
    if not found:
        log.warning("There are no clips in %s", shown_address(folder))
    return found


def _matcher(pattern: str | None) -> Callable[[str], Any]:
    """Return a function that tells whether a file is a clip. Hidden files, such as our unfinished ones, never are."""
    if pattern is None:
        return re.compile(rf"(?is)[^./][^/]*\.({'|'.join(_CLIP_EXTENSIONS)})\Z").match
    try:
        matching = glob_translate(pattern)
    except ValueError as error:
        raise LumaValidationError(
            None, f"pattern is {pattern!r}, which is invalid ({error}): give one such as *.mp4 or **/*.mov"
        ) from error
    return re.compile(rf"(?s)(?!\.|.*/\.)(?:{matching})").match


def _named(clip: Any) -> tuple[str, str]:
    """Return the address and the name of a clip in a list."""
    address = str(clip) if hasattr(clip, "as_uri") else clip
    if not isinstance(address, str) or not address.strip():
        raise LumaValidationError(None, f"clips contains {clip!r}: {_REMEDY}")
    if is_luma_file(address):
        return address, address.partition(":")[2]
    name = unquote(url_path(address)) if is_web_address(address) else split_address(address).name
    return address, PurePosixPath(name).name


def _video_name(name: str) -> str:
    """
    Return the name of the video of a clip. Whatever the clip is, the video is an MP4.

    :raises LumaValidationError: it would be outside of the destination
    """
    if any(part in ("", ".", "..") or "\\" in part for part in name.split("/")):
        raise LumaValidationError(None, f"clips: {name!r} cannot be the name of a video: rename the clip")
    stem, _, extension = name.rpartition(".")
    if extension.lower() == "mp4" and stem:
        return name
    return f"{stem if stem and extension.lower() in VIDEO_EXTENSIONS else name}.mp4"


def _refuse_collisions(clips: list[Clip]) -> None:
    """
    Refuse clips whose videos would replace each other, or a clip.

    :raises LumaValidationError: there are such clips
    """
    makers: dict[tuple[str, str], Clip] = {}
    for clip in clips:
        other = makers.setdefault(location(clip.video), clip)
        if other is not clip:
            raise LumaValidationError(
                None,
                f"clips: {shown_address(other.address)} and {shown_address(clip.address)} would both become "
                f"{clip.video.name}: rename one, or modify them in separate batches with separate destinations",
            )
    stored = [clip for clip in clips if not is_web_address(clip.address) and not is_luma_file(clip.address)]
    for clip in stored:
        if location(as_path(clip.address, "clips")) in makers:
            raise LumaValidationError(
                None, f"destination: the clip {shown_address(clip.address)} would be overwritten: choose another folder"
            )
