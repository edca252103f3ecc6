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


class ObjectPath(Kind):
    """An object of a Kubernetes namespace."""

    allowed = "NAMESPACE/NAME, such as kube-system/towpath-pools"
    pattern = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?/[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"

    def parse(self, raw: object) -> str:
        """Return both."""
        path = text(raw, self.allowed)
        if not re.fullmatch(self.pattern, path):
            raise FieldError(f"{shown(path)} names no object; allowed: {self.allowed}")
        return path

    def schema(self) -> dict[str, Any]:
        """Return the pattern as JSON schema."""
        return {"type": "string", "pattern": f"^{self.pattern}$", "description": self.allowed}


_LABEL = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"


class QualifiedName(Kind):
    """The name of a label, or of a class: with a prefix before it or without."""

    allowed = "PREFIX/NAME, such as example.org/edge"
    pattern = rf"([a-z0-9]([-a-z0-9.]{{0,251}}[a-z0-9])?/)?{_LABEL}"

    def parse(self, raw: object) -> str:
        """Return the name."""
        name = text(raw, self.allowed)
        if not re.fullmatch(self.pattern, name):
            raise FieldError(f"{shown(name)} is no such name; allowed: {self.allowed}")
        return name

    def schema(self) -> dict[str, Any]:
        """Return the pattern as JSON schema."""
        return {"type": "string", "pattern": f"^{self.pattern}$", "description": self.allowed}


class Labels(Kind):
    """Labels that an object must have, each with its value."""

    allowed = "labels with their values, such as {tier: public}"

    def parse(self, raw: object) -> tuple[tuple[str, str], ...]:
        """Return names and values, sorted."""
        if isinstance(raw, tuple):
            raw = dict(raw)
        if not isinstance(raw, dict):
            raise FieldError(f"{shown(raw)} is no mapping; allowed: {self.allowed}")
        for name, value in raw.items():
            QualifiedName().parse(name)
            if not isinstance(value, str) or not re.fullmatch(rf"({_LABEL})?", value):
                raise FieldError(
                    f"{shown(value)} is no value of a label; allowed: up to 63 characters; "
                    "numbers, true and false in quotes"
                )
        return tuple(sorted(raw.items()))

    def schema(self) -> dict[str, Any]:
        """Return a mapping of texts as JSON schema."""
        values = {"type": "string", "maxLength": 63}
        return {"type": "object", "additionalProperties": values, "description": self.allowed}


class Namespaces(Kind):
    """Kubernetes namespaces."""

    allowed = "a list of namespaces, such as [web, shop]"
    pattern = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"

    def parse(self, raw: object) -> tuple[str, ...]:
        """Return their names."""
        items = raw if isinstance(raw, list | tuple) else [raw]
        if not items:
            raise FieldError(f"an empty list has no namespace; allowed: {self.allowed}")
        for each in items:
            if not isinstance(each, str) or not re.fullmatch(self.pattern, each):
                raise FieldError(f"{shown(each)} is no namespace; allowed: {self.allowed}")
        return tuple(items)

    def schema(self) -> dict[str, Any]:
        """Return a list of names as JSON schema."""
        item = {"type": "string", "pattern": f"^{self.pattern}$"}
        return {"type": "array", "items": item, "minItems": 1, "description": self.allowed}
