# SPDX-License-Identifier: Apache-2.0
"""A film of any length as one step of a DAG: split, modify, download, join."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from airflow.sdk import TaskGroup, XComArg, literal, task

from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.operators.base import LiteralValue
from airflow_provider_luma.operators.luma import LumaModifyOperator
from airflow_provider_luma.operators.transfers import LumaDownloadOperator
from airflow_provider_luma.operators.video import PLAN_KEY, VideoJoinOperator, VideoSplitOperator
from airflow_provider_luma.validation import MAX_VIDEO_SECONDS, PROMPT_FILE_EXTENSIONS


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
    clip_seconds: float = MAX_VIDEO_SECONDS,
    luma_conn_id: str = "luma_default",
    detect_scenes: bool = False,
    max_clips: int | None = None,
    **operator_kwargs: Any,
) -> LongVideoGroup:
    """
    Modify a film that is longer than Luma takes: cut it, modify each clip, and join them with the film's own sound.

    Each clip is a task and a job of its own. ``modify_long_video(...).output`` is the film's address.

    :param source: the film, a file in any storage that Airflow knows (templated)
    :param prompt: how to change the film, in English, or the name of a ``.txt`` or ``.md`` file that says so
        (templated); or a list, or a task's output, of one for each clip
    :param destination: the file to write, in any storage (templated)
    :param work_dir: a folder for the clips that all workers share, such as ``s3://my_aws@bucket/tmp``. What a run has
        written there is removed at its end, and kept if it fails (templated)
    :param clip_seconds: seconds that a clip lasts at most
    :param luma_conn_id: the connection, of type Luma, that holds the API key (templated)
    :param detect_scenes: move the cuts to changes of scene, where that leaves no clip too long
    :param max_clips: fail, before anything is paid for, if the film makes more clips
    :param operator_kwargs: parameters of :class:`~airflow_provider_luma.operators.luma.LumaModifyOperator`
    """
    cutting: dict[str, Any] = {"clip_seconds": clip_seconds, "detect_scenes": detect_scenes, "max_clips": max_clips}
    group = LongVideoGroup(group_id=group_id, tooltip="Split, modify, download, join")
    # The group's own id names the groups around it: another of them may hold a film of the same name.
    folder = f"{work_dir.rstrip('/')}/{{{{ dag.dag_id }}}}/{{{{ run_id }}}}/{group.group_id}"
    with group:
        split = VideoSplitOperator(task_id="split", source=source, destination=f"{folder}/clips", **cutting)
        modify = _modify(split, prompt, {"luma_conn_id": luma_conn_id, **operator_kwargs})
        _join(split, modify, folder, destination, luma_conn_id) >> _clean_up(folder)
    return group


def _join(
    split: VideoSplitOperator, modify: Any, folder: str, destination: str, luma_conn_id: str
) -> VideoJoinOperator:
    """Return the task that joins what another has modified, and is fetched first."""
    download = LumaDownloadOperator.partial(
        task_id="download",
        destination=f"{folder}/modified/clip-{{{{ ti.map_index }}}}.mp4",
        luma_conn_id=luma_conn_id,
        overwrite=True,  # a clip that is cleared comes back as another video
    ).expand(urls=modify.output.map(_first_result))
    return VideoJoinOperator(
        task_id="join",
        clips=download.output,  # type: ignore[arg-type]
        source=split.source,
        destination=destination,
        plan=split.output[PLAN_KEY],  # type: ignore[index]
    )


def _modify(split: VideoSplitOperator, prompt: Any, parameters: dict[str, Any]) -> Any:
    """Return the mapped task that modifies the clips."""
    if isinstance(prompt, Sequence) and not prompt:
        raise LumaValidationError(None, "prompt is empty: give one, or a list of one for each clip")
    if isinstance(prompt, (str, LiteralValue)):
        return LumaModifyOperator.partial(task_id="modify", prompt=prompt, **parameters).expand(video_url=split.output)
    if isinstance(prompt, Sequence):
        prompt = [_included(one) for one in prompt]
    pairs = _pairs(split.output, prompt).map(_as_literals)  # type: ignore[arg-type]
    return LumaModifyOperator.partial(task_id="modify", **parameters).expand_kwargs(pairs)


def _included(prompt: Any) -> Any:
    """Return a prompt that the next task renders; Airflow reads files for the task that they are a parameter of."""
    is_file = isinstance(prompt, str) and prompt.endswith(PROMPT_FILE_EXTENSIONS)
    return f"{{% filter trim %}}{{% include {prompt!r} %}}{{% endfilter %}}" if is_file else prompt


@task(task_id="prompts")
def _pairs(clips: Sequence[str], prompts: Sequence[str]) -> list[dict[str, str]]:
    """Give each clip its prompt, with the templates in the DAG author's own prompts rendered."""
    from airflow_provider_luma.validation import check_prompt

    # A text, or a dict, of as many characters, or keys, as there are clips would be paid for.
    if isinstance(prompts, (str, Mapping)) or not isinstance(prompts, Iterable):
        raise LumaValidationError(None, f"prompt is {prompts!r}: give a list, or a task's output, of one for each clip")
    clips, prompts = list(clips), list(prompts)
    if len(clips) != len(prompts):
        raise LumaValidationError(
            None, f"prompt holds {len(prompts)} prompts, and the film makes {len(clips)} clips: give one for each clip"
        )
    for prompt in prompts:
        check_prompt(prompt)
    return [{"video_url": clip, "prompt": prompt} for clip, prompt in zip(clips, prompts, strict=True)]


@task(task_id="clean_up")
def _clean_up(folder: str) -> None:
    """Remove what the run has written on the way."""
    from airflow_provider_luma.transfers.outputs import remove_folder

    remove_folder(folder)


def _as_literals(parameters: dict[str, str]) -> dict[str, Any]:
    """
    Return parameters that are not rendered as templates, which ``expand_kwargs`` would do.

    Another task's prompts may come from anywhere, and a template can read passwords and files.
    """
    return {name: literal(value) for name, value in parameters.items()}


def _first_result(result: dict[str, Any]) -> str:
    url: str = result["result_urls"][0]
    return url
