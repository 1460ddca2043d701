# SPDX-License-Identifier: Apache-2.0
"""
Operators that move files: videos to Luma, and results from Luma to any storage.

DAG files are parsed every 30 seconds, so this module imports the hook, and with it the HTTP libraries, only when a task
runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from airflow_provider_luma.compat import AirflowFailException
from airflow_provider_luma.core.addresses import is_web_address
from airflow_provider_luma.core.redaction import shown_address
from airflow_provider_luma.core.validation import check_file_address
from airflow_provider_luma.exceptions import PERMANENT, LumaValidationError
from airflow_provider_luma.files.destination_names import check_destination, names_a_file
from airflow_provider_luma.links.luma import push_fetched, pushed_failure
from airflow_provider_luma.operators.base import LumaBaseOperator, MaskingOperator, is_literal, items_of

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context

    from airflow_provider_luma.files.results import ResultFile
    from airflow_provider_luma.files.sound_source import SoundSource


class LumaUploadOperator(LumaBaseOperator):
    """
    Upload a video to Luma once for several tasks that modify it: ``video_url=upload.output["url"]``.

    Returns ``{"url", "size", "expires_at"}``, and also pushes each key as an XCom: the file's address, its size in
    bytes, and when the service deletes it (ISO 8601 UTC), normally at least 24 hours later. The address is a public
    one that nobody can guess or, with Luma's own API, ``luma-file:<id>``, which only the same account can use.

    An upload costs nothing. For a single task you do not need this operator:
    :class:`~airflow_provider_luma.operators.luma.LumaModifyOperator` uploads files itself.

    :param source: a file in any storage that Airflow supports, such as ``/data/clip.mp4`` or
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


class LumaDownloadOperator(MaskingOperator, LumaBaseOperator):
    """
    Download results, or any files from the web, to any storage that Airflow supports: a disk, S3, GCS, Azure …

    The files are streamed. An incomplete file has a temporary name, and an interrupted download is resumed. A file that
    has already been downloaded is not fetched again.

    The address of a result expires: after 14 days at kie.ai, after an hour with Luma's own API. Pass what the modify
    task returned, ``urls=modify.output``: an expired address is then replaced by a new one, and the file is named after
    the job, ``<luma_task_id>.mp4``. If only an address is given, the file's name is taken from the address.

    Returns the list of files.

    For each job, the files are also pushed as the XCom ``luma_fetched_<luma_task_id>``, which tells the overview of all
    jobs that its result has been fetched. If only an address is given, its job is unknown, and nothing is pushed.

    The asset events of its ``outlets`` list these files. If ``urls`` come from Luma tasks directly upstream, the events
    also contain the jobs that made the files, their sources and prompts, and when the results expire. These are read
    from the XComs of the upstream tasks, where each job is found by its id or by the address of its result; this also
    works for mapped tasks.

    :param urls: what a modify task or a sensor returned, or an address, or a list of these (templated)
    :param destination: a path, or an address such as ``s3://my_conn@bucket/videos``: a folder or, for a single video, a
        file, recognised by its extension (templated)
    :param luma_conn_id: the connection of type Luma, of the account that made the videos (templated)
    :param overwrite: fetch and replace files that already exist
    :param sound_from: a video whose sound is added to the result, since Luma's own API returns silent videos: a file in
        any storage that Airflow supports, or a public address; or a list with one per file. Needs the extra ``media``
        of this package (templated)
    :raises LumaValidationError: a parameter is invalid
    """

    template_fields: Sequence[str] = ("urls", "destination", "luma_conn_id", "sound_from")
    ui_color = "#d7e9f5"

    #: The addresses of what was fetched, and the files written, for lineage.
    fetched: Sequence[str] = ()
    files: Sequence[str] = ()

    def __init__(
        self,
        *,
        urls: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]],
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
            check_file_address("sound_from", sound_from, or_public=True)
        if is_literal(destination):
            check_destination(destination)

    def execute(self, context: Context) -> list[str]:
        """Download one file after the other."""
        with pushed_failure(context):
            return self._download(context)

    def _download(self, context: Context) -> list[str]:
        try:
            destination = str(self.destination or "").strip()
            results = self._results()
            names = _names(results, destination)
            with self._sounds(len(results)) as sounds:
                files: list[str] = []
                for result, name, sound in zip(results, names, sounds, strict=True):
                    files.append(self._fetch(result, destination, name, sound))
                    self._push_job(context, result.luma_task_id, results, files)
        except (*PERMANENT, FileExistsError) as error:
            raise AirflowFailException(str(error)) from error
        if self.outlets:
            from airflow_provider_luma.asset_events import jobs_of_results, update_outlets

            jobs = jobs_of_results(self, context, list(zip(results, files, strict=True)))
            update_outlets(self, context, files, jobs)
        self.files = files
        return files

    @staticmethod
    def _push_job(
        context: Context, luma_task_id: str | None, results: Sequence[ResultFile], files: Sequence[str]
    ) -> None:
        """Show on the overview that a job's results have been fetched, once all that were asked for are written."""
        of_job = [number for number, result in enumerate(results) if result.luma_task_id == luma_task_id]
        if luma_task_id is not None and of_job[-1] == len(files) - 1:
            push_fetched(context, luma_task_id, [shown_address(files[number]) for number in of_job])

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Return the addresses and the files written for OpenLineage."""
        from airflow_provider_luma.lineage import task_lineage

        return task_lineage(self.fetched, self.files)

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

    def _results(self) -> list[ResultFile]:
        """
        Return the files to download.

        :raises LumaValidationError: ``urls`` is empty or invalid
        """
        from airflow_provider_luma.files.masking import mask_queries
        from airflow_provider_luma.files.results import read_results

        is_one = isinstance(self.urls, (str, bytes, Mapping)) or not isinstance(self.urls, Iterable)
        results = read_results([self.urls] if is_one and self.urls else items_of(self.urls or ()))
        self.fetched = [result.url for result in results]
        mask_queries(self.fetched)
        return results

    def _fetch(self, result: ResultFile, destination: str, name: str | None, sound: SoundSource | None) -> str:
        """
        Write one file; return its address.

        :param name: its name; None if the destination is the file
        :param sound: the sound to add to it, if any
        """
        file = self.hook.download(
            result.url,
            destination,
            name=name,
            overwrite=self.overwrite,
            luma_task_id=result.luma_task_id,
            service=result.service,
            sound_from=sound,
            before_writing=self.before_writing,
        )
        return str(file)

    def before_writing(self) -> None:
        """Let a subclass raise when a complete file is about to get its name: then no file is replaced."""


def _names(results: Sequence[ResultFile], destination: str) -> list[str | None]:
    """
    Return each file's name in the destination, the same one at every try; None if the destination is the file.

    :raises LumaValidationError: the destination is empty, or a single file for several results
    """
    from airflow_provider_luma.files.download import job_file_name, safe_name

    if not destination:
        raise LumaValidationError(None, "destination is empty: give a folder, or a file for a single address")
    if names_a_file(destination):
        if len(results) > 1:
            raise LumaValidationError(
                None, f"destination {destination!r} is one file, but urls holds {len(results)}: give a folder"
            )
        return [None]
    names: list[str] = []
    for url, luma_task_id, _, number in results:
        name = safe_name(url) if luma_task_id is None else job_file_name(url, luma_task_id, number)
        candidates = (name, *(f"{count}-{name}" for count in range(2, len(results) + 1)))
        names.append(next(free for free in candidates if free not in names))
    return [*names]
