# SPDX-License-Identifier: Apache-2.0
"""Where the API server is, and by what credentials: a kubeconfig's, or those that a pod has.

All of it may be replaced while the agent runs: tokens and certificates are short-lived. Files are
read again when they are others than before, tokens at least once a minute, and all at once when
the API server says that it doesn't know us (401). An exec plugin is run again when what it gave
expires, and then too.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import ssl
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from towpath.agent.errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from towpath.model.sources.kubernetes import Section

log = logging.getLogger(__name__)

POD = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod has what its service account is given."""
TOKEN_SECONDS = 60.0
EXEC_SECONDS = 60.0
"""So long a plugin may take, which may ask for something over the network."""
_EARLY_SECONDS = 10.0


class AccessError(AgentError):
    """The credentials can't be read, or make no sense: what, where."""


@dataclass(frozen=True)
class Plugin:
    """A program that gives credentials."""

    command: str
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    version: str = "client.authentication.k8s.io/v1"
    cluster: Mapping[str, Any] | None = None
    """What it is told of the cluster, if it asks for that."""


@dataclass(frozen=True)
class Place:
    """What a kubeconfig, or a pod's files, say."""

    server: str
    authority: Path | bytes | None = None
    """None: those that this machine trusts."""
    verify: bool = True
    server_name: str | None = None
    proxy: str | None = None
    token: str | None = None
    token_file: Path | None = None
    certificate: Path | bytes | None = None
    key: Path | bytes | None = None
    basic: tuple[str, str] | None = None
    plugin: Plugin | None = None
    namespace: str | None = None


def find_place(section: Section) -> Place:
    """Return where the configured API server is. AccessError."""
    if section.kubeconfig is not None:
        return read_kubeconfig(section.kubeconfig, section.context, section.server)
    return in_pod(section.server)


def in_pod(server: str | None = None, at: Path = POD) -> Place:
    """Return what a pod is given. AccessError: this is none."""
    host = os.environ.get("KUBERNETES_SERVICE_HOST")
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if server is None and not host:
        raise AccessError(
            "KUBERNETES_SERVICE_HOST isn't set, so this is no pod; name kubernetes.kubeconfig, or"
            " kubernetes.server"
        )
    host = f"[{host}]" if host and ":" in host else host
    if not (at / "token").exists():
        raise AccessError(f"{at}/token isn't there; name kubernetes.kubeconfig")
    authority = at / "ca.crt"
    return Place(
        server or f"https://{host}:{port}",
        authority if authority.exists() else None,
        token_file=at / "token",
    )


