# SPDX-License-Identifier: Apache-2.0
"""One backend is taken away while long downloads from others go on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from towpath.lab.report import FAMILIES, Distribution

if TYPE_CHECKING:
    from collections.abc import Mapping

    from towpath.lab.traffic import Download


@dataclass(slots=True)
class Removal:
    """What happened to downloads and to new requests.

    ``received``: bytes of each download when the removal had taken effect.
    ``running``: whether every download was still going on then.
    """

    removed: str
    downloads: Mapping[str, Download]
    received: Mapping[str, int]
    running: bool
    whole: Mapping[str, bool]
    distribution: Distribution

    @property
    def unnoticed(self) -> bool:
        """No download broke, every request was answered, none by what was removed."""
        strays = sum(self.distribution.served(family, self.removed) for family in FAMILIES)
        everything = self.distribution.answered == self.distribution.requests
        return self.running and all(self.whole.values()) and everything and not strays

    def lines(self) -> list[str]:
        """What happened to the downloads, for people."""
        return [
            f"download over {family} from {download.backend}: {download.size:,} bytes, "
            f"{self.received[family]:,} of them before {self.removed} was removed; "
            + ("checksum right" if self.whole[family] else "BROKEN")
            for family, download in self.downloads.items()
        ]

    def summary(self) -> dict[str, Any]:
        """The figures, as JSON has them."""
        return {
            "removed": self.removed,
            **self.distribution.summary(),
            "downloads": {
                family: {
                    "backend": download.backend,
                    "bytes": download.size,
                    "bytes_before_removal": self.received[family],
                    "whole": self.whole[family],
                }
                for family, download in self.downloads.items()
            },
        }
