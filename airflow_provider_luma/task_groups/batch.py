# SPDX-License-Identifier: Apache-2.0
"""Modify many clips in one step of a DAG: find them, modify and download each, and say what became of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from airflow.sdk import TaskGroup, XComArg, task_group

from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.operators.batch import (
    PROMPT_KEY,
    BatchCollectOperator,
    BatchDownloadOperator,
    BatchModifyOperator,
    BatchPlanOperator,
)
from airflow_provider_luma.task_groups.parameters import (
    FOR_ALL_TASKS,
    NEEDS_ALL,
    given,
    sorted_by_task,
    with_included_file,
)

#: Parameters that ``modify`` does not get, by the tasks that do: see docs/batches.md.
GOES_TO: Mapping[str, frozenset[str]] = {
    "all": FOR_ALL_TASKS,
    "plan": frozenset({"on_execute_callback", "trigger_rule"}),
    "collect": frozenset({"on_success_callback", "outlets"}),
}


class BatchGroup(TaskGroup):
    """The tasks that modify many clips."""

    @property
    def output(self) -> XComArg:
        """The table of clips and videos, for the tasks after the group."""
        collect: BatchCollectOperator = self.children[f"{self.group_id}.collect"]  # type: ignore[assignment]
        return collect.output


def modify_videos(
    *,
    group_id: str,
    clips: str | Sequence[str] | XComArg,
    prompt: str | Sequence[str] | Mapping[str, str] | XComArg,
    destination: str,
    pattern: str | None = None,
    allowed_failures: float | None = None,
    keep_sound: bool | None = None,
    retry_failed: bool | None = None,
    luma_conn_id: str | None = None,
    **operator_kwargs: Any,
) -> BatchGroup:
    """
    Modify many clips: each is a separate job, and one that fails leaves the others alone.

    ``modify_videos(...).output`` is a list with a dict for each clip: ``clip``, its ``video`` or None, the
    ``luma_task_id``, and the ``error`` or None. A video is named after its clip. A later run with the same destination
    skips clips that have been modified with the same prompt and options. Parameters that are not given come from
    ``default_args``, of the group or around it.

    :param clips: a folder in any storage that Airflow knows, or a list of clips, or a task's output with either
        (templated)
    :param prompt: how to change the videos, in English, or the name of a ``.txt`` or ``.md`` file with the prompt; or
        one prompt for each clip: a list, or a dict whose keys are the names of the clips in their folder; or a task's
        output with any of these (templated)
    :param destination: the folder for the videos, which only batches write to, such as ``s3://my_aws@bucket/videos``
        (templated)
    :param pattern: which files of a folder are clips, such as ``*.mp4``, or ``**/*.mov`` to include subfolders; all
        MP4, MOV and AVI files of the folder by default (templated)
    :param allowed_failures: how many clips may be without a video in the end, as a number, or as a share such as
        ``0.05``. With more, the group fails; none by default
    :param keep_sound: put the sound of each clip under its video, since Luma's own API returns silent videos; off by
        default. It needs the extra ``media``
    :param retry_failed: submit clips again that an earlier run has submitted, but has no video of. By default they are
        left to that run, since their jobs may be paid for
    :param luma_conn_id: the connection of type Luma with the API key; ``luma_default`` by default (templated)
    :param operator_kwargs: parameters of the operators, such as ``pool`` and ``max_active_tis_per_dagrun``, which limit
        how many clips are modified at a time; the documentation of batches lists which tasks get them
    :raises LumaValidationError: a parameter cannot work
    """
    if not isinstance(prompt, XComArg) and isinstance(prompt, (Sequence, Mapping)) and not prompt:
        raise LumaValidationError(None, "prompt is empty: give one prompt, or one for each clip")
    group = BatchGroup(group_id=group_id, tooltip="Find the clips, modify and download each, collect the videos")
    parameters = sorted_by_task(operator_kwargs, GOES_TO, group="modify_videos", page="docs/batches.md")
    # Not through the constructor, which copies callbacks.
    group.default_args.update({**(operator_kwargs.get("default_args") or {}), **parameters["all"]})
    luma, sound = given(luma_conn_id=luma_conn_id), given(keep_sound=keep_sound)
    job = given(watermark=operator_kwargs.get("watermark"), options=operator_kwargs.get("options"))
    modify_task_id = f"{group.group_id}.clip.modify"
    with group:
        plan = BatchPlanOperator(
            task_id="plan",
            clips=clips,
            prompt=_rendered_by_plan(prompt),
            destination=destination,
            modify_task_id=modify_task_id,
            **given(pattern=pattern, retry_failed=retry_failed),
            **{**luma, **sound, **job, **parameters["plan"]},
        )
        clip = _clip(plan, luma, {**luma, **sound, **parameters["modify"]})
        collect = BatchCollectOperator(
            task_id="collect",
            plan_task_id=plan.task_id,
            modify_task_id=modify_task_id,
            download_task_id=f"{group.group_id}.clip.download",
            trigger_rule="all_done",
            **given(allowed_failures=allowed_failures),
            **parameters["collect"],
        )
        [plan, clip] >> collect
    return group


def _clip(plan: BatchPlanOperator, luma: Mapping[str, Any], parameters: Mapping[str, Any]) -> Any:
    """Return the mapped group with the tasks of each clip. What the plan returns is data: it is not rendered again."""

    def clip(clip: Any, video: Any, sound_from: Any, prompt: Any) -> None:
        modify = BatchModifyOperator(
            task_id="modify",
            prompt=prompt,
            video_url=clip,
            video=video,
            **{"map_index_template": "{{ task.video.rpartition('/')[2] }}", **parameters},
            trigger_rule=NEEDS_ALL,
            wait_for_completion=True,
        )
        BatchDownloadOperator(
            task_id="download",
            urls=modify.output,
            destination=video,
            sound_from=sound_from,
            modify_task_id=modify.task_id,
            map_index_template="{{ task.destination.rpartition('/')[2] }}",
            trigger_rule=NEEDS_ALL,
            **luma,
        )

    # The one prompt is not in every row: each task reads all rows.
    one_prompt = {"prompt": plan.output[PROMPT_KEY]} if plan.has_one_prompt else {}
    return (
        task_group(group_id="clip", tooltip="Modify and download one clip")(clip)
        .partial(**one_prompt)
        .expand_kwargs(plan.output)
    )


def _rendered_by_plan(prompt: Any) -> Any:
    """Return prompts that the plan can render: in a list or a dict, Airflow would not read files."""
    if isinstance(prompt, Mapping):
        return {name: with_included_file(one) for name, one in prompt.items()}
    if isinstance(prompt, Sequence) and not isinstance(prompt, str):
        return [with_included_file(one) for one in prompt]
    return prompt
