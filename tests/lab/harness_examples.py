# SPDX-License-Identifier: Apache-2.0
"""Towpath with one of the examples registered: one line more, and nothing else changed."""

from __future__ import annotations

from pathlib import Path

import towpath

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "tests" / "examples"
INSTALLED = Path(towpath.__file__).parent

# The lines, and what follows in the file as it is.
PACKETS = (
    'Capability("packets", "tests.examples.packets.{layer}", "Packets counted at tc ingress.")'
)
DIRECTORY = 'Origin("directory", "tests.examples.directory.{layer}", "the directory")'
ENDS = {"Capability": ")\n\nORIGINS", "Origin": ")\n\n\ndef sections"}


def with_line(directory: Path, line: str, *objects: Path) -> str:
    """Return the PYTHONPATH of a Towpath that has the line, and the compiled objects."""
    package = directory / "towpath"
    (package / "objects").mkdir(parents=True)
    for path in INSTALLED.iterdir():
        if path.name not in {"capabilities.py", "objects", "__pycache__"}:
            (package / path.name).symlink_to(path)
    for path in (*(INSTALLED / "objects").iterdir(), *objects):
        (package / "objects" / path.name).symlink_to(path)
    text = (INSTALLED / "capabilities.py").read_text()
    before, end, after = text.partition(ENDS[line.partition("(")[0]])
    (package / "capabilities.py").write_text(f"{before}    {line},\n{end}{after}")
    return f"{directory}:{ROOT}"
