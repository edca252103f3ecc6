#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# timeout of coreutils 9.10 can't be the first process of a PID namespace: nothing is run, nothing is said.
#
# As `unshare --pid --fork` and containers start what they are given, it is process 1 there. It then ends at once with 125, the exit
# code of its own failures, and without a message. Beneath a shell, or with an init, it works. timeout of coreutils 9.1 (Debian 12)
# works in both places.
#
# Seen with coreutils 9.10-1 (Debian unstable) and 9.1-1 (Debian 12), Linux 6.18, as root. Exit code 0: still so.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
chmod 755 "$room"
mkdir -p "$room/lists/partial" "$room/archives/partial"
site=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -v security | head -n 1)

fetch() { # release, version; with the C library that it is for
	echo "deb $site $1 main" >"$room/sources.list"
	local options=(-qq -o "Dir::Etc::SourceList=$room/sources.list" -o Dir::Etc::SourceParts=/dev/null
		-o "Dir::State::Lists=$room/lists" -o "Dir::Cache=$room" -o APT::Sandbox::User=root)
	apt-get "${options[@]}" update
	(cd "$room" && apt-get "${options[@]}" download "coreutils=$2" libc6)
	for package in "$room"/*.deb; do dpkg-deb --extract "$package" "$room/$2"; done
	rm "$room"/*.deb
	rm -rf "$room/lists"
	mkdir -p "$room/lists/partial"
}

first() { # version: what it ends with as the first process, and beneath a shell
	local code=0 beneath=0 loader
	local -a timeout
	loader=$(find "$room/$1" -name 'ld-linux-*.so.*' | head -n 1)
	timeout=("$loader" --library-path "$(dirname "$(find "$room/$1" -name libc.so.6)")" "$(find "$room/$1" -name timeout -type f)")
	unshare --pid --fork --mount-proc "${timeout[@]}" 60 sh -c 'exit 7' 2>"$room/said" || code=$?
	unshare --pid --fork --mount-proc sh -c '"$@" 60 sh -c "exit 7"; exit $?' sh "${timeout[@]}" || beneath=$?
	echo "$code $beneath $(wc -c <"$room/said")"
}

fetch bookworm 9.1-1
fetch sid 9.10-1
old=$(first 9.1-1) new=$(first 9.10-1)
echo "as process 1, beneath a shell, bytes of messages: coreutils 9.1: $old; 9.10: $new"
[ "$old" = "7 7 0" ]
[ "$new" = "125 7 0" ]
