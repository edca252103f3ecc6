# SPDX-License-Identifier: Apache-2.0
"""Whether it is still the same cluster: one that has begun anew answers as if all were well."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import msgspec

from towpath.agent.errors import AgentError
from towpath.agent.sources.kubernetes.client import ApiError
from towpath.model.sources.kubernetes import objects

if TYPE_CHECKING:
    from pathlib import Path

    from towpath.agent.sources.kubernetes.client import Api

log = logging.getLogger(__name__)

PATH = "/api/v1/namespaces/kube-system"
_FORBIDDEN = 403


class AnotherClusterError(AgentError):
    """The API server is another cluster's."""


class Identity:
    """The UID of a cluster's first namespace, kept beside the services that came from it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = self._load()
        self.trouble: str | None = None

    @property
    def is_another(self) -> bool:
        """Whether the last answer was another cluster's."""
        return self.trouble is not None

    def accept(self) -> None:
        """Whatever cluster answers next is the right one."""
        self._known, self.trouble = "", None

    async def check(self, api: Api) -> None:
        """Ask. AnotherClusterError: it is another one and nobody has accepted it; AgentError."""
        try:
            body = await api.get(PATH)
        except ApiError as error:
            if error.code == _FORBIDDEN:
                log.warning("Kubernetes: may not read namespace kube-system: %s", error)
                return
            raise
        try:
            uid = msgspec.json.decode(body, type=objects.Namespace).metadata.uid
        except msgspec.MsgspecError as error:
            raise ApiError(f"namespace kube-system makes no sense: {error}") from error
        if self._known and uid != self._known:
            self.trouble = (
                f"the API server is another cluster's (kube-system is {uid}, was {self._known});"
                " services stay as they were; `towpath source accept kubernetes` takes it over"
            )
            raise AnotherClusterError(self.trouble)
        self.trouble = None
        if uid != self._known:
            self._known = uid
            self._save()

    def _load(self) -> str:
        try:
            return str(json.loads(self._path.read_text())["uid"])
        except FileNotFoundError:
            return ""
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s: %s; the cluster is taken for the same", self._path, error)
            return ""

    def _save(self) -> None:
        new = self._path.with_suffix(".new")
        try:
            new.touch(mode=0o600)
            new.write_text(json.dumps({"uid": self._known}))
            new.rename(self._path)
        except OSError as error:
            log.warning("%s: %s", self._path, error)
