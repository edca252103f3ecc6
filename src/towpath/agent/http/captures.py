# SPDX-License-Identifier: Apache-2.0
"""The part of the API that captures packets."""

from typing import Annotated

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import PlainValidator

from towpath.agent.http.response import answer
from towpath.agent.recorder.captures import CaptureResponse, Captures
from towpath.api.captures import MEDIA_TYPE, CaptureEntry
from towpath.model.capture import Capture, parse_capture

Checked = Annotated[Capture, PlainValidator(parse_capture, json_schema_input_type=Capture)]


def captures(running: Captures) -> APIRouter:
    """Captures of what the load balancer sees and does."""
    router = APIRouter(prefix="/captures", tags=["captures"])

    @router.post("", response_class=Response, responses={200: {"content": {MEDIA_TYPE: {}}}})
    async def start(capture: Checked) -> Response:
        """Begin a capture. The answer is its file, pcapng, which goes on until it ends."""
        return CaptureResponse(await running.start(capture))

    @router.get("", response_model=tuple[CaptureEntry, ...])
    async def list_captures() -> Response:
        """Captures that go on, and the last ones that have ended."""
        return answer(running.entries())

    @router.get("/{number}", response_model=CaptureEntry)
    async def get_capture(number: int) -> Response:
        """How far a capture has come."""
        return answer(running.entry(number))

    @router.delete("/{number}", response_model=CaptureEntry)
    async def stop(number: int) -> Response:
        """Have a capture end: whoever reads it gets the rest of the file."""
        return answer(running.stop(number))

    return router
