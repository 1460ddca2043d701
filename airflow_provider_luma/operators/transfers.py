# SPDX-License-Identifier: Apache-2.0
"""
Operators that move files: videos to Luma, and results from Luma to any storage.

DAG files are parsed every 30 seconds, so this module imports the hook, and with it the HTTP libraries, only when a task
runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from airflow_provider_luma.compat import AirflowFailException
from airflow_provider_luma.core.addresses import is_web_address
from airflow_provider_luma.core.validation import check_file_address
from airflow_provider_luma.exceptions import PERMANENT, LumaValidationError
from airflow_provider_luma.files.destination_names import check_destination, names_a_file
from airflow_provider_luma.links.luma import pushed_failure
from airflow_provider_luma.operators.base import LumaBaseOperator, is_literal, items_of

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context

    from airflow_provider_luma.files.sound_source import SoundSource


class LumaUploadOperator(LumaBaseOperator):
    """
    Upload a video to Luma once for several tasks that modify it: ``video_url=upload.output["url"]``.

    Returns ``{"url", "size", "expires_at"}``, and also pushes each key as an XCom: the file's public address, which
    anyone who knows it can read, its size in bytes, and when Luma deletes it (ISO 8601 UTC), at least 24 hours later.

    An upload costs nothing. For a single task you do not need this operator:
    :class:`~airflow_provider_luma.operators.luma.LumaModifyOperator` uploads files itself.

    :param source: a file in any storage that Airflow knows, such as ``/data/clip.mp4`` or
        ``s3://my_aws@bucket/clip.mp4`` (templated)
    :param luma_conn_id: the connection of type Luma with the API key (templated)
    :param check_video: validate the video first, and refuse what Luma would refuse. This reads its format and length,
        which needs the extra ``media`` of this package
    :raises LumaValidationError: ``source`` cannot be the address of a file
    """

    template_fields: Sequence[str] = ("source", "luma_conn_id")
    ui_color = "#d7e9f5"

    def __init__(
        self,
        *,
        source: str,
        luma_conn_id: str = "luma_default",
        check_video: bool = True,
        multiple_outputs: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(multiple_outputs=multiple_outputs, **kwargs)
        self.source = source
        self.luma_conn_id = luma_conn_id
        self.check_video = check_video
        if is_literal(source):
            check_file_address("source", source)

    def execute(self, context: Context) -> dict[str, Any]:
        """Validate the video, and upload it."""
        with pushed_failure(context):
            return self._upload()

    def _upload(self) -> dict[str, Any]:
        try:
            uploaded = self.hook.upload(
                self.source, check_video=self.check_video, fail_if_killed=self.fail_if_killed
            ).as_dict()
        except PERMANENT as error:
            raise AirflowFailException(str(error)) from error
        self.result = uploaded
        return uploaded

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Return the file and its address at Luma for OpenLineage."""
        from airflow_provider_luma.lineage import task_lineage

        return task_lineage([self.source], [self.result.get("url")])


