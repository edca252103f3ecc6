# SPDX-License-Identifier: Apache-2.0
"""Short texts beside pins: what the next process has to know of what the kernel has.

A BPF file system has no files to write to, but symbolic links, whose targets are any text. They
are there for as long as the pins are, and as the settings that they are about: until the machine
is started anew.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from towpath.kernel.errors import KernelError

if TYPE_CHECKING:
    from pathlib import Path


class Notes:
    """Texts by name in a directory, which is made when it is needed. None: they are kept nowhere.

    A name may have no dot and no slash.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._texts = dict(_read(directory)) if directory is not None else {}

    @property
    def outlive(self) -> bool:
        """Whether they outlive the process."""
        return self._directory is not None

    @property
    def texts(self) -> dict[str, str]:
        """All of them, a copy."""
        return dict(self._texts)

    def put(self, name: str, text: str) -> None:
        """Note something, in place of what was noted by that name. KernelError."""
        if self._texts.get(name) == text:
            return
        self._texts[name] = text
        self._write(name)

    def drop(self, name: str) -> None:
        """Note it no longer. None noted is fine. KernelError."""
        if self._texts.pop(name, None) is not None and self._directory is not None:
            try:
                (self._directory / name).unlink(missing_ok=True)
            except OSError as error:
                raise KernelError(f"remove {self._directory / name}", error.errno or 0) from error
            if not self._texts:
                with suppress(OSError):  # gone already
                    self._directory.rmdir()

    def missing(self) -> list[str]:
        """The names of those that somebody else has removed."""
        if self._directory is None:
            return []
        return [name for name in self._texts if not os.path.lexists(self._directory / name)]

    def write_again(self) -> None:
        """Write those that are missing. KernelError."""
        for name in self.missing():
            self._write(name)

    def _write(self, name: str) -> None:
        if self._directory is None:
            return
        path = self._directory / name
        # In place of an old one: never neither.
        made = path.with_name(f"{name}-new")
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            made.unlink(missing_ok=True)
            made.symlink_to(self._texts[name])
            made.rename(path)
        except OSError as error:
            raise KernelError(f"note {self._texts[name]} at {path}", error.errno or 0) from error


def _read(directory: Path) -> list[tuple[str, str]]:
    try:
        found = sorted(directory.iterdir())
    except FileNotFoundError:
        return []
    # What a process that was killed has left half done is none.
    return [(each.name, str(each.readlink())) for each in found if not each.name.endswith("-new")]
