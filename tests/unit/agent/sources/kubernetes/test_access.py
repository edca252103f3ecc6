# SPDX-License-Identifier: Apache-2.0
"""Where the API server is, and by what credentials."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from towpath.agent.sources.kubernetes.access import AccessError, find_place, in_pod, read_kubeconfig
from towpath.model import ConfigError, parse_config

if TYPE_CHECKING:
    from pathlib import Path

CONFIG: dict[str, Any] = {
    "clusters": [
        {"name": "c", "cluster": {"server": "https://192.0.2.1:6443/", "tls-server-name": "k"}},
        {"name": "d", "cluster": {"server": "https://192.0.2.2", "certificate-authority": "ca"}},
    ],
    "users": [
        {"name": "u", "user": {"token": "t"}},
        {"name": "v", "user": {"tokenFile": "token", "client-key-data": "a2V5"}},
        {"name": "w", "user": {"exec": {"command": "./plugin", "args": ["a"], "env": None}}},
    ],
    "contexts": [
        {"name": "one", "context": {"cluster": "c", "user": "u", "namespace": "n"}},
        {"name": "two", "context": {"cluster": "d", "user": "v"}},
        {"name": "three", "context": {"cluster": "d", "user": "w"}},
        {"name": "lost", "context": {"cluster": "gone", "user": "u"}},
        {"name": "nobody", "context": {"cluster": "c"}},
    ],
    "current-context": "one",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A kubeconfig."""
    made = tmp_path / "config"
    made.write_text(yaml.safe_dump(CONFIG))
    return made


def test_the_current_context(path: Path) -> None:
    """Unless another is named; the server may be another too."""
    found = read_kubeconfig(path, None)
    assert (found.server, found.server_name, found.token, found.namespace) == (
        "https://192.0.2.1:6443",
        "k",
        "t",
        "n",
    )
    assert read_kubeconfig(path, None, "https://[2001:db8::1]").server == "https://[2001:db8::1]"
    assert read_kubeconfig(path, "nobody").token is None


def test_files_are_beside_it(path: Path) -> None:
    """What is in it is decoded."""
    found = read_kubeconfig(path, "two")
    assert found.authority == path.parent / "ca"
    assert found.token_file == path.parent / "token"
    assert found.key == base64.b64decode("a2V5") == b"key"


def test_a_plugin(path: Path) -> None:
    """With a path that begins at the file."""
    found = read_kubeconfig(path, "three").plugin
    assert found is not None
    assert found.command == str(path.parent / "plugin")
    assert (found.arguments, found.environment, found.cluster) == (("a",), {}, None)


@pytest.mark.parametrize(
    ("text", "context", "why"),
    [
        (None, "four", "there is no context 'four'; there are: one, two, three, lost, nobody"),
        (None, "lost", "there is no cluster 'gone'; there are: c, d"),
        ("[]", None, "is no kubeconfig: not a mapping"),
        ("{clusters: 1}", None, "there is no context"),
        ("a: [", None, "while parsing"),
        ("contexts: [{}]", "x", "is no kubeconfig: KeyError"),
    ],
)
def test_what_makes_no_sense(path: Path, text: str | None, context: str | None, why: str) -> None:
    """Is told with the file's name."""
    if text is not None:
        path.write_text(text)
    with pytest.raises(AccessError) as caught:
        read_kubeconfig(path, context)
    assert str(caught.value).startswith(str(path))
    assert why in str(caught.value)


def test_a_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is given; an address of IPv6 in brackets."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(AccessError, match=r"this is no pod; name kubernetes\.kubeconfig"):
        in_pod(at=tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd96::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    with pytest.raises(AccessError, match="token isn't there"):
        in_pod(at=tmp_path)
    (tmp_path / "token").write_text("t")
    found = in_pod(at=tmp_path)
    assert (found.server, found.authority) == ("https://[fd96::1]:6443", None)
    assert found.token_file == tmp_path / "token"
    assert in_pod("https://192.0.2.1", tmp_path).server == "https://192.0.2.1"


def config(section: str) -> Any:
    """The section of a configuration."""
    return parse_config(f"kubernetes: {section}", "towpath.yaml").sections["kubernetes"]


def test_the_section(path: Path) -> None:
    """All of it has a default."""
    found = config("{}")
    assert (found.kubeconfig, found.external_ips, found.lost_share) == (None, None, 50)
    found = config(f"{{kubeconfig: {path}, context: two, external_ips: [198.51.100.0/24]}}")
    assert find_place(found).server == "https://192.0.2.2"
    assert [str(each) for each in found.external_ips] == ["198.51.100.0/24"]


@pytest.mark.parametrize(
    ("section", "why"),
    [
        ("{server: 192.0.2.1}", "'192.0.2.1' is no API server; allowed: https://HOST[:PORT]"),
        ("{server: 'https://h:99999'}", "is no API server"),
        ("{node: ''}", "'' is no name; allowed: 1 to 253 characters without white space"),
        ("{node: a b}", "is no name"),
        ("{kubeconfig: config}", "is not an absolute path"),
        ("{lost_share: 0}", "0 is out of range; allowed: 1 to 100"),
        ("{external_ips: []}", "an empty list has no address at all"),
        ("{external_ip: 192.0.2.1}", "unknown key; did you mean external_ips?"),
    ],
)
def test_a_wrong_section(section: str, why: str) -> None:
    """Is refused with its line, and what is allowed."""
    with pytest.raises(ConfigError) as caught:
        config(section)
    assert why in str(caught.value)
    assert str(caught.value).startswith("towpath.yaml:1: kubernetes.")
