#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# A connection's first packet that came before a namespace's first NAT chain: a dnat rule counts its later packets, and translates none.
#
# The kernel tracks connections already (here for a rule with `ct state`), has no NAT to do, and notes the connection untranslated.
# NAT that comes later can't change one that is noted: the rule is carried out, a trace says `dnat ... (verdict accept)`, its counter
# goes up, and the packet goes on to the address that it had. Each SYN that is tried again keeps the note for two minutes more. A client
# whose port comes round again in that time meets it, too. So it is on a node on which kube-proxy starts while pods ask Services
# already (seen with 1.37.2, nftables): some later connections to a ClusterIP are refused, single ones, up to two minutes after.
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
ip route add 203.0.113.1 via 192.0.2.130
ip netns exec server python3 -c '
import socket
with socket.create_server(("192.0.2.130", 8080)) as server:
    while True:
        server.accept()[0].close()' &

connects() { # port: whether a client does from there
	ip netns exec client python3 -c '
import socket, sys
with socket.socket() as client:
    client.settimeout(2)
    client.bind(("", int(sys.argv[1])))
    try:
        client.connect(("203.0.113.1", 80))
    except OSError:
        print("no", end=";")
    else:
        print("yes", end=";")' "$1"
}

sleep 1
seen=$(
	nft 'add table ip seen; add chain ip seen each { type filter hook forward priority 0; }; add rule ip seen each ct state invalid drop'
	connects 4000
	nft 'add table ip new; add chain ip new before { type nat hook prerouting priority -100; };
		add rule ip new before ip daddr 203.0.113.1 tcp dport 80 counter dnat to 192.0.2.130:8080'
	connects 4001
	before=$(nft list table ip new | sed -n 's/.*packets \([0-9]*\).*/\1/p')
	connects 4000
	after=$(nft list table ip new | sed -n 's/.*packets \([0-9]*\).*/\1/p')
	[ "$after" -gt "$before" ] && echo "counted"
)
echo "$seen"
[ "$seen" = "no;yes;no;counted" ]
