# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a configuration, and where."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from towpath.errors import Error
from towpath.printable import printable

_MAX_QUOTED = 60  # characters of a field's name that was made up

FieldPath = tuple[str | int, ...]


def field_path(path: FieldPath) -> str:
    """``("services", 1, "port")`` as a person writes it: ``services[1].port``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            shown = printable(part if len(part) <= _MAX_QUOTED else f"{part[:_MAX_QUOTED]}...")
            text += f".{shown}" if text else shown
    return text


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. ``str()`` gives ``file:line: field: message``."""

    message: str
    """What was wrong and what is allowed."""
    field: str = ""
    """Such as ``services[1].backends[0].weight``; empty: the input as a whole."""
    file: str | None = None
    """None: the input did not come from a file."""
    line: int | None = None
    """Counted from 1."""

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line) if part is not None)
        return ": ".join(part for part in (place, self.field, self.message) if part)


MAX_PROBLEMS = 100
"""So many are told of one input. Who sends thousands of services that are all wrong is told of the
first ones, and the rest isn't looked at."""

MORE = Problem(f"that is not all: only the first {MAX_PROBLEMS} problems are told")


def bounded(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Return the first of some problems, and that there are more if there are."""
    found = tuple(islice(problems, MAX_PROBLEMS + 1))
    return found if len(found) <= MAX_PROBLEMS else (*found[:MAX_PROBLEMS], MORE)


class ConfigError(Error, ValueError):
    """Input refused whole. ``problems`` has every problem found, in input order.

    If there are more than MAX_PROBLEMS, the first of them.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))
