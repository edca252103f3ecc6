# SPDX-License-Identifier: Apache-2.0
"""Where a capture is written to: a file that always ends with a whole block, or a pipe."""

from __future__ import annotations

import errno
import mmap
import os
import sys
import time
from pathlib import Path

from towpath.closeable import Closeable
from towpath.core.recorder.pcapng import whole
from towpath.errors import Error

STDOUT = Path("-")
_CHECK_SECONDS = 1.0


class CaptureFileError(Error):
    """Nothing more can be written; the message says what there is."""


class CaptureFile(Closeable):
    """A pcapng file, ``-`` for standard output. What was there before is replaced.

    A context manager. CaptureFileError: it can't be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.written = 0
        self._checked = time.monotonic()
        self._is_file = path != STDOUT
        try:
            self._fd = (
                os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
                if self._is_file
                else os.dup(sys.stdout.fileno())
            )
        except OSError as error:
            raise CaptureFileError(f"{path}: {error.strerror}") from error

    def write(self, data: bytes | memoryview) -> None:
        """Write all of it.

        CaptureFileError: there is no room, the file was deleted, or the pipe's reader has
        gone. What is then in the file are whole blocks.
        """
        rest = memoryview(data)
        try:
            while rest:
                size = os.write(self._fd, rest)
                self.written += size
                rest = rest[size:]
        except OSError as error:
            self._cut()
            raise CaptureFileError(self._failure(error)) from error
        if self._is_file and time.monotonic() > self._checked + _CHECK_SECONDS:
            self.check()

    def check(self) -> None:
        """CaptureFileError: the file was deleted; what is written is lost with it."""
        self._checked = time.monotonic()
        if self._is_file and not os.fstat(self._fd).st_nlink:
            raise CaptureFileError(f"{self.path} was deleted while it was written to")

    def _failure(self, error: OSError) -> str:
        if error.errno == errno.EPIPE:
            return "whoever read from the pipe has gone"
        return (
            f"{self.path}: {error.strerror}; what was written before is there, {self.written} bytes"
        )

    def _cut(self) -> None:
        """Take away a block that was written in part."""
        if not self._is_file or not os.fstat(self._fd).st_size:
            return
        with mmap.mmap(self._fd, 0, prot=mmap.PROT_READ) as there:
            end = whole(memoryview(there))
        os.ftruncate(self._fd, end)
        self.written = end

    def close(self) -> None:
        """Close it. Twice is once."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
