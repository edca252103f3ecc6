#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# DEL of CNI's bandwidth plugin takes away the device that its filter sends a pod's packets to, and leaves the filter: they are lost.
#
# ADD gives the host's end of a pod's veth a tbf, an ingress qdisc with a filter that redirects to an ifb, and the ifb. DEL deletes
# the ifb and nothing else, and succeeds. A redirect to a device that is gone drops. So a pod whose network stays, of which only the
# limit is to go, can't send any more; another ADD doesn't mend it, it fails. Whoever takes away the ingress qdisc mends it. Unseen
# where the next plugin's DEL deletes the veth.
#
# Seen with github.com/containernetworking/plugins v1.10.0 (plugins/meta/bandwidth), Go 1.26, Linux 6.18 with ifb, tbf, cls_u32 and
# act_mirred, as root. Exit code 0: still so.
set -euo pipefail
room=$(mktemp -d)
trap 'chmod -R u+w "$room"; rm -rf "$room"' EXIT
export GOPATH="$room/go" GOCACHE="$room/cache" GOBIN="$room" GOFLAGS=-modcacherw
go install github.com/containernetworking/plugins/plugins/meta/bandwidth@v1.10.0 2>"$room/said" || {
	cat "$room/said"
	exit 1
}
cat >"$room/given.json" <<'END'
{
  "cniVersion": "1.0.0", "name": "pods", "type": "bandwidth",
  "ingressRate": 8000000, "ingressBurst": 80000, "egressRate": 8000000, "egressBurst": 80000,
  "prevResult": {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "host0"}, {"name": "eth0", "sandbox": "/run/netns/pod"}],
    "ips": [{"address": "192.0.2.9/24", "interface": 1}]
  }
}
END
cat >"$room/world" <<'END'
set -u
mount -t tmpfs none /run
ip link set lo up
ip netns add pod
ip link add host0 type veth peer name eth0 netns pod
ip link set host0 up
ip address add 192.0.2.1/24 dev host0
ip -n pod address add 192.0.2.9/24 dev eth0
ip -n pod link set eth0 up
plugin() {
	CNI_COMMAND=$1 CNI_CONTAINERID=pod CNI_NETNS=/run/netns/pod CNI_IFNAME=eth0 CNI_PATH="$2" \
		"$2/bandwidth" <"$2/given.json" >/dev/null && echo "$1 succeeds" || echo "$1 fails"
}
sends() { ip netns exec pod ping -q -c 3 -i 0.2 -W 1 192.0.2.1 | sed -n 's/.* \([0-9]\) received.*/\1 of 3 arrive/p'; }
sends
for command in ADD DEL ADD; do
	plugin "$command" "$1"
	sends
done
tc qdisc delete dev host0 ingress
sends
END
seen=$(unshare --net --mount --pid --fork --mount-proc sh "$room/world" "$room" | paste -sd ';')
echo "$seen"
[ "$seen" = "3 of 3 arrive;ADD succeeds;3 of 3 arrive;DEL succeeds;0 of 3 arrive;ADD fails;0 of 3 arrive;3 of 3 arrive" ]
