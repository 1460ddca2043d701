# SPDX-License-Identifier: Apache-2.0
"""HTTP clients of the simulator: what those of both services share, and that of Luma's own API."""

from __future__ import annotations

import copy
from typing import Any

import httpx

from airflow_provider_luma.simulator import Simulator
from tests.conftest import until


def changed(body: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a body with changes at paths such as ``video.edit.strength``; an Ellipsis removes the field."""
    body = copy.deepcopy(body)
    for path, value in changes.items():
        *parents, name = path.split(".")
        place = body
        for parent in parents:
            place = place.setdefault(parent, {})
        if value is ...:
            place.pop(name, None)
        else:
            place[name] = value
    return body


class SimulatorClient(httpx.Client):
    """HTTP client of a simulator, with its API key."""

    def __init__(self, luma: Simulator, base_url: str) -> None:
        super().__init__(
            base_url=base_url,
            headers={"Authorization": f"Bearer {luma.settings.api_key}"},
            timeout=60,
            verify=False,
        )
        self.luma = luma
        #: A client without the API key.
        self.anonymous = httpx.Client(timeout=60, verify=False)

    def close(self) -> None:
        self.anonymous.close()
        super().close()


class LumaClient(SimulatorClient):
    """Client of Luma's own API, at ``/v1``."""

    def __init__(self, luma: Simulator) -> None:
        super().__init__(luma, luma.luma_base_url)

    @property
    def body(self) -> dict[str, Any]:
        return {
            "model": "ray-3.2",
            "type": "video_edit",
            "prompt": "Make it snow",
            "source": {"url": self.luma.sample_url, "media_type": "video/mp4"},
            "video": {"resolution": "720p", "edit": {"auto_controls": True}},
            "user_id": "af-3f9c",
        }

    def submit(self, **changes: Any) -> httpx.Response:
        """Submit a job, with dots in the names of nested fields written as two underscores."""
        paths = {name.replace("__", "."): value for name, value in changes.items()}
        return self.post("/generations", json=changed(self.body, paths))

    def submit_and_get_id(self, **changes: Any) -> str:
        response = self.submit(**changes)
        assert response.status_code == 201, response.text
        return response.json()["id"]

    def status(self, generation_id: str) -> httpx.Response:
        return self.get(f"/generations/{generation_id}")

    def wait_for_end(self, generation_id: str) -> dict[str, Any]:
        """Poll the status until the job has ended, and return it."""

        def ended() -> dict[str, Any] | None:
            content = self.status(generation_id).json()
            return content if content["state"] in ("completed", "failed") else None

        return until(ended)

    def result_url(self, **changes: Any) -> str:
        output = self.wait_for_end(self.submit_and_get_id(**changes))["output"]
        assert [entry["type"] for entry in output] == ["video"]
        return output[0]["url"]

    def create_file(self, size: int, **fields: Any) -> dict[str, Any]:
        response = self.post("/files", json={"mime_type": "video/mp4", "size_bytes": size, **fields})
        assert response.status_code == 201, response.text
        return response.json()

    def put_content(self, upload: dict[str, Any], content: bytes, **changes: Any) -> httpx.Response:
        """Put content where an upload says, without the key."""
        arguments = {"headers": upload["headers"], "content": content, **changes}
        return self.anonymous.request("PUT", upload["url"], **arguments)

    def upload(self, content: bytes, **fields: Any) -> str:
        """Upload a file, complete it, and return its id."""
        created = self.create_file(len(content), **fields)
        assert self.put_content(created["upload"], content).status_code == 200
        assert self.post(f"/files/{created['id']}/complete").status_code == 200
        return created["id"]

    def wait_for_file(self, file_id: str) -> dict[str, Any]:
        """Poll a file until it is no longer pending."""
        return until(lambda: (file := self.get(f"/files/{file_id}").json())["state"] != "pending" and file)
