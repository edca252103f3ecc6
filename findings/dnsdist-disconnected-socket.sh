#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# dnsdist 1.7.3 never connects a backend's UDP socket again that the kernel has disconnected.
#
# Whoever may can disconnect a UDP socket (SOCK_DESTROY by sock_diag, `ss --kill`; eBPF load balancers do so when a backend goes): it
# is told ECONNABORTED once, and EDESTADDRREQ at each send() from then on, until it calls connect() again. dnsdist tries again after
# other errors of its socket and not after this one: every query is lost, for good, though the backend answers. With health checks too:
# they have a socket of their own, so the backend is up. A program that calls connect() after an error of send() goes on.
#
# Seen with dnsdist 1.7.3-2 (Debian 12), Linux 6.18, as root, in a network namespace of its own. Exit code 0: still so.
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
		--no-replaces --no-enhances dnsdist | grep '^lib' | grep -v ':' | sort -u)
	(cd "$room" && apt-get "${options[@]}" download dnsdist=1.7.3-2 $needed)
	for package in "$room"/*.deb; do dpkg-deb --extract "$package" "$room/tree"; done
	unshare --net --mount --pid --fork --kill-child --mount-proc bash "$0" inside "$room"
	exit
}

room=$2
ip link set lo up
cat >"$room/dnsdist.conf" <<END
setLocal("127.0.0.1:5353")
newServer({address="127.0.0.1:5300", checkInterval=1})
END
loader=$(find "$room/tree" -name 'ld-linux-*.so.*' | head -n 1)
libraries=$(dirname "$(find "$room/tree" -name libc.so.6)")
cat >"$room/backend.py" <<END
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
    server.bind(("127.0.0.1", 5300))
    while True:
        query, client = server.recvfrom(512)
        server.sendto(query[:2] + b"\x81\x80" + query[4:], client)  # no such record
END
python3 "$room/backend.py" &
"$loader" --library-path "$libraries:$libraries/../../usr/lib/x86_64-linux-gnu:$room/tree/usr/lib/x86_64-linux-gnu" \
	"$room/tree/usr/bin/dnsdist" --supervised --disable-syslog --config "$room/dnsdist.conf" >"$room/said" 2>&1 &
dnsdist=$!

asked() { # how many of so many queries are answered
	python3 - "$1" <<END
import socket, sys, time
query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x00\x00\x01\x00\x01"
answered = 0
for _ in range(int(sys.argv[1])):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0.5)
        client.sendto(query, ("127.0.0.1", 5353))
        try:
            client.recv(512)
            answered += 1
        except OSError:
            time.sleep(0.1)
print(answered)
END
}

for _ in $(seq 50); do
	before=$(asked 1)
	[ "$before" = 0 ] || break
done
before=$(asked 5)
ss --udp --numeric --kill state connected dst 127.0.0.1:5300 >/dev/null
sleep 2
after=$(asked 10)
echo "answered: $before of 5; after the socket was disconnected: $after of 10"
kill -0 $dnsdist
! grep -q "as 'down'" "$room/said"
[ "$before" = 5 ]
[ "$after" = 0 ]
