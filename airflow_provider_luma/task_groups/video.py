# SPDX-License-Identifier: Apache-2.0
"""Modify a film of any length in one step of a DAG: split, modify, download, join."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from airflow.sdk import TaskGroup, XComArg, task

from airflow_provider_luma.compat import literal
from airflow_provider_luma.core.validation import check_no_outer_blanks
from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.files.destination_names import check_film_destination
from airflow_provider_luma.operators.base import LiteralValue, is_literal, items_of
from airflow_provider_luma.operators.luma import LumaModifyOperator
from airflow_provider_luma.operators.transfers import LumaDownloadOperator
from airflow_provider_luma.operators.video import FILM_KEY, PLAN_KEY, VideoJoinOperator, VideoSplitOperator
from airflow_provider_luma.task_groups.parameters import (
    FOR_ALL_TASKS,
    NEEDS_ALL,
    given,
    sorted_by_task,
    with_included_file,
)


class LongVideoGroup(TaskGroup):
    """The tasks that modify a film."""

    @property
    def output(self) -> XComArg:
        """The film's address, for the tasks after the group."""
        join: VideoJoinOperator = self.children[f"{self.group_id}.join"]  # type: ignore[assignment]
        return join.output


def modify_long_video(
    *,
    group_id: str,
    source: str,
    prompt: str | Sequence[str] | XComArg,
    destination: str,
    work_dir: str,
    clip_seconds: float | None = None,
    luma_conn_id: str | None = None,
    detect_scenes: bool | None = None,
    max_clips: int | None = None,
    **operator_kwargs: Any,
) -> LongVideoGroup:
    """
    Modify a film that is too long for Luma: split it, modify each clip, and join the results with the film's own sound.

    Each clip is a separate task and job. ``modify_long_video(...).output`` is the film's address. Parameters that are
    not given come from ``default_args``, of the group or around it, and otherwise from the operators.

    :param source: the film, a file in any storage that Airflow supports (templated)
    :param prompt: how to change the film (kie.ai accepts English only), or the name of a ``.txt`` or ``.md`` file with
        the prompt (templated); or one prompt per clip, as a list or a task's output
    :param destination: the ``.mp4`` or ``.m4v`` file to write, checked before anything is paid for (templated)
    :param work_dir: a folder for the clips that all workers share, such as ``s3://my_aws@bucket/tmp``. A run removes
        its files there when it ends, but keeps them if it fails (templated)
    :param clip_seconds: maximum length of a clip, in seconds; by default, as long as the connection's service accepts
    :param luma_conn_id: the connection of type Luma with the API key; ``luma_default`` by default (templated)
    :param detect_scenes: move the cuts to scene changes where that makes no clip too long
    :param max_clips: fail before anything is paid for if the film makes more clips
    :param operator_kwargs: parameters of the operators; the documentation of long videos lists which tasks get them
    :raises LumaValidationError: a parameter is invalid
    """
    _check_addresses(destination, work_dir)
    group = LongVideoGroup(group_id=group_id, tooltip="Split, modify, download, join")
    # The full group id includes the enclosing groups: groups with different parents may have the same name.
    folder = f"{work_dir.rstrip('/')}/{{{{ dag.dag_id }}}}/{{{{ run_id }}}}/{group.group_id}"
    places = {"source": source, "film_destination": destination, "work_dir": folder}
    cutting = given(clip_seconds=clip_seconds, detect_scenes=detect_scenes, max_clips=max_clips)
    _add_tasks(group, prompt, {**places, **cutting}, given(luma_conn_id=luma_conn_id), operator_kwargs)
    return group


def _add_tasks(
    group: LongVideoGroup,
    prompt: Any,
    splitting: Mapping[str, Any],
    luma: Mapping[str, Any],
    operator_kwargs: Mapping[str, Any],
) -> None:
    parameters = sorted_by_task(operator_kwargs, GOES_TO, group="modify_long_video", page="docs/long-videos.md")
    # Not through the constructor, which copies callbacks.
    group.default_args.update({**(operator_kwargs.get("default_args") or {}), **parameters["all"]})
    folder, options = splitting["work_dir"], given(options=operator_kwargs.get("options"))
    with group:
        split = VideoSplitOperator(
            task_id="split", destination=f"{folder}/clips", **splitting, **luma, **options, **parameters["split"]
        )
        split.luma_conn_id = split.luma_conn_id or "luma_default"
        modify = _modify(split, prompt, {**luma, **parameters["modify"]})
        _join(split, _download(modify, folder, luma), parameters["join"]) >> _clean_up(folder)


def _check_addresses(destination: Any, work_dir: str) -> None:
    if is_literal(destination):
        check_film_destination("destination", destination)
    if is_literal(work_dir):
        check_no_outer_blanks("work_dir", work_dir)


