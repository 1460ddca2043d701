# SPDX-License-Identifier: Apache-2.0
"""
A video of a batch, and two small hidden files beside it, which tell a later run what has already been paid for.

``.NAME.luma.json``, the *manifest*, describes the video that is there: which version of which clip it was made from,
and how. ``.NAME.luma-job.json``, the *claim*, exists while there may be a job for the video: it is created before the
submission, and removed once the video is there, or once it is certain that no job was accepted.

Whoever created the claim owns the video: while the claim exists, nobody else submits or writes anything, and no run
replaces another run's claim. Neither file contains a secret or the query of an address.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import tenacity
from airflow.sdk import ObjectStoragePath
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from airflow_provider_luma.compat import AirflowException
from airflow_provider_luma.core.redaction import shown_address, without_queries
from airflow_provider_luma.core.wire import read_json, read_object, read_text
from airflow_provider_luma.exceptions import RECOVERY_HINTS, LumaValidationError
from airflow_provider_luma.files.clip_list import version_of
from airflow_provider_luma.files.creation import create_file
from airflow_provider_luma.files.destination_names import OBJECT_STORES
from airflow_provider_luma.files.storage import as_path, file_in, make_folder, remove_file, written
from airflow_provider_luma.files.stored_file import StoredFile

#: Maximum bytes to read of a file: anybody who can write to the folder may have written it.
_MAX_SIZE = 256 * 1024

#: Maximum characters of a name in an error or a table. The names of Airflow itself never exceed this.
_MAX_NAME = 250


class Found(NamedTuple):
    """
    What is in the place of a video.

    :param is_foreign: a file that no batch has written, or that was changed since
    :param is_made: the video that is wanted
    :param of_another: whose video it is, if it belongs to another clip or batch
    :param luma_task_id: the job that made it
    :param claim: the claim; None if there is none
    :param map_index: the clip's map index in this run, if the run has had the clip before
    :param has_video: there is a video, no matter whose
    """

    is_foreign: bool = False
    is_made: bool = False
    of_another: str | None = None
    luma_task_id: str | None = None
    claim: Mapping[str, Any] | None = None
    map_index: int | None = None
    has_video: bool = False


class Owner(Enum):
    """
    Who owns a claim or a manifest, as a run or one of its tasks sees it.

    The run and the map index decide this, not the submission's reference: a task that was killed between writing its
    claim and its record, or whose record is kept nowhere, does not know the reference in the claim that it left.
    """

    #: This task. For the plan, which is not one of the mapped tasks, any task of this run.
    US = auto()
    #: A task of this run with another map index: the list of clips has changed since.
    ANOTHER_INDEX = auto()
    #: Another run with the same id: one that has been deleted since, or one of another Airflow.
    NAMESAKE = auto()
    ANOTHER_RUN = auto()

    @property
    def is_this_run(self) -> bool:
        """Whether this run is the owner, under any map index."""
        return self in (Owner.US, Owner.ANOTHER_INDEX)


@dataclass(frozen=True)
class BatchVideo:
    """
    A video of a batch, as one run of it sees it.

    :param path: where it is, or will be
    :param run: what identifies the run: the keys of its task ``modify``, with or without a map index
    :param is_new: this run cannot have left anything yet, so whatever has its keys is from a run that was deleted, or
        from another Airflow
    """

    path: ObjectStoragePath
    run: Mapping[str, Any]
    is_new: bool = False

    @property
    def manifest(self) -> Document:
        """The description of the video that is there."""
        return Document(self._beside("luma"))

    @property
    def claim(self) -> Document:
        """The record of the run whose job makes the video."""
        return Document(self._beside("luma-job"))

    def look_up(self, clip: str, request: Callable[[], str], existing: Container[str]) -> Found:
        """
        Return what is in the video's place.

        :param clip: the clip's address
        :param request: returns what is wanted, see :func:`request_hash`
        :param existing: the addresses of the files in the folder
        :raises AirflowException: the storage is unavailable
        """
        is_there = str(self.path) in existing
        manifest, claim = (
            document.read() if str(document.path) in existing else None for document in (self.manifest, self.claim)
        )
        if is_there and not manifest and claim is None:  # a download may have ended since the folder was listed
            manifest, claim = self.manifest.read(), self.claim.read()
        if not manifest and claim is None:  # an unreadable claim is an empty dict, and may be for this video
            return Found(is_foreign=is_there)
        map_index = self._map_index_in(claim or manifest or {})
        if not (is_there and manifest):
            return Found(claim=claim, map_index=map_index)
        if self.is_made(manifest, request()) and (claim is None or self._is_described_by(manifest)):
            return Found(is_made=True, luma_task_id=_text(manifest.get("luma_task_id")))
        if of_another := self.of_another(manifest, shown_address(clip)):
            return Found(claim=claim, of_another=of_another)
        is_foreign = claim is None and not self._is_described_by(manifest)
        return Found(claim=claim, map_index=map_index, is_foreign=is_foreign, has_video=True)

    def is_made(self, manifest: Mapping[str, Any], request: str) -> bool:
        """Return whether another run has made the video as wanted. This run, if cleared, has its own made again."""
        return manifest.get("request") == request and not self.owner_of(manifest).is_this_run

    def _is_described_by(self, manifest: Mapping[str, Any]) -> bool:
        """Return whether a manifest is about the video that is there, which a person may have replaced or edited."""
        return self.version() == manifest.get("video_version")

    def of_another(self, manifest: Mapping[str, Any], clip: str) -> str | None:
        """
        Return whose video a manifest describes, if it is that of another clip or batch; else None.

        :param clip: the clip's address, as claims and manifests have it
        """
        run, described = read_object(manifest.get("run")), read_text(manifest.get("clip"))
        is_same_batch = all(run.get(key) == self.run[key] for key in ("dag_id", "task_id"))
        if is_same_batch and (described is None or _place(described) == _place(clip)):
            return None
        dag_id, _, modify, _ = _task_in(manifest)
        return f"{_text(described) or 'an unknown clip'}, made by {modify} of {dag_id}"

    def refusal(self, claim: Mapping[str, Any] | None, known_job: str | None = None) -> str | None:
        """
        Return what a person can do if there may be a job that this task does not know of; otherwise None.

        :param known_job: the latest job in this task's record; not used where only the run is known
        """
        if claim is None:
            return None
        owner = self.owner_of(claim)
        return None if owner is Owner.US and self._is_known(claim, known_job) else self._advice(claim, owner)

    def _advice(self, claim: Mapping[str, Any], owner: Owner) -> str:
        """Return what a person can do about a claim that keeps a task from submitting."""
        if not read_object(claim.get("run")):
            return (
                f"{shown_address(self.claim.path)} cannot be read, and may be the claim of a run that has paid for "
                "this video. If a run has modified this clip, remove the file, then clear the download of that run: "
                "nothing is paid again. If none has, remove the file"
            )
        dag_id, run_id, modify, index = _task_in(claim)
        luma_task_id = _text(claim.get("luma_task_id"))
        job = f" (Luma task {luma_task_id})" if luma_task_id else ""
        fetched = "A LumaTaskSensor with this luma_task_id fetches its video. " if luma_task_id else ""
        if owner is Owner.US:
            return (
                f"{modify} [{index}] has submitted it before{job}, and no longer has a record of that. {fetched}To "
                f"submit another job, set retry_failed, or remove {shown_address(self.claim.path)} if there is no such "
                "job"
            )
        if owner is Owner.ANOTHER_RUN:
            return (
                f"run {run_id} of {dag_id} has submitted it{job}, and there is no video yet. If that run has ended, "
                f"see which of its tasks has failed. If only {_download_of(modify)} [{index}], clear that alone: "
                f"nothing is paid again. {_hint_in(claim)}{fetched}To submit another job here instead, set retry_failed"
            )
        if owner is Owner.NAMESAKE:
            return (
                f"a run with the id of this one, deleted since or of another Airflow, has submitted it{job}, and there "
                f"is no video yet. Do not clear this run, which may submit it again. {fetched}To submit another job, "
                "set retry_failed for a new run"
            )
        return (
            f"this run has submitted it as {modify} [{index}]{job}, before the list of clips became shorter, and there "
            f"is no video yet. {fetched}To submit another job, set retry_failed"
        )

    def owner_of(self, document: Mapping[str, Any]) -> Owner:
        """Return who owns a claim or a manifest."""
        run = read_object(document.get("run"))
        if any(run.get(key) != self.run[key] for key in ("dag_id", "run_id", "task_id")):
            return Owner.ANOTHER_RUN
        if self.is_new:
            return Owner.NAMESAKE
        index = run.get("map_index")
        return Owner.US if index == self.run.get("map_index", index) else Owner.ANOTHER_INDEX

    def _is_known(self, claim: Mapping[str, Any], known_job: str | None) -> bool:
        """
        Return whether this task's record says what became of its claim, so that the task can decide what to do.

        The plan has no records, so it leaves the decision to the task.
        """
        is_task = "map_index" in self.run
        return not is_task or claim.get("luma_task_id") in (None, known_job) or claim.get("has_failed") is True

    def description(self, luma_task_id: str) -> dict[str, Any]:
        """
        Return how this task's job makes its video; empty if a person has removed the claim.

        :raises AirflowException: the storage is unavailable
        """
        claim = self.claim.read() or {}
        if self.owner_of(claim) is not Owner.US or claim.get("luma_task_id", luma_task_id) != luma_task_id:
            return {}
        return {name: claim[name] for name in _DESCRIPTION if name in claim}

    def own_claim(self, job: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """
        Return this task's claim; None if the task was cleared after its download, or a person has removed the claim.

        :param job: how the video was made, see :meth:`description`
        :raises LumaValidationError: this task or another run has submitted another job for the video, or another run
            has made the video
        :raises AirflowException: the storage is unavailable
        """
        claim = self.claim.read()
        if claim is not None and not read_object(claim.get("run")):
            raise LumaValidationError(
                None,
                f"destination: {shown_address(self.claim.path)} cannot be read. Remove it, and clear this task: "
                "nothing is paid again",
            )
        if claim is not None and self.owner_of(claim) is not Owner.US:
            raise self._taken(claim)
        if claim is not None and "reference" in job and job["reference"] != claim.get("reference"):
            raise self._taken()
        manifest = self.manifest.read() or {}
        if claim is None and manifest and not self.owner_of(manifest).is_this_run:
            raise self._taken(manifest)
        return claim

    def check_sound(self, sound_from: str, job: Mapping[str, Any]) -> None:
        """
        Check that the clip whose sound the video gets is still the one that was submitted.

        :param job: how the video was made, see :meth:`description`
        :raises LumaValidationError: it is not
        :raises AirflowException: the storage is unavailable
        """
        version = job.get("clip_version")
        if version is not None and version_of(sound_from) != version:
            raise LumaValidationError(
                None,
                f"sound_from: {shown_address(sound_from)} has changed since it was submitted, or is gone. Restore it, "
                "and clear this task; or fetch the video without its sound, with a LumaTaskSensor and a "
                "LumaDownloadOperator",
            )

    def hold(self, claim: Mapping[str, Any] | None, job: Mapping[str, Any]) -> Mapping[str, Any]:
        """
        Return the claim; create it if missing. It must exist from before the video is written until it is described.

        :param claim: what :meth:`own_claim` returned before the download
        :param job: how the video was made, see :meth:`description`
        :raises LumaValidationError: another job was submitted for the video meanwhile
        :raises AirflowException: the storage is unavailable
        """
        if self.own_claim(job) != claim:
            raise self._taken()
        if claim is not None:
            return claim
        held = {**{name: job[name] for name in _DESCRIPTION if name in job}, "run": dict(self.run)}
        if not self.claim.create(held) and self.own_claim(job) != held:
            raise self._taken()
        return held

    def finish(self, claim: Mapping[str, Any], job: Mapping[str, Any]) -> None:
        """
        Write the manifest of the video that is there now, and remove the claim.

        :param claim: what :meth:`hold` has returned
        :param job: the job that made the video
        :raises AirflowException: the storage is unavailable
        """
        kept = {name: value for name, value in claim.items() if name not in ("recovery", "has_failed", "replaced")}
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

    def _taken(self, document: Mapping[str, Any] | None = None) -> LumaValidationError:
        """Return the error of a download that came too late; the document is the claim or manifest of another run."""
        dag_id, run_id, *_ = _task_in(document or {})
        who = f"run {run_id} of {dag_id}" if document else "a later try of this run, or another run,"
        return LumaValidationError(
            None,
            f"destination: {who} has since submitted another job for {shown_address(self.path)}, so this job's "
            "video is not written there. To get it anyway, download it to another folder",
        )

    def _map_index_in(self, document: Mapping[str, Any]) -> int | None:
        if not self.owner_of(document).is_this_run:
            return None
        index = read_object(document.get("run")).get("map_index")
        return index if isinstance(index, int) and not isinstance(index, bool) and index >= 0 else None

    def _beside(self, kind: str) -> ObjectStoragePath:
        return file_in(str(self.path).rpartition("/")[0], f".{self.path.name}.{kind}.json")


#: What a claim and the manifest after it have in common.
_DESCRIPTION = ("clip", "clip_version", "prompt", "request", "reference")


def _text(value: object) -> str | None:
    """Return a text from a file, made safe for errors and the table: anybody may have written it."""
    text = read_text(value)
    return text and "".join(letter if letter.isprintable() else "\ufffd" for letter in text[:_MAX_NAME])


def _task_in(document: Mapping[str, Any]) -> list[str]:
    """Return DAG, run, task and map index that a document names."""
    run = read_object(document.get("run"))
    return [_text(str(run.get(key))) or "" for key in ("dag_id", "run_id", "task_id", "map_index")]


def _hint_in(claim: Mapping[str, Any]) -> str:
    """Return what a claim says about a task ``modify`` that has failed; nothing if the text is not one of ours."""
    recovery = claim.get("recovery")
    if recovery not in RECOVERY_HINTS:
        return ""
    _, _, modify, index = _task_in(claim)
    return (
        f"If {modify} [{index}]: {recovery}. But see its log first: a Clear submits another job if the first has "
        "failed at Luma, if its outcome is unknown, or if the clip or its prompt has changed since; and if the list of "
        "clips has, the task may be that of another clip. "
    )


def _place(clip: str) -> str:
    """Return a clip's address, without the scheme that some versions of Airflow write for a local file."""
    return re.sub(r"^(file|local)://[^/]*", "", clip)