def read_kubeconfig(path: Path, context: str | None, server: str | None = None) -> Place:
    """Return what a kubeconfig says of a context. AccessError."""
    try:
        raw = yaml.load(path.read_text(), yaml.CSafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise AccessError(f"{path}: {error}") from error
    if not isinstance(raw, dict):
        raise AccessError(f"{path}: is no kubeconfig: not a mapping")
    try:
        return _place(raw, path, context or raw.get("current-context") or "", server)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AccessError(f"{path}: is no kubeconfig: {error!r}") from error


def _place(raw: dict[str, Any], path: Path, context: str, server: str | None) -> Place:
    chosen = _named(raw, "contexts", "context", context, path)
    cluster = _named(raw, "clusters", "cluster", chosen.get("cluster"), path)
    user = _named(raw, "users", "user", chosen["user"], path) if chosen.get("user") else {}
    token_file = user.get("tokenFile")
    basic = (user["username"], user.get("password", "")) if user.get("username") else None
    return Place(
        (server or cluster["server"]).rstrip("/"),
        _data(cluster, "certificate-authority", path),
        verify=not cluster.get("insecure-skip-tls-verify", False),
        server_name=cluster.get("tls-server-name"),
        proxy=cluster.get("proxy-url"),
        token=user.get("token"),
        token_file=path.parent / token_file if token_file else None,
        certificate=_data(user, "client-certificate", path),
        key=_data(user, "client-key", path),
        basic=basic,
        plugin=_plugin(user["exec"], cluster, path) if user.get("exec") else None,
        namespace=chosen.get("namespace"),
    )


def _named(raw: dict[str, Any], many: str, one: str, name: Any, path: Path) -> dict[str, Any]:
    listed = raw.get(many) or ()
    for each in listed:
        if each["name"] == name:
            found: dict[str, Any] = each.get(one) or {}
            return found
    there = ", ".join(str(each["name"]) for each in listed) or "none"
    raise AccessError(f"{path}: there is no {one} {name!r}; there are: {there}")


def _data(of: Mapping[str, Any], name: str, path: Path) -> Path | bytes | None:
    """A certificate or key: in the file, or named there, by a path that begins at the file."""
    if of.get(f"{name}-data"):
        return base64.b64decode(of[f"{name}-data"])
    return path.parent / of[name] if of.get(name) else None


def _plugin(raw: Mapping[str, Any], cluster: Mapping[str, Any], path: Path) -> Plugin:
    command = raw["command"]
    if "/" in command:
        command = str(path.parent / command)
    told = None
    if raw.get("provideClusterInfo"):
        told = {"server": cluster["server"]}
        authority = _data(cluster, "certificate-authority", path)
        if authority is not None:
            content = authority if isinstance(authority, bytes) else authority.read_bytes()
            told["certificate-authority-data"] = base64.b64encode(content).decode()
    return Plugin(
        command,
        tuple(raw.get("args") or ()),
        {each["name"]: each["value"] for each in raw.get("env") or ()},
        raw.get("apiVersion", Plugin.version),
        told,
    )


class Credentials:
    """What requests are signed with, as it is now."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._token: tuple[str, float] | None = None
        """A file's, and when it was read."""
        self._given: dict[str, Any] = {}
        """What the plugin gave."""
        self._expires = 0.0
        self._context: tuple[object, ssl.SSLContext] | None = None
        self._running = asyncio.Lock()

    def refresh(self) -> None:
        """They were refused: have all of them anew."""
        self._token = None
        self._expires = 0.0
        self._context = None

    async def headers(self) -> dict[str, str]:
        """What goes with each request. AccessError."""
        place = self.place
        if place.plugin is not None:
            await self._ask(place.plugin)
            if token := self._given.get("token"):
                return {"Authorization": f"Bearer {token}"}
        if place.token_file is not None:
            return {"Authorization": f"Bearer {self._read_token(place.token_file)}"}
        if place.token:
            return {"Authorization": f"Bearer {place.token}"}
        if place.basic:
            text = base64.b64encode(":".join(place.basic).encode()).decode()
            return {"Authorization": f"Basic {text}"}
        return {}

    def _read_token(self, path: Path) -> str:
        if self._token is None or time.monotonic() - self._token[1] > TOKEN_SECONDS:
            try:
                self._token = path.read_text().strip(), time.monotonic()
            except (OSError, UnicodeDecodeError) as error:
                raise AccessError(f"{path}: {error}") from error
        return self._token[0]

    async def tls(self) -> ssl.SSLContext | bool:
        """For https. The same object until a file is another one. AccessError."""
        if not self.place.server.startswith("https:"):
            return True
        if self.place.plugin is not None and self._context is None:
            await self._ask(self.place.plugin)
        try:
            seen = self._seen()
            if self._context is None or self._context[0] != seen:
                self._context = seen, self._make_context()
        except (OSError, ssl.SSLError, ValueError) as error:
            text = f"certificates of {self.place.server}: {error}"
            if self._context is None:
                raise AccessError(text) from error
            # A key and its certificate are replaced one after the other.
            log.warning("%s; those of before are used", text)
        return self._context[1]

    def _seen(self) -> object:
        """What tells files from what they were."""
        found: list[object] = [self._given.get("clientCertificateData")]
        for each in (self.place.authority, self.place.certificate, self.place.key):
            if isinstance(each, Path):
                stat = each.stat()
                found.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
        return found

    def _make_context(self) -> ssl.SSLContext:
        place = self.place
        authority = place.authority
        context = ssl.create_default_context(
            cafile=authority if isinstance(authority, Path) else None,
            cadata=authority.decode() if isinstance(authority, bytes) else None,
        )
        if not place.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        certificate: Path | bytes | None = place.certificate
        key: Path | bytes | None = place.key
        if given := self._given.get("clientCertificateData"):
            certificate, key = given.encode(), self._given.get("clientKeyData", "").encode()
        if certificate is not None:
            with ExitStack() as files:
                names = [_on_disk(each, files) for each in (certificate, key) if each]
                context.load_cert_chain(*names)
        return context

    async def _ask(self, plugin: Plugin) -> None:
        async with self._running:
            if time.time() >= self._expires - _EARLY_SECONDS:
                given = await _run(plugin)
                self._expires = _moment(given.get("expirationTimestamp"), plugin)
                self._given = given


def _on_disk(content: Path | bytes, files: ExitStack) -> str:
    """A file with this content: the ssl module takes no other."""
    if isinstance(content, Path):
        return str(content)
    made = tempfile.NamedTemporaryFile(prefix="towpath-")  # noqa: SIM115 - its stack closes it
    files.enter_context(made)
    made.write(content)
    made.flush()
    return made.name


def _moment(text: str | None, plugin: Plugin) -> float:
    """When credentials expire, in seconds since 1970. AccessError: nobody can say."""
    if not text:
        return float("inf")
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError) as error:
        what = f"expirationTimestamp {text!r} is no time"
        raise AccessError(f"exec plugin {plugin.command}: {what}") from error


async def _run(plugin: Plugin) -> dict[str, Any]:
    spec: dict[str, Any] = {"interactive": False}
    if plugin.cluster is not None:
        spec["cluster"] = dict(plugin.cluster)
    told = {"apiVersion": plugin.version, "kind": "ExecCredential", "spec": spec}
    environment = os.environ | plugin.environment | {"KUBERNETES_EXEC_INFO": json.dumps(told)}
    try:
        process = await asyncio.create_subprocess_exec(
            plugin.command,
            *plugin.arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
        )
    except OSError as error:
        raise AccessError(f"exec plugin {plugin.command}: {error}") from error
    try:
        output, errors = await asyncio.wait_for(process.communicate(), EXEC_SECONDS)
    except TimeoutError:
        raise AccessError(f"exec plugin {plugin.command}: takes too long") from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode:
        last = errors.decode(errors="replace").strip().rpartition("\n")[2]
        raise AccessError(f"exec plugin {plugin.command}: ended with {process.returncode}: {last}")
    try:
        status: dict[str, Any] = json.loads(output)["status"]
        _ = status.get("token"), status.get("clientCertificateData")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AccessError(f"exec plugin {plugin.command}: gave no credentials") from error
    return status
