# SPDX-License-Identifier: Apache-2.0
"""What names clusters and their objects."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from towpath.model.kinds.base import FieldError, Kind, shown, text


class ObjectName(Kind):
    """The name of an object, a context or a value of a label."""

    most = 253
    allowed = "1 to 253 characters without white space"

    def parse(self, raw: object) -> str:
        """Return the name."""
        name = text(raw, self.allowed)
        if not 1 <= len(name) <= self.most or re.search(r"\s", name) or not name.isprintable():
            raise FieldError(f"{shown(name)} is no name; allowed: {self.allowed}")
        return name

    def schema(self) -> dict[str, Any]:
        """Return the length as JSON schema."""
        return {"type": "string", "minLength": 1, "maxLength": self.most}


class ServerUrl(Kind):
    """The address of an API server."""

    allowed = "https://HOST[:PORT], such as https://192.0.2.1:6443"

    def parse(self, raw: object) -> str:
        """Return the URL without a slash at its end."""
        url = text(raw, self.allowed)
        try:
            parts = urlsplit(url)
            right = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
        except ValueError:
            right = False
        if not right or re.search(r"\s", url):
            raise FieldError(f"{shown(url)} is no API server; allowed: {self.allowed}")
        return url.rstrip("/")

    def schema(self) -> dict[str, Any]:
        """Return a URL as JSON schema."""
        return {"type": "string", "format": "uri", "description": self.allowed}