def _download_of(modify_task_id: str) -> str:
    return f"{modify_task_id.rpartition('.')[0]}.download".lstrip(".")


class VideoClaim:
    """
    The claim of one task to its video.

    :param address: the video's
    :param run: what identifies the task: the keys of ``modify``, with its map index
    :param recovery: how to get the video of the job if the task fails
    :param describe: returns what is submitted, see :func:`description_of`; raises if its video could not be written
    :param is_new: no earlier try of the task can have left a claim
    :param replaces: another task's submission, whose claim this one takes over if that claim is still there
    """

    def __init__(
        self,
        address: str,
        run: Mapping[str, Any],
        recovery: str,
        describe: Callable[[], Mapping[str, Any]],
        *,
        is_new: bool,
        replaces: str | None = None,
    ) -> None:
        self._address, self._run, self._is_new = address, run, is_new
        self._recovery, self._describe, self._replaces = recovery, describe, replaces

    @cached_property
    def _video(self) -> BatchVideo:
        return BatchVideo(as_path(self._address), self._run, self._is_new)

    def stake(self, reference: str, known_job: str | None) -> None:
        """
        Create the claim, or replace the one that an earlier try of this task has left.

        The new claim keeps the one that it replaces, under ``replaced``, until it is certain that there is a job.

        :param reference: the submission's name
        :param known_job: the latest job of this task that its record knows
        :raises LumaValidationError: another task has the video, or may have a job for it, or this one has a job that
            its record does not know
        :raises AirflowException: the storage is unavailable
        """
        video, claim = self._video, self._video.claim
        content = {**self._describe(), "run": dict(self._run), "reference": reference, "recovery": self._recovery}
        is_created = claim.create(content)
        if not is_created:
            found = claim.read()
            if found is None:
                raise AirflowException(
                    f"{shown_address(claim.path)} has just been removed by another run. Nothing was submitted; the "
                    "next try creates it"
                )
            # This try left the claim and could not withdraw it, or can take it over. Unreadable ones have no reference.
            theirs = found.get("reference")
            is_free = theirs is not None and theirs in (reference, self._replaces)
            if not is_free and (reason := video.refusal(found, known_job)):
                raise LumaValidationError(None, reason)
            claim.write({**content, "replaced": _replaced_by(reference, found)})
        # Only after claiming: a previous owner described its video before it gave up its claim.
        if (version := video.version()) is not None:
            self._check_video(content, version, is_created=is_created)

    def _check_video(self, content: Mapping[str, Any], version: str, *, is_created: bool) -> None:
        """
        Check the video that is there.

        :param content: the content of the claim
        :param version: the version of the video
        :param is_created: whether there was no claim before
        :raises LumaValidationError: it must not be replaced
        """
        video, shown = self._video, shown_address(self._video.path)
        manifest = video.manifest.read() or {}
        if manifest and video.is_made(manifest, content["request"]):
            raise LumaValidationError(
                None, f"another run has just made {shown}: nothing was submitted, and the next run uses that video"
            )
        if manifest and (whose := video.of_another(manifest, content["clip"])):
            raise LumaValidationError(None, f"destination: {shown} is the video of {whose}: choose another folder")
        # If there was a claim, a download may have been killed between writing the video and describing it.
        if is_created and version != manifest.get("video_version"):
            raise LumaValidationError(
                None, f"destination: {shown} would be replaced, and no batch has written it: remove it"
            )

    @tenacity.retry(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(1), reraise=True)
    def note_failure(self, luma_task_id: str) -> None:
        """
        Write into the claim that its job has failed at Luma, so that its task may submit another.

        :raises AirflowException: the storage is unavailable
        """
        claim = self._video.claim.read() or {}
        if claim.get("luma_task_id") == luma_task_id:
            self._video.claim.write({**claim, "has_failed": True})

    def name_job(self, reference: str, luma_task_id: str) -> None:
        """
        Write the job's id into the claim, for the errors of other runs.

        :raises AirflowException: the storage is unavailable
        """
        claim = self._video.claim.read() or {}
        if claim.get("reference") == reference and claim.get("luma_task_id") != luma_task_id:
            self._video.claim.write({**claim, "luma_task_id": luma_task_id})

    def is_held(self, reference: str) -> bool:
        """
        Return whether the claim still belongs to a submission.

        :raises AirflowException: the storage is unavailable
        """
        return (self._video.claim.read() or {}).get("reference") == reference

    def regain(self, reference: str) -> bool:
        """
        Return whether the claim belongs to a submission. If a later submission has replaced it, put it back first.

        :param reference: the submission that the task's record is about; the later one has been given up
        :raises AirflowException: the storage is unavailable
        """
        claim = self._video.claim.read() or {}
        replaced = read_object(claim.get("replaced"))
        if replaced.get("reference") == reference:
            self._video.claim.write(replaced)
            return True
        return claim.get("reference") == reference

    def withdraw(self, reference: str) -> None:
        """
        Undo :meth:`stake`: nothing was accepted. Put back the claim that it replaced, unless its video is there.

        :raises AirflowException: the storage is unavailable
        """
        claim = self._video.claim.read() or {}
        if claim.get("reference") != reference:
            return
        replaced = read_object(claim.get("replaced"))
        if replaced and replaced.get("reference") != (self._video.manifest.read() or {}).get("reference"):
            self._video.claim.write(replaced)
        else:
            self._video.claim.remove()