def _download(modify: Any, folder: str, parameters: Mapping[str, Any]) -> Any:
    """Return the mapped task that downloads the modified clips."""
    return LumaDownloadOperator.partial(
        task_id="download",
        destination=f"{folder}/modified/clip-{{{{ ti.map_index }}}}.mp4",
        overwrite=True,  # a cleared clip comes back as another video
        trigger_rule=NEEDS_ALL,
        **parameters,
    ).expand(urls=modify.output.map(_with_first_video))


def _join(split: VideoSplitOperator, download: Any, parameters: dict[str, Any]) -> VideoJoinOperator:
    """Return the task that joins the downloaded clips."""
    return VideoJoinOperator(
        task_id="join",
        clips=download.output,
        source=split.source,
        destination=_as_rendered_by(split),
        plan=split.output[PLAN_KEY],  # type: ignore[index]
        trigger_rule=NEEDS_ALL,
        **parameters,
    )


def _as_rendered_by(split: VideoSplitOperator) -> Any:
    """Return the film's destination as rendered and checked by the split; rendering it again may give another."""
    destination = split.film_destination
    if is_literal(destination) or not isinstance(destination, str):
        return destination
    pulled = f"ti.xcom_pull(task_ids={split.task_id!r}, key={FILM_KEY!r})"
    # Version 1.1.0 pushed nothing, and may have started this run.
    return f"{{% if {pulled} %}}{{{{ {pulled} }}}}{{% else %}}{destination}{{% endif %}}"


def _modify(split: VideoSplitOperator, prompt: Any, parameters: dict[str, Any]) -> Any:
    """Return the mapped task that modifies the clips."""
    if isinstance(prompt, Sequence) and not prompt:
        raise LumaValidationError(None, "prompt is empty: pass one prompt, or a list with one per clip")
    parameters = {**parameters, "trigger_rule": NEEDS_ALL, "wait_for_completion": True}  # whatever default_args says
    if isinstance(prompt, (str, LiteralValue)):
        return LumaModifyOperator.partial(task_id="modify", prompt=prompt, **parameters).expand(video_url=split.output)
    if isinstance(prompt, Sequence):
        prompt = [with_included_file(one) for one in prompt]
    pairs = _pairs(split.output, prompt, luma_conn_id=split.luma_conn_id).map(_as_literals)  # type: ignore[arg-type]
    return LumaModifyOperator.partial(task_id="modify", **parameters).expand_kwargs(pairs)


@task(task_id="prompts", trigger_rule=NEEDS_ALL)
def _pairs(clips: Sequence[str], prompts: Sequence[str], luma_conn_id: str) -> list[dict[str, str]]:
    """Pair each clip with its prompt; templates in the DAG author's own prompts have been rendered."""
    from airflow_provider_luma.core.job import ModifyRequest
    from airflow_provider_luma.hooks.luma import LumaHook

    # Otherwise a string with one character per clip, or a dict with one key per clip, would be paid for.
    if isinstance(prompts, (str, Mapping)) or not isinstance(prompts, Iterable):
        raise LumaValidationError(
            None, f"prompt is {prompts!r}: pass one prompt per clip, as a list or a task's output"
        )
    clips, prompts = items_of(clips), items_of(prompts)
    if len(clips) != len(prompts):
        raise LumaValidationError(
            None, f"prompt contains {len(prompts)} prompts, but the film makes {len(clips)} clips: pass one per clip"
        )
    pairs = [{"video_url": clip, "prompt": prompt} for clip, prompt in zip(clips, prompts, strict=True)]
    client = LumaHook(luma_conn_id).get_client()
    for pair in pairs:
        client.check_request(ModifyRequest(**pair))
    return pairs


@task(task_id="clean_up", trigger_rule=NEEDS_ALL)
def _clean_up(folder: str) -> None:
    """Remove the files that the run no longer needs."""
    from airflow_provider_luma.files.storage import remove_empty_folder, remove_folder

    remove_folder(folder)
    remove_empty_folder(folder.rpartition("/")[0])  # the run's folder, which another film of the run may still use


def _as_literals(parameters: dict[str, str]) -> dict[str, Any]:
    """
    Wrap parameters so that ``expand_kwargs`` does not render them as templates.

    Prompts from another task may come from anywhere, and a template can read passwords and files.
    """
    return {name: literal(value) for name, value in parameters.items()}


def _with_first_video(result: dict[str, Any]) -> dict[str, Any]:
    """Return a clip's result without the further videos that its job may have: a clip is one file."""
    return {**result, "result_urls": result["result_urls"][:1]}


#: Parameters of every Airflow operator that ``modify`` does not get, by the tasks that get them: see
#: docs/long-videos.md.
GOES_TO: Mapping[str, frozenset[str]] = {
    "all": FOR_ALL_TASKS,
    "split": frozenset({"on_execute_callback", "trigger_rule"}),
    "join": frozenset({"on_success_callback", "outlets"}),
}
