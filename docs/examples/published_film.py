# SPDX-License-Identifier: Apache-2.0
"""A film goes in, and a modified one is published: the DAG of the tutorial."""

from __future__ import annotations

from airflow.sdk import DAG, ObjectStoragePath, Param, task

from airflow_provider_luma.task_groups.video import modify_long_video


@task
def publish(film: str, params: dict[str, str]) -> str:
    target = ObjectStoragePath(params["folder"]) / "published" / "film.mp4"
    target.parent.mkdir(parents=True, exist_ok=True)
    ObjectStoragePath(film).copy(target)
    return str(target)


with DAG(
    dag_id="published_film",
    schedule=None,
    params={
        "source": Param("/tmp/luma/film.mp4", type="string", description="The film."),
        "prompt": Param("Make it a rainy night with neon lights", type="string", description="In English."),
        "folder": Param("file:///tmp/luma", type="string", description="Where films are made and published."),
    },
) as dag:
    film = modify_long_video(
        group_id="film",
        source="{{ params.source }}",
        prompt="{{ params.prompt }}",
        destination="{{ params.folder }}/made/{{ run_id }}/film.mp4",
        work_dir="{{ params.folder }}/work",
        max_clips=10,
    )
    publish(film.output)