def _replaced_by(reference: str, claim: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return which claim to keep when a submission replaces one: the latest that names a job, if there is one."""
    replaced = read_object(claim.get("replaced"))
    is_better = claim.get("luma_task_id") or not replaced
    if claim.get("reference") == reference or not is_better:
        return replaced
    return {name: value for name, value in claim.items() if name != "replaced"}


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
    :param version: the version of the clip's content that is submitted
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

    The queries of addresses do not count: they may be signatures, which differ each time.

    :param version: the version of the clip's content that is submitted
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
            if self._is_empty():  # S3 refuses to return a range of an empty file
                return {}
            raise AirflowException(f"{shown_address(self.path)} could not be read: {error}") from error
        return read_object(read_json(content[:_MAX_SIZE]))

    def _is_empty(self) -> bool:
        with suppress(Exception):
            return bool(self.path.fs.info(self.path.path)["size"] == 0)
        return False

    def create(self, content: Mapping[str, Any]) -> bool:
        """
        Create it, unless it is there; return whether it was created.

        :raises AirflowException: the storage is unavailable
        """
        # Some services that imitate S3 ignore the condition that the file must not exist.
        if self.path.protocol in OBJECT_STORES and self.read() is not None:
            return False
        folder = self.path.path.rpartition("/")[0]
        if isinstance(self.path.fs, LocalFileSystem) and not Path(folder).is_dir():
            raise AirflowException(
                f"destination: there is no folder {folder!r} on this machine, though the task plan has made it: it may "
                "be on a disk that this worker does not have. Give a folder that all workers share"
            )
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
