# SPDX-License-Identifier: Apache-2.0
"""Documents as the API answers with them."""

from typing import Any

from fastapi.responses import JSONResponse, Response

from towpath.api.codec import plain


def answer(document: Any, status: int = 200) -> Response:
    """A document as JSON. FastAPI's own way would check it once more."""
    return JSONResponse(plain(document), status)
