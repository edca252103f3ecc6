# SPDX-License-Identifier: Apache-2.0
"""Short ways to say what comes of a text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from towpath.core.imports.imported import NoteKind
from towpath.core.imports.ipvs import import_ipvsadm
from towpath.core.imports.katran import import_katran
from towpath.core.imports.keepalived import import_keepalived
from towpath.model import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from towpath.core.imports.imported import Imported
    from towpath.model import Service


def ipvsadm(text: str) -> Imported:
    """Commands of ipvsadm."""
    return import_ipvsadm(text, "table")


def katran(text: str) -> Imported:
    """A script or a listing."""
    return import_katran(text, "setup.sh")


def keepalived(
    text: str, files: Mapping[str, str] | None = None, config_id: str = "lb1"
) -> Imported:
    """A keepalived.conf; ``files`` are those that it can include, by their whole names."""

    def include(pattern: str, including: str) -> list[tuple[str, str]]:
        del including
        return [(name, text) for name, text in (files or {}).items() if name == pattern]

    return import_keepalived(text, "conf", config_id=config_id, include=include)


def only(imported: Imported) -> Service:
    """The one service that there is."""
    (service,) = imported.services
    return service


def said(imported: Imported, kind: NoteKind) -> list[str]:
    """Notes of a kind, as LINE: WHAT."""
    return [f"{note.line}: {note.what}" for note in imported.notes if note.kind is kind]


def beside(imported: Imported) -> list[str]:
    """What is said beside services, as LINE: WHAT."""
    return [f"{note.line}: {note.what}" for note in imported.notes if note.service is not None]


def left_out(imported: Imported) -> list[str]:
    """What isn't there, as LINE: WHAT: WHY."""
    notes = [note for note in imported.notes if note.kind is NoteKind.LEFT_OUT]
    return [f"{note.line}: {note.what}: {note.why}" for note in notes]


def refused(read: Callable[[str], Imported], text: str) -> list[str]:
    """What is said of a text that isn't taken."""
    try:
        read(text)
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return []
