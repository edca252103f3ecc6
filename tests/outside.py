# SPDX-License-Identifier: Apache-2.0
"""Which programs a command runs, as far as its words tell, and whether they are declared."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.kubernetes import binaries

from towpath.doctor.outside import declared, is_program

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence


def declared_for(users: Collection[str]) -> set[str]:
    """The programs that are declared for one of these."""
    needs = [need for need in declared() if set(need.users) & set(users)]
    return {way.rpartition("/")[2] for need in needs for way in need.ways if is_program(way)}


DECLARED = declared_for(["build", "run", "demo", "bench", "test", "kernels", "kubernetes", "bare"])
ESSENTIAL = {
    *("chmod", "cmp", "dirname", "hostname", "ln", "mkdir", "pivot_root", "rm", "rmdir", "sort"),
    *("make", "tr"),
}
"""What scripts use besides: programs of packages that no Debian is without, and make."""
UNKNOWN = "?"
"""Stands for a word that is known only when the command runs."""

# The shell's own, and words that a command follows.
_BUILT_IN = {
    *("!", ".", ":", "[", "break", "case", "cd", "continue", "done", "echo", "esac", "eval"),
    *("exit", "export", "fi", "for", "kill", "printf", "read", "return", "set", "shift", "test"),
    *("trap", "umask", "unset", "wait", "{", "}"),
}
_FOLLOWED = {"command", "do", "elif", "else", "exec", "if", "then", "until", "while"}
_ASSIGNMENT = re.compile(r"\w+=")
_BETWEEN = re.compile(r"\|\||&&|[;|\n()]|(?<![>&])&(?!>)")
_COMMENT = re.compile(r"^\s*#.*$", re.MULTILINE)
_QUOTED = re.compile(r"'[^']*'|\"(?:[^\"$]|\$(?!\())*\"")
_PARAMETER = re.compile(r"\"\$[\w@*]\"")
_SUBSTITUTED = re.compile(r"\"(\$\([^()\"]*\))[^\"$]*\"")
_HERE = re.compile(r"<<-?\s*'?(\w+)'?\n.*?^\s*\1$", re.DOTALL | re.MULTILINE)


def programs(words: Sequence[str]) -> Iterator[str]:
    """The program that a command starts, and those which that starts in turn."""
    if not words:
        return
    name = words[0].rpartition("/")[2]
    yield words[0]
    rest = list(words[1:])
    if name == "sh" and rest and rest[0].startswith("-") and rest[0].endswith("c"):
        yield from shell_programs(rest[1])
    elif name == "ip" and rest[:2] == ["netns", "exec"]:
        yield from programs(rest[3:])
    elif name in {"unshare", "setpriv", "nsenter"} and "--" in rest:
        yield from programs(rest[rest.index("--") + 1 :])


def shell_programs(text: str) -> Iterator[str]:
    """The programs in a shell script, those in functions and substitutions among them."""
    text = _COMMENT.sub("", _HERE.sub("", text)).replace("\\\n", " ")
    text = _SUBSTITUTED.sub(r"\1", _PARAMETER.sub("?", text))
    quoted = _QUOTED.sub("?", text)
    for part in _BETWEEN.split(quoted.replace("$((", "").replace("`", "\n")):
        words = shlex.split(part.replace('"', "").replace("'", ""), comments=True)
        while words and (words[0] in _FOLLOWED or _ASSIGNMENT.match(words[0])):
            words = words[1:]
        if words and words[0] not in _BUILT_IN and re.match(r"[\w./-]+$", words[0]):
            yield from programs(words)


def undeclared(
    words: Sequence[str], own: Sequence[Path], users: Collection[str] | None = None
) -> list[str]:
    """Which programs of a command neither are declared nor lie in one of these directories.

    ``users``: declared for one of these; None: for whomever.
    """
    names = DECLARED if users is None else declared_for(users)
    return [
        each
        for each in programs(words)
        if each != UNKNOWN
        and each.rpartition("/")[2] not in names
        and not any(Path(each).absolute().is_relative_to(place) for place in own if "/" in each)
    ]


class Watch:
    """Takes note of the undeclared programs that this process starts."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._own = [Path(sys.prefix), Path.cwd(), Path(tempfile.gettempdir()), binaries.cache()]

    def begin(self) -> None:
        """From now on, for good: there is no way to take an audit hook away."""
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in {"subprocess.Popen", "os.posix_spawn"}:
            return
        given = arguments[1]
        words = [given] if isinstance(given, (str, bytes, os.PathLike)) else list(given)
        # What is not there fails by itself, and some tests want it to.
        self.seen += filter(shutil.which, undeclared([os.fsdecode(w) for w in words], self._own))
