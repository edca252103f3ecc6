# SPDX-License-Identifier: Apache-2.0
"""How imported services are printed: YAML for a configuration file, with notes beside it."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING, Any

import click

from towpath.cli.output import say
from towpath.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from towpath.core.imports.imported import Imported, Note
    from towpath.model import Health, Service

LEFT_OUT = 3
"""Exit code: services are missing."""
_WIDTH = 100


def show(imported: Imported, command: str, form: str) -> None:
    """Print services and notes; ends the command with LEFT_OUT if there are services missing."""
    from towpath.api.codec import plain
    from towpath.core.imports.imported import NoteKind

    if form == "json":
        say(json.dumps(plain(imported), indent=2))
    else:
        say("\n".join(_yaml(imported, command)))
        for note in imported.notes:
            if note.kind in {NoteKind.LEFT_OUT, NoteKind.ELSEWHERE}:
                say(_line(note, NoteKind.LEFT_OUT), error=True)
    missing = sum(1 for note in imported.notes if note.kind is NoteKind.LEFT_OUT)
    if missing:
        there = len(imported.services)
        say(f"services: {there} printed, {missing} left out", error=True)
        raise click.exceptions.Exit(LEFT_OUT)


def _line(note: Note, left_out: str) -> str:
    how = "left out" if note.kind == left_out else "not carried over"
    return ": ".join(filter(None, (note.place, note.what, how, note.why)))


def _yaml(imported: Imported, command: str) -> Iterator[str]:
    from towpath.core.imports.imported import NoteKind

    yield f"# {printable(command)}"
    for note in imported.notes:
        if note.service is None and note.kind in {NoteKind.DIFFERS, NoteKind.NEEDS}:
            yield from _comment(note, "")
    beside: dict[str, list[Note]] = {}
    for note in imported.notes:
        if note.service is not None:
            beside.setdefault(note.service, []).append(note)
    yield "services:" if imported.services else "services: []"
    for service in imported.services:
        for note in beside.get(service.name, ()):
            yield from _comment(note, "  ")
        yield from _item(written(service))


def _comment(note: Note, indent: str) -> Iterator[str]:
    text = f"{note.what}: {note.why}" + (f" ({note.place})" if note.place else "")
    yield from textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}#   ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _item(data: dict[str, Any]) -> Iterator[str]:
    import yaml

    text = yaml.safe_dump([data], sort_keys=False, allow_unicode=False, width=_WIDTH)
    return (f"  {line}" for line in text.splitlines())


# ---- A service as people write it ----------------------------------------------------------------


def written(service: Service) -> dict[str, Any]:
    """Return a service without what it has by default."""
    from towpath.api.codec import plain
    from towpath.model.kinds.durations import written as duration

    data = _changed(service)
    if service.affinity is not None:
        data["affinity"] = duration(service.affinity.timeout)
    if service.flow_timeout is not None:
        data["flow_timeout"] = duration(service.flow_timeout)
    if service.health is not None:
        data["health"] = _health(service.health)
    if service.quic is not None:
        data["quic"] = _changed(service.quic)
    if service.backends:
        backends = map(_changed, service.backends)
        data["backends"] = [each["address"] if len(each) == 1 else each for each in backends]
    plain_data: dict[str, Any] = plain(data)
    return plain_data


def _health(health: Health) -> dict[str, Any]:
    data = _changed(health)
    for name in ("interval", "timeout"):
        if name in data and float(data[name]).is_integer():
            data[name] = int(data[name])
    if health.status.isdigit():
        data["status"] = int(health.status)
    return data


def _changed(value: Any) -> dict[str, Any]:
    """The fields that aren't as they are by default, in their order."""
    fields: Iterable[Any] = value.__dataclass_fields__.values()
    given = {each.name: getattr(value, each.name) for each in fields}
    defaults = {each.name: each.default for each in value.__dataclass_fields__.values()}
    return {name: each for name, each in given.items() if each != defaults[name]}
