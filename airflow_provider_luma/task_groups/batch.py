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
    # The last two affect how the templates of the plan and of modify are rendered.
    "all": FOR_ALL_TASKS | {"params", "render_template_as_native_obj"},
    "plan": frozenset({"on_execute_callback", "trigger_rule"}),
    "collect": frozenset({"on_success_callback", "outlets"}),
}


#: In a template: the name of a file in an address. Airflow's database takes 250 characters.
_SHORT_NAME = ".rpartition('/')[2][:200]"


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
    retry_failed: bool | str | None = None,
    luma_conn_id: str | None = None,
    **operator_kwargs: Any,
) -> BatchGroup:
    """
    Modify many clips, each as a separate job; name each video after its clip, and return a table of clips and videos.

    A later run modifies only what has no video yet. Parameters that are not given come from ``default_args``.

    :param clips: a folder in any storage, a list of clips, or a task's output with either (templated)
    :param prompt: one prompt, or the name of a file with it; or one for each clip: a list, a dict by clip name, or
        a task's output (templated)
    :param destination: the folder for the videos, used only for batches (templated)
    :param pattern: which files of a folder are clips, such as ``*.mp4`` or ``**/*.mov`` (templated)
    :param allowed_failures: how many clips may fail, as a number or as a share such as ``0.05``; none by default
    :param keep_sound: put each clip's sound under its video, which needs the extra ``media``
    :param retry_failed: also submit clips for which another run may have a paid job (templated)
    :param luma_conn_id: the connection of type Luma; ``luma_default`` by default (templated)
    :param operator_kwargs: parameters of the operators, such as ``pool``; see the documentation of batches
    """
    group = BatchGroup(group_id=group_id, tooltip="Modify many clips")
    places = {"clips": clips, "prompt": _rendered_by_plan(prompt), "destination": destination}
    luma, sound = given(luma_conn_id=luma_conn_id), given(keep_sound=keep_sound)
    own = {
        "plan": {**places, **given(pattern=pattern, retry_failed=retry_failed), **luma, **sound},
        "modify": {**luma, **sound},
        "download": luma,
        "collect": given(allowed_failures=allowed_failures),
    }
    _add_tasks(group, own, operator_kwargs)
    return group


def _add_tasks(group: BatchGroup, own: Mapping[str, Mapping[str, Any]], operator_kwargs: Mapping[str, Any]) -> None:
    """
    Add the tasks.

    :param own: the parameters that the group itself sets, by task
    """
    parameters = sorted_by_task(operator_kwargs, GOES_TO, group="modify_videos", page="docs/batches.md")
    # Not set on the groups: the inner group would get copies, even of callbacks.
    defaults: dict[str, Any] = {"default_args": {**(operator_kwargs.get("default_args") or {}), **parameters["all"]}}
    steps = {**defaults, "outlets": []}  # outlets in default_args are updated once, by collect
    job = given(watermark=operator_kwargs.get("watermark"), options=operator_kwargs.get("options"))
    modify, download = (f"{group.group_id}.clip.{step}" for step in ("modify", "download"))
    with group:
        plan = BatchPlanOperator(
            task_id="plan", modify_task_id=modify, **steps, **own["plan"], **job, **parameters["plan"]
        )
        clip = _clip(plan, {**steps, **own["modify"], **parameters["modify"]}, {**steps, **own["download"]})
        collect = BatchCollectOperator(
            task_id="collect",
            plan_task_id=plan.task_id,
            modify_task_id=modify,
            download_task_id=download,
            trigger_rule="all_done",
            **defaults,
            **own["collect"],
            **parameters["collect"],
        )
        [plan, clip] >> collect


def _clip(plan: BatchPlanOperator, modifying: Mapping[str, Any], downloading: Mapping[str, Any]) -> Any:
    """Return the mapped group with the tasks of each clip. What the plan returns is data: it is not rendered again."""

    def clip(clip: Any, video: Any, sound_from: Any, replaces: Any, prompt: Any) -> None:
        modify = BatchModifyOperator(
            task_id="modify",
            prompt=prompt,
            video_url=clip,
            video=video,
            replaces=replaces,
            **{"map_index_template": f"{{{{ task.video{_SHORT_NAME} }}}}", **modifying},
            trigger_rule=NEEDS_ALL,
            wait_for_completion=True,
        )
        BatchDownloadOperator(
            task_id="download",
            urls=modify.output,
            destination=video,
            sound_from=sound_from,
            modify_task_id=modify.task_id,
            map_index_template=f"{{{{ task.destination{_SHORT_NAME} }}}}",
            trigger_rule=NEEDS_ALL,
            **downloading,
        )

    group = task_group(group_id="clip", tooltip="Modify one clip, and download its video")(clip)
    # A single prompt for all clips is not mapped, because each task reads everything that is mapped.
    one_prompt = {"prompt": plan.output[PROMPT_KEY]} if plan.has_one_prompt else {}  # type: ignore[index]
    return group.partial(**one_prompt).expand_kwargs(plan.output)


def _rendered_by_plan(prompt: Any) -> Any:
    """
    Return prompts that the plan can render. Airflow would not read prompt files that a list or a dict names.

    :raises LumaValidationError: there is no prompt
    """
    if not isinstance(prompt, XComArg) and isinstance(prompt, (Sequence, Mapping)) and not prompt:
        raise LumaValidationError(None, "prompt is empty: give one prompt, or one for each clip")
    if isinstance(prompt, Mapping):
        return {name: with_included_file(one) for name, one in prompt.items()}
    if isinstance(prompt, Sequence) and not isinstance(prompt, str):
        return [with_included_file(one) for one in prompt]
    return prompt
