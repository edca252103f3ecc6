# SPDX-License-Identifier: Apache-2.0
"""What this machine's kernel can do for Towpath, and what its user goes without.

Everything is found out by trying, nothing by the kernel's version::

    from towpath.doctor import doctor

    for capability in doctor():
        print(capability.name, capability.state, capability.found)

Trying disturbs nobody: programs are loaded and closed again, networks are tried in a namespace of
the probe's own, and of a configuration's devices only what their drivers say is read. All that can
stay behind is a kernel module that the kernel loaded when it was asked (veth, sch_fq, cls_bpf).
"""

from __future__ import annotations

from collections import ChainMap
from functools import partial
from typing import TYPE_CHECKING

from towpath.doctor.capability import Answer, Capability, State
from towpath.doctor.judge import judge
from towpath.doctor.rules import capabilities, rules

if TYPE_CHECKING:
    from towpath.model.settings import Config

__all__ = ["Answer", "Capability", "State", "doctor", "judge", "rules"]


def doctor(config: Config | None = None) -> list[Capability]:
    """Probe all that a load balancer needs, and the devices of ``config``.

    Works without privileges as far as it can: what can't be probed then is ``unknown``.
    """
    from towpath.doctor.probes import PROBES, ask  # noqa: PLC0415 -- numpy; rules do without

    more = [each.find("doctor", "PROBES") or {} for each in capabilities(config)]
    probes = dict(ChainMap(PROBES, *more))
    return [judge(rule, partial(ask, probes=probes)) for rule in rules(config)]
