# SPDX-License-Identifier: Apache-2.0
"""
A video of a batch, and two small hidden files beside it, by which a later run knows what is already paid for.

``.NAME.luma.json``, the *manifest*, describes a video that is there: of which content of which clip it was made, and
how. ``.NAME.luma-job.json``, the *claim*, is there while a job for the video may exist: it is created before the
submission, and removed once the video is there, or once it is certain that no job was accepted.

Whoever has created the claim has the video to itself: others submit nothing and write nothing while it is there, and
no run replaces the claim of another. Neither file has any secret in it, nor the query of an address.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from airflow.sdk import ObjectStoragePath

from airflow_provider_luma.compat import AirflowException
from airflow_provider_luma.core.redaction import shown_address, without_queries
from airflow_provider_luma.core.wire import plain_text, read_json, read_object, read_text
from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.files.creation import create_file
from airflow_provider_luma.files.storage import as_path, file_in, make_folder, remove_file, written
from airflow_provider_luma.files.stored_file import StoredFile

#: Maximum bytes of a file that is read: anybody who may write to the folder may have written it.
_MAX_SIZE = 256 * 1024

#: Characters of a name in an error: Airflow's own names are no longer.
_MAX_NAME = 250

#: Characters of the hint, in an error, how to get the video of a job.
_MAX_HINT = 500


class Found(NamedTuple):
    """
    What is in the place of a video.

    :param is_foreign: a file that no batch has written
    :param is_made: the video that is wanted
    :param luma_task_id: the job that made it
    :param claim: the claim; None if there is none
    :param map_index: that of the clip, if this run has had it before
    """

    is_foreign: bool = False
    is_made: bool = False
    luma_task_id: str | None = None
    claim: Mapping[str, Any] | None = None
    map_index: int | None = None


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

    def look_up(self, request: Callable[[], str], existing: Container[str]) -> Found:
        """
        Return what is in its place.

        :param request: returns what is wanted, see :func:`request_hash`
        :param existing: the addresses of the files in the folder
        :raises AirflowException: the storage is unavailable
        """
        is_there = str(self.path) in existing
        manifest, claim = (
            document.read() if str(document.path) in existing else None for document in (self.manifest, self.claim)
        )
        if not manifest and not claim:
            return Found(is_foreign=is_there, claim=claim)
        if is_there and manifest and self.is_made(manifest, request()):
            return Found(is_made=True, luma_task_id=read_text(manifest.get("luma_task_id")))
        return Found(claim=claim, map_index=self._map_index_in(claim or manifest or {}))

    def is_made(self, manifest: Mapping[str, Any], request: str) -> bool:
        """Return whether another run has made the video, and it is still there. This run asks again if cleared."""
        is_it = manifest.get("request") == request and not self._is_of_run(manifest)
        return is_it and self.version() == manifest.get("video_version")

    def refusal(self, claim: Mapping[str, Any] | None) -> str | None:
        """Return what a person can do if another task may have a job for the video; None if none has a claim to it."""
        if claim is None or self.is_ours(claim):
            return None
        if not read_object(claim.get("run")):
            return (
                f"{shown_address(self.claim.path)} cannot be read, and may be the claim of another run: remove it if "
                "no run is working on this clip"
            )
        dag_id, run_id, modify, index = _task_in(claim)
        recovery = plain_text(read_text(claim.get("recovery")) or "")[:_MAX_HINT]
        hint = f"If {modify} [{index}]: {recovery}. A job that failed at Luma is submitted anew. " if recovery else ""
        if self._is_of_run(claim):
            return (
                f"this run has submitted it as {modify} [{index}], before the list of clips became shorter, and there "
                "is no video yet. To submit another job, set retry_failed"
            )
        return (
            f"run {run_id} of {dag_id} has submitted it, and there is no video yet. If that run has ended, see which "
            f"of its tasks has failed. If only {_download_of(modify)} [{index}], clear that alone: nothing is paid "
            f"again. {hint}To submit another job here instead, set retry_failed"
        )

    def is_ours(self, document: Mapping[str, Any]) -> bool:
        """Return whether a claim is of this task; of this run, if only that is given."""
        index = read_object(document.get("run")).get("map_index")
        return self._is_of_run(document) and index == self.run.get("map_index", index)

    def _is_of_run(self, document: Mapping[str, Any]) -> bool:
        run = read_object(document.get("run"))
        return all(run.get(key) == self.run[key] for key in ("dag_id", "run_id", "task_id"))

    def own_claim(self) -> Mapping[str, Any] | None:
        """
        Return this task's claim; None if it was cleared after its download, or if a person has removed the claim.

        :raises LumaValidationError: another run has claimed the video, or has made another one
        :raises AirflowException: the storage is unavailable
        """
        claim = self.claim.read()
        if claim is not None and not self.is_ours(claim):
            raise self._taken(claim)
        manifest = self.manifest.read() or {}
        if claim is None and manifest and not self._is_of_run(manifest):
            raise self._taken(manifest)
        return claim

    def hold(self, claim: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """
        Return the claim, which is there from before the video is written until it is described.

        :param claim: what :meth:`own_claim` returned before the download
        :raises LumaValidationError: another run has taken the video over meanwhile
        :raises AirflowException: the storage is unavailable
        """
        if self.own_claim() != claim:
            raise self._taken({})
        if claim is not None:
            return claim
        manifest = self.manifest.read() or {}
        held = {**{name: manifest[name] for name in _DESCRIPTION if name in manifest}, "run": dict(self.run)}
        if not self.claim.create(held) and self.own_claim() != held:
            raise self._taken({})
        return held

    def finish(self, claim: Mapping[str, Any], job: Mapping[str, Any]) -> None:
        """
        Describe the video that is there now, and give the claim up.

        :param claim: what :meth:`hold` has returned
        :param job: the job that made the video
        :raises AirflowException: the storage is unavailable
        """
        kept = {name: value for name, value in claim.items() if name != "recovery"}
        self.manifest.write({**kept, **job, "video_version": self.version()})
        if self.claim.read() == claim:
            self.claim.remove()

    def version(self) -> str | None:
        """
        Return what distinguishes the video from others of its name; None if there is none.

        :raises AirflowException: the storage is unavailable
        """
        try:
            return StoredFile.find(str(self.path), "destination").version
        except LumaValidationError:
            return None

    def _taken(self, document: Mapping[str, Any]) -> LumaValidationError:
        dag_id, run_id, *_ = _task_in(document)
        who = f"run {run_id} of {dag_id}" if document.get("run") else "another run"
        return LumaValidationError(
            None,
            f"destination: {who} has submitted another job for {shown_address(self.path)} meanwhile, so this one's "
            "video is not written there. To have it all the same, download it to another folder",
        )

    def _map_index_in(self, document: Mapping[str, Any]) -> int | None:
        if not self._is_of_run(document):
            return None
        index = read_object(document.get("run")).get("map_index")
        return index if isinstance(index, int) and not isinstance(index, bool) and index >= 0 else None

    def _beside(self, kind: str) -> ObjectStoragePath:
        return file_in(str(self.path).rpartition("/")[0], f".{self.path.name}.{kind}.json")


#: What a claim and the manifest after it have in common.
_DESCRIPTION = ("clip", "clip_version", "prompt", "request")


def _task_in(document: Mapping[str, Any]) -> list[str]:
    """Return DAG, run, task and map index that a document names, fit for an error: anybody may have written them."""
    run = read_object(document.get("run"))
    return [plain_text(str(run.get(key)))[:_MAX_NAME] for key in ("dag_id", "run_id", "task_id", "map_index")]


def _download_of(modify_task_id: str) -> str:
    return f"{modify_task_id.rpartition('.')[0]}.download".lstrip(".")


class VideoClaim:
    """
    The claim of one task to its video.

    :param address: the video's
    :param run: what identifies the task: the keys of ``modify``, with its map index
    :param recovery: how to get the video of the job if the task fails
    :param describe: returns what is submitted, see :func:`description_of`
    """

    def __init__(
        self, address: str, run: Mapping[str, Any], recovery: str, describe: Callable[[], Mapping[str, Any]]
    ) -> None:
        self._address, self._run, self._recovery, self._describe = address, run, recovery, describe
        #: The claim that an earlier try of the task has left.
        self._earlier: Mapping[str, Any] | None = None

    @cached_property
    def _video(self) -> BatchVideo:
        return BatchVideo(as_path(self._address), self._run)

    def stake(self, reference: str) -> None:
        """
        Create the claim, or take up the one that an earlier try of this task has left.

        :param reference: the submission's name
        :raises LumaValidationError: another task has the video, or may have a job for it
        :raises AirflowException: the storage is unavailable
        """
        video, claim = self._video, self._video.claim
        content = {**self._describe(), "run": dict(self._run), "reference": reference, "recovery": self._recovery}
        if not claim.create(content):
            found = claim.read()
            if found is None:
                raise AirflowException(
                    f"{shown_address(claim.path)} has just been removed by another run. Nothing was submitted; the "
                    "next try creates it"
                )
            if reason := video.refusal(found):
                raise LumaValidationError(None, reason)
            if found.get("reference") != reference:
                self._earlier = found
            claim.write(content)
        # After the claim: whoever had one before has described its video before giving it up.
        if video.is_made(video.manifest.read() or {}, content["request"]):
            raise LumaValidationError(None, f"another run has just made {shown_address(video.path)}")

    def is_held(self, reference: str) -> bool:
        """
        Return whether the claim is still that of a submission.

        :raises AirflowException: the storage is unavailable
        """
        return (self._video.claim.read() or {}).get("reference") == reference

    def withdraw(self, reference: str) -> None:
        """
        Undo :meth:`stake`: nothing was accepted. What an earlier try has left stays, as its job may be paid for.

        :raises AirflowException: the storage is unavailable
        """
        if not self.is_held(reference):
            return
        if self._earlier is None:
            self._video.claim.remove()
        else:
            self._video.claim.write(self._earlier)


def description_of(
    clip: str,
    version: str,
    prompt: str,
    watermark: str | None,
    options: Mapping[str, Any] | None,
    *,
    sound: bool,
) -> dict[str, Any]:
    """
    Return what claims and manifests say about a request.

    :param clip: the clip's address
    :param version: which content of it is submitted
    """
    return {
        "clip": shown_address(clip),
        "clip_version": version,
        "prompt": without_queries(prompt),
        "request": request_hash(version, prompt, watermark, options, sound=sound),
    }


def request_hash(
    version: str, prompt: str, watermark: str | None, options: Mapping[str, Any] | None, *, sound: bool
) -> str:
    """
    Return what makes one video differ from another of the same name.

    Addresses count without their queries, which may be signatures: those differ each time.

    :param version: which content of the clip is submitted
    """
    request = [version, prompt, watermark or None, options or None, sound]
    return hashlib.sha256(without_queries(json.dumps(request, sort_keys=True)).encode()).hexdigest()


@dataclass(frozen=True)
class Document:
    """A JSON file in a storage."""

    path: ObjectStoragePath

    def read(self) -> Mapping[str, Any] | None:
        """
        Return its content; None if it is not there, empty if it is not a JSON object.

        :raises AirflowException: the storage is unavailable
        """
        try:
            self.path.fs.invalidate_cache()
            content = self.path.fs.cat_file(self.path.path, start=0, end=_MAX_SIZE)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Exception as error:
            raise AirflowException(f"{shown_address(self.path)} could not be read: {error}") from error
        return read_object(read_json(content[:_MAX_SIZE]))

    def create(self, content: Mapping[str, Any]) -> bool:
        """
        Create it, unless it is there; return whether it was created.

        :raises AirflowException: the storage is unavailable
        """
        try:
            make_folder(self.path)
            self.path.fs.invalidate_cache()
            return create_file(self.path.fs, self.path.path, _encode(content))
        except Exception as error:
            raise AirflowException(f"{shown_address(self.path)} could not be created: {error}") from error

    def write(self, content: Mapping[str, Any]) -> None:
        """
        Write it, in place of what is there.

        :raises AirflowException: the storage is unavailable
        """
        try:
            with written(self.path) as file:
                file.write_bytes(_encode(content))
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


def _encode(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=1, ensure_ascii=False).encode()
