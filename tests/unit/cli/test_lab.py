# SPDX-License-Identifier: Apache-2.0
"""What `towpath lab --kubernetes` says where it can't be had."""

from __future__ import annotations

from typing import TYPE_CHECKING

from click.testing import CliRunner

import towpath.cli.lab as module
from towpath.cli.main import cli

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_kubernetes_needs_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Since what builds it isn't installed: where it is to be had is told."""
    monkeypatch.setattr(module, "CHECKOUT", tmp_path)
    ran = CliRunner().invoke(cli, ["lab", "--kubernetes"])
    assert ran.exit_code == 1
    assert "in a checkout `make kubernetes-demo` does it" in ran.stderr


def test_kubernetes_goes_with_no_command() -> None:
    """It has a shell of its own."""
    ran = CliRunner().invoke(cli, ["lab", "--kubernetes", "up"])
    assert ran.exit_code == 2
    assert "--kubernetes is no option of a command" in ran.stderr
