# SPDX-License-Identifier: Apache-2.0
"""
A video of a batch, and two small hidden files beside it, by which a later run knows what is already paid for.

``.NAME.luma.json``, the *manifest*, describes a video that is there: of which content of which clip it was made, and
how. ``.NAME.luma-job.json``, the *claim*, is there while a job for the video may exist: it is written before the
submission, and removed once the video is there, or once it is certain that no job was accepted. Neither has any secret
in it, nor the query of an address.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from airflow.sdk import ObjectStoragePath

from airflow_provider_luma.compat import AirflowException
from airflow_provider_luma.core.redaction import shown_address
from airflow_provider_luma.core.wire import read_json, read_object, read_text
from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.files.clip_list import version_of
from airflow_provider_luma.files.storage import file_in, remove_file, written
from airflow_provider_luma.files.stored_file import StoredFile

#: Maximum bytes of a file that is read: anybody who may write to the folder may have written it.
_MAX_SIZE = 256 * 1024


class Found(NamedTuple):
    """
    What is in the place of a video.

    :param is_foreign: a file that no batch has written
    :param is_made: the video that is wanted
    :param luma_task_id: the job that made it
    :param claimed: what to do, if another run may have a job for it
    """

    is_foreign: bool = False
    is_made: bool = False
    luma_task_id: str | None = None
    claimed: str | None = None


@dataclass(frozen=True)
class BatchVideo:
    """
    A video of a batch, as one run of it sees it.

    :param path: where it is, or will be
    :param run: what identifies the run: the keys of its task ``modify``, with or without a map index
    """

    path: ObjectStoragePath
    run: Mapping[str, Any]

    @property
    def manifest(self) -> Document:
        """The description of the video that is there."""
        return Document(self._beside("luma"))

    @property
    def claim(self) -> Document:
        """The record of the run whose job makes the video."""
        return Document(self._beside("luma-job"))

    def look_up(self, request: Callable[[], Mapping[str, Any]], existing: Container[str]) -> Found:
        """
        Return what is in its place.

        :param request: returns what is wanted, see :func:`request_for`
        :param existing: the addresses of the files in the folder
        :raises AirflowException: the storage is unavailable
        """
        is_there = str(self.path) in existing
        manifest, claim = (
            document.read() if str(document.path) in existing else {} for document in (self.manifest, self.claim)
        )
        if not manifest and not claim:
            return Found(is_foreign=is_there)
        wanted = request()
        if is_there and self.is_made(manifest, wanted):
            return Found(is_made=True, luma_task_id=read_text(manifest.get("luma_task_id")))
        return Found(claimed=self.claimed(claim, wanted))

    def is_made(self, manifest: Mapping[str, Any], request: Mapping[str, Any]) -> bool:
        """Return whether another run has made the video, and it is still there. This run asks again if cleared."""
        is_it = manifest.get("request") == request and not self.is_ours(manifest)
        return is_it and self.version() == manifest.get("video_version")

    def claimed(self, claim: Mapping[str, Any], request: Mapping[str, Any]) -> str | None:
        """Return what a person can do if another run may have a job for this request; None if there is none."""
        if claim.get("request") != request or self.is_ours(claim):
            return None
        run = read_object(claim.get("run"))
        return (
            f"run {run.get('run_id')} of {run.get('dag_id')} has submitted it, and there is no video yet. If that run "
            f"has ended, clear {run.get('task_id')} [{run.get('map_index')}] in it: a job that has not failed is not "
            "paid for again. To submit another job instead, set retry_failed"
        )

    def is_ours(self, document: Mapping[str, Any]) -> bool:
        """Return whether a manifest or a claim is of this run."""
        run = read_object(document.get("run"))
        return bool(run) and all(run.get(key) == self.run[key] for key in ("dag_id", "run_id", "task_id"))

    def version(self) -> str | None:
        """
        Return what distinguishes the video from others of its name; None if there is none.

        :raises AirflowException: the storage is unavailable
        """
        try:
            return StoredFile.find(str(self.path), "destination").version
        except LumaValidationError:
            return None

    def _beside(self, kind: str) -> ObjectStoragePath:
        return file_in(str(self.path).rpartition("/")[0], f".{self.path.name}.{kind}.json")


def request_for(
    clip: str, prompt: str, watermark: str | None, options: Mapping[str, Any] | None, *, sound: bool
) -> dict[str, Any]:
    """
    Return what makes one video differ from another of the same name, as JSON values.

    :param clip: the clip's address, of which the current version counts
    :raises AirflowException: the storage is unavailable
    """
    request = {
        "clip_version": version_of(clip),
        "prompt": prompt,
        "watermark": watermark or None,
        "options": options or None,
        "sound": sound,
    }
    return dict(read_object(json.dumps(request)))


@dataclass(frozen=True)
class Document:
    """A JSON file in a storage."""

    path: ObjectStoragePath

    def read(self) -> Mapping[str, Any]:
        """
        Return its content; empty if it is not there, or is not a JSON object.

        :raises AirflowException: the storage is unavailable
        """
        try:
            self.path.fs.invalidate_cache()
            content = self.path.fs.cat_file(self.path.path, start=0, end=_MAX_SIZE)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except Exception as error:
            raise AirflowException(f"{shown_address(self.path)} could not be read: {error}") from error
        return read_object(read_json(content[:_MAX_SIZE]))

    def write(self, content: Mapping[str, Any]) -> None:
        """
        Write it, in place of what is there.

        :raises AirflowException: the storage is unavailable
        """
        try:
            with written(self.path) as file:
                file.write_text(json.dumps(content, indent=1, ensure_ascii=False))
        except Exception as error:
            raise AirflowException(f"{shown_address(self.path)} could not be written: {error}") from error

    def remove(self) -> None:
        """
        Remove it, if it is there.

        :raises AirflowException: the storage is unavailable
        """
        try:
            with suppress(FileNotFoundError):
                remove_file(self.path.fs, self.path.path)
        except Exception as error:
            raise AirflowException(f"{shown_address(self.path)} could not be removed: {error}") from error