class LumaDownloadOperator(LumaBaseOperator):
    """
    Download results, or any files from the web, to a storage that Airflow knows: a disk, S3, GCS, Azure …

    Luma keeps results for 14 days. The files are streamed. An incomplete file has a temporary name, and an interrupted
    download is resumed. A file that has already been downloaded is not fetched again.

    Returns the list of files.

    The asset events of its ``outlets`` list these files. If ``urls`` come from Luma tasks directly upstream, the events
    also contain the jobs that made the files, their sources and prompts, and when Luma deletes the results. These are
    read from the XComs of the upstream tasks, where each job is found by the address of its result; this also works for
    mapped tasks.

    :param urls: one address or several, e.g. ``modify.output["result_urls"]`` (templated)
    :param destination: a path, or an address such as ``s3://my_conn@bucket/videos``: a folder or, for a single address
        in ``urls``, a file, recognised by its extension (templated)
    :param luma_conn_id: the connection of type Luma, of the account that made the videos (templated)
    :param overwrite: fetch and replace files that already exist
    :param sound_from: a video whose sound is put under the result, since Luma's own API returns silent videos: a file
        in any storage that Airflow knows, or a public address. Also a list with one per file. It needs the extra
        ``media`` of this package (templated)
    :raises LumaValidationError: a parameter cannot work
    """

    template_fields: Sequence[str] = ("urls", "destination", "luma_conn_id", "sound_from")
    ui_color = "#d7e9f5"

    #: The files written, for lineage.
    files: Sequence[str] = ()

    def __init__(
        self,
        *,
        urls: str | Sequence[str],
        destination: str,
        luma_conn_id: str = "luma_default",
        overwrite: bool = False,
        sound_from: str | Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.urls = urls
        self.destination = destination
        self.luma_conn_id = luma_conn_id
        self.overwrite = overwrite
        self.sound_from = sound_from
        if sound_from and is_literal(sound_from) and not is_web_address(str(sound_from)):
            check_file_address("sound_from", sound_from)
        if is_literal(destination):
            check_destination(destination)

    def execute(self, context: Context) -> list[str]:
        """Download one file after the other."""
        with pushed_failure(context):
            return self._download(context)

    def _download(self, context: Context) -> list[str]:
        try:
            destination = str(self.destination or "").strip()
            plan = self._plan(destination)
            with self._sounds(len(plan)) as sounds:
                files = [
                    str(self.hook.download(url, destination, name=name, overwrite=self.overwrite, sound_from=sound))
                    for (url, name), sound in zip(plan.items(), sounds, strict=True)
                ]
        except (*PERMANENT, FileExistsError) as error:
            raise AirflowFailException(str(error)) from error
        if self.outlets:
            from airflow_provider_luma.asset_events import jobs_of_results, tell_outlets

            jobs = jobs_of_results(self, context, dict(zip(plan, files, strict=True)))
            tell_outlets(self, context, files, jobs)
        self.files = files
        return files

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Return the addresses and the files written for OpenLineage."""
        from airflow_provider_luma.lineage import task_lineage

        return task_lineage([self.urls] if isinstance(self.urls, str) else items_of(self.urls or ()), self.files)

    @contextmanager
    def _sounds(self, files: int) -> Iterator[list[SoundSource | None]]:
        """Yield the sound of each file. Each is checked before the first file is downloaded."""
        given = self.sound_from
        is_list = isinstance(given, Sequence) and not isinstance(given, str)
        addresses = items_of(given) if is_list else [given] * files  # type: ignore[arg-type]
        if len(addresses) != files:
            raise LumaValidationError(
                None, f"sound_from lists {len(addresses)} videos for {files} files: give one, or one per file"
            )
        with ExitStack() as stack:
            sounds = {
                address: stack.enter_context(self.hook.open_sound(address)) for address in dict.fromkeys(addresses)
            }
            yield [sounds[address] for address in addresses]

    def on_kill(self) -> None:
        """End the child process that adds sound."""
        from airflow_provider_luma.media.child_process import end_all

        super().on_kill()
        end_all()

    def _plan(self, destination: str) -> dict[str, str | None]:
        """Return a file name for each address, the same in every try; None if the destination itself is the file."""
        from airflow_provider_luma.files.download import safe_name

        urls = [self.urls] if isinstance(self.urls, str) else list(dict.fromkeys(items_of(self.urls or ())))
        if not urls:
            raise LumaValidationError(None, "urls is empty: there is nothing to download")
        if not destination:
            raise LumaValidationError(None, "destination is empty: give a folder, or a file for a single address")
        if names_a_file(destination):
            if len(urls) > 1:
                raise LumaValidationError(
                    None, f"destination {destination!r} is one file, but urls holds {len(urls)}: give a folder"
                )
            return {urls[0]: None}
        plan: dict[str, str | None] = {}
        for url in urls:
            name = safe_name(url)
            names = (name, *(f"{number}-{name}" for number in range(2, len(urls) + 1)))
            plan[url] = next(free for free in names if free not in plan.values())
        return plan
