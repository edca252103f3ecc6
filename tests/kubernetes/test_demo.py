# SPDX-License-Identifier: Apache-2.0
"""The demo shows what it says, and leaves nothing, also when it is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tools.kubernetes import image, state

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DEMO = (sys.executable, "-m", "tools.kubernetes.demo")
SECONDS = 300
SHOWN = """
set -e
kubectl get nodes
kubectl exec client -- curl -s http://$(kubectl get service web -o 'jsonpath={.spec.clusterIP}')
node one towpath service list
node two towpath status
"""

pytestmark = pytest.mark.thorough


def left() -> set[Path]:
    """What runs have on disk, and their control groups."""
    places = [state.PARENT, *state.CGROUPS.glob("*"), *state.own_cgroups()]
    return {found for each in places for found in each.glob("towpath-kube-*")}


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    image.kept_image()
    before = left()
    yield
    assert left() == before


def test_what_it_offers_works() -> None:
    """A command in the place of the shell; its exit code is the demo's."""
    ran = subprocess.run(
        [*DEMO, "--", "sh", "-c", f"{SHOWN}\nexit 3"],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert ran.returncode == 3, ran.stderr
    for each in ("one ", "two ", "web-", " web:80:cluster:", "kubernetes"):
        assert each in ran.stdout, ran.stdout
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("when", "number"),
    [
        ("a control plane and two nodes", signal.SIGINT),
        ("Services served by towpath", signal.SIGTERM),
    ],
)
def test_it_can_be_interrupted(when: str, number: signal.Signals) -> None:
    """By a terminal, which tells all of its processes, or by who has started it."""
    with subprocess.Popen(
        [*DEMO, "--", "true"], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as demo:
        assert demo.stderr is not None
        said = []
        for line in demo.stderr:
            said.append(line)
            if when in line:
                break
        if number == signal.SIGINT:
            os.killpg(demo.pid, number)
        else:
            demo.send_signal(number)
        said += demo.stderr
        assert demo.wait(SECONDS) == 130, said
    assert said[-1] == "interrupted; nothing of it is left\n", said
    assert "Traceback" not in "".join(said)
