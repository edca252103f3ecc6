# SPDX-License-Identifier: Apache-2.0
"""Names of services, devices and files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from towpath.model.kinds.base import FieldError, Kind, shown, text


@dataclass(frozen=True)
class Name(Kind):
    """What people call a service. Safe in a URL path and in a metric's label."""

    most: int = 253
    pattern = r"[A-Za-z0-9][A-Za-z0-9._:-]*"
    allowed = "letters, digits and . _ : - of which the first is a letter or digit"

    def parse(self, raw: object) -> str:
        """Return the name."""
        name = text(raw, self.allowed)
        if len(name) > self.most:
            raise FieldError(f"{shown(name)} is too long; allowed: {self.most} characters")
        if not re.fullmatch(self.pattern, name):
            raise FieldError(f"{shown(name)} is not a name; allowed: {self.allowed}")
        return name

    def schema(self) -> dict[str, Any]:
        """Return the pattern as JSON schema."""
        return {"type": "string", "pattern": f"^{self.pattern}$", "maxLength": self.most}


@dataclass(frozen=True)
class DeviceName(Kind):
    """A network device's name, by the kernel's ``dev_valid_name()``."""

    most = 15  # bytes: IFNAMSIZ without the terminating 0
    allowed = f"1 to {most} bytes, no white space, no / and no :, not . or .."

    def parse(self, raw: object) -> str:
        """Return the name, of a device that need not exist."""
        name = text(raw, self.allowed)
        is_long = len(name.encode(errors="surrogatepass")) > self.most
        if is_long or name in {"", ".", ".."} or re.search(r"[\s/:\0]", name):
            raise FieldError(f"{shown(name)} can't be a device's name; allowed: {self.allowed}")
        return name

    def schema(self) -> dict[str, Any]:
        """Return the length as JSON schema."""
        return {"type": "string", "minLength": 1, "maxLength": self.most}


@dataclass(frozen=True)
class AbsolutePath(Kind):
    """An absolute path. ``most``: longest in bytes, 0 = what the file system takes."""

    most: int = 0

    def parse(self, raw: object) -> Path:
        """Return the path, of something that need not exist."""
        path = str(raw) if isinstance(raw, Path) else text(raw, "an absolute path")
        if not path.startswith("/") or "\0" in path:
            raise FieldError(
                f"{shown(path)} is not an absolute path; allowed: one that starts with /"
            )
        if self.most and len(path.encode(errors="surrogatepass")) > self.most:
            raise FieldError(f"{shown(path)} is too long; allowed: {self.most} bytes")
        return Path(path)

    def schema(self) -> dict[str, Any]:
        """Return the pattern as JSON schema."""
        return {"type": "string", "pattern": "^/"}


@dataclass(frozen=True)
class AbsolutePaths(Kind):
    """A list of absolute paths."""

    allowed = "a list of absolute paths"

    def parse(self, raw: object) -> tuple[Path, ...]:
        """Return the paths in the order given; one by itself is a list too."""
        items = raw if isinstance(raw, list | tuple) else [raw]
        return tuple(AbsolutePath().parse(item) for item in items)

    def schema(self) -> dict[str, Any]:
        """Return a list of texts as JSON schema."""
        return {"type": "array", "items": {"type": "string"}, "description": self.allowed}
