#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# pyroute2 0.9.7 makes qdiscs that it has no module for without the options that it was given.
#
# Options of a qdisc are encoded by a module for its kind. There are some twenty; fq, bfifo, red, ets, mqprio, pie
# and others have none. For these `tc("add", ...)` takes any option, sends none, and succeeds: the qdisc is there with the kernel's defaults.
# Read back, options of such kinds are bytes.
#
# Seen with pyroute2 0.9.7 on Linux 6.18, in namespaces of an ordinary user's own (unshare -rn). Exit code 0: still so.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --disable-pip-version-check pyroute2==0.9.7
cat >"$room/try.py" <<'PYTHON'
from pyroute2 import IPRoute

LIMIT, LO = 1234, 1


def made(kind):
    """What the kernel says of the root qdisc of lo, after pyroute2 has made it with a limit."""
    with IPRoute() as netlink:
        netlink.tc("add", kind, index=LO, handle="1:", limit=LIMIT)
        (qdisc,) = netlink.get_qdiscs(LO)
        netlink.tc("del", index=LO, root=True)
    assert qdisc.get_attr("TCA_KIND") == kind
    return qdisc.get_attr("TCA_OPTIONS")


packets, size = made("pfifo"), made("bfifo")
size = int.from_bytes(bytes.fromhex(size.replace(":", "")), "little")
print(f"a limit of {LIMIT}: pfifo has {packets['limit']} packets, bfifo {size} bytes")
assert packets["limit"] == LIMIT
assert size != LIMIT
PYTHON
unshare --map-root-user --net "$room/venv/bin/python" "$room/try.py"
