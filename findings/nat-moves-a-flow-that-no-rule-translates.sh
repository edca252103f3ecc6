#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# A datagram that no NAT rule is for leaves a router with another source port, if its client has asked the same server by a dnat rule lately.
#
# Of the flow that was translated the kernel expects answers from the server to the client's port. A direct flow from that port would be
# answered the same way, so the kernel gives it another source port where there is anything of NAT. No rule says so. Who keeps flows by
# addresses and ports behind that router sees another one. So it is with clients that are balanced by rules first, such as kube-proxy's,
# and then at their sockets, which talk to the server itself. Ports from 1,074 to 64,994 were seen, once that of a Kubernetes node port:
# the answer was taken for a client's packet to it.
#
# Seen with nftables 1.0.6-2+deb12u2 (Debian 12), Linux 6.18, as root. Exit code 0: still so.
set -euo pipefail
[ "${1-}" = inside ] || {
	room=$(mktemp -d)
	trap 'rm -rf "$room"' EXIT
	chmod 755 "$room"
	mkdir -p "$room/lists/partial" "$room/archives/partial"
	site=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -v security | head -n 1)
	echo "deb $site bookworm main" >"$room/sources.list"
	options=(-qq -o "Dir::Etc::SourceList=$room/sources.list" -o Dir::Etc::SourceParts=/dev/null
		-o "Dir::State::Lists=$room/lists" -o "Dir::Cache=$room" -o APT::Sandbox::User=root)
	apt-get "${options[@]}" update
	needed=$(apt-cache "${options[@]}" depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks \
		--no-replaces --no-enhances nftables | grep '^lib' | grep -v ':' | sort -u)
	(cd "$room" && apt-get "${options[@]}" download nftables=1.0.6-2+deb12u2 $needed)
	for package in "$room"/*.deb; do dpkg-deb --extract "$package" "$room/tree"; done
	unshare --net --mount --pid --fork --kill-child --mount-proc bash "$0" inside "$room"
	exit
}

room=$2
loader=$(find "$room/tree" -name 'ld-linux-*.so.*' | head -n 1)
libraries=$(dirname "$(find "$room/tree" -name libc.so.6)")
nft() { "$loader" --library-path "$libraries:$room/tree/lib:$room/tree/usr/lib" "$room/tree/usr/sbin/nft" "$@"; }

mount -t tmpfs none /run
ip link set lo up
sysctl -qw net.ipv4.ip_forward=1
for end in client server; do
	ip netns add "$end"
	ip link add "$end" type veth peer name eth0 netns "$end"
	ip link set "$end" up
	ip -n "$end" link set eth0 up
done
ip address add 192.0.2.1/25 dev client
ip address add 192.0.2.129/25 dev server
ip -n client address add 192.0.2.2/25 dev eth0
ip -n server address add 192.0.2.130/25 dev eth0
ip -n client route add default via 192.0.2.1
ip -n server route add default via 192.0.2.129
# It says which port it was asked from.
ip netns exec server python3 -c '
import socket
with socket.socket(type=socket.SOCK_DGRAM) as server:
    server.bind(("192.0.2.130", 8080))
    while True:
        peer = server.recvfrom(100)[1]
        server.sendto(str(peer[1]).encode(), peer)' &

asks() { # port address port: whether the server sees the port
	ip netns exec client python3 -c '
import socket, sys
own, address, port = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
with socket.socket(type=socket.SOCK_DGRAM) as client:
    client.settimeout(5)
    client.bind(("", own))
    client.connect((address, port))
    client.send(b"?")
    seen = int(client.recv(100))
    print("same" if seen == own else "other" if seen >= 1024 else "low", end=";")' "$@"
}

sleep 1
nft 'add table ip some; add chain ip some before { type nat hook prerouting priority -100; };
	add rule ip some before ip daddr 203.0.113.1 udp dport 80 dnat to 192.0.2.130:8080'
seen=$(
	asks 4000 192.0.2.130 8080 # nothing was translated before
	asks 4001 203.0.113.1 80   # by the rule
	asks 4001 192.0.2.130 8080 # directly, from the same port
	asks 4002 192.0.2.130 8080 # and from another one
)
echo "$seen"
[ "$seen" = "same;same;other;same;" ]
