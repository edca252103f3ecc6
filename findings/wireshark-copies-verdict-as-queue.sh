#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Copied by Wireshark 4.0's editcap, a packet's verdict in pcapng is a second number of a queue, and the file has no names any more.
#
# epb_verdict is option 7 of an enhanced packet block, epb_queue option 6 (draft-ietf-opsawg-pcapng, 4.3). What captures at XDP writes
# the verdict so: what the program decided. The copy has option 6 twice, the second with the verdict's nine bytes where four are
# allowed; a reader finds no verdict in it. Neither is there a name resolution block. Wireshark 4.6 copies both.
#
# Seen with wireshark-common 4.0.17-0+deb12u3 (Debian 12) and 4.6.9-1+b1 (Debian unstable). Exit code 0: still so.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
chmod 755 "$room"
site=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -v security | head -n 1)

fetch() { # release, version, what else editcap loads
	mkdir -p "$room/lists/partial" "$room/archives/partial" "$room/$2"
	echo "deb $site $1 main" >"$room/sources.list"
	local options=(-qq -o "Dir::Etc::SourceList=$room/sources.list" -o Dir::Etc::SourceParts=/dev/null
		-o "Dir::State::Lists=$room/lists" -o "Dir::Cache=$room" -o Dir::State::status=/dev/null
		-o APT::Sandbox::User=root)
	apt-get "${options[@]}" update
	(cd "$room" && apt-get "${options[@]}" download "wireshark-common=$2" libc6 libpcre2-8-0 libgcrypt20 libgpg-error0 \
		zlib1g libzstd1 liblz4-1 "${@:3}")
	for package in "$room"/*.deb; do dpkg-deb --extract "$package" "$room/$2"; done
	rm -rf "$room"/*.deb "$room/lists"
}

blocks() { # version: blocks of its copy, with the packet's options
	local loader
	loader=$(find "$room/$1" -name 'ld-linux-*.so.*' | head -n 1)
	"$loader" --library-path "$(dirname "$(find "$room/$1" -name libc.so.6)"):$(dirname "$(find "$room/$1" -name 'libwiretap.so.*' | head -n 1)")" \
		"$room/$1/usr/bin/editcap" "$room/given.pcapng" "$room/copy.pcapng"
	python3 "$room/read.py" "$room/copy.pcapng"
}

cat >"$room/write.py" <<'END'
import struct
import sys


def block(kind, body):
    return struct.pack("<II", kind, len(body) + 12) + body + struct.pack("<I", len(body) + 12)


def field(code, value):
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


end = bytes(4)
frame = bytes.fromhex("020000000001020000000002" "88b5") + bytes(46)
options = field(6, struct.pack("<I", 3)) + field(7, b"\1" + struct.pack("<Q", 2)) + end
with open(sys.argv[1], "wb") as out:
    out.write(block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)))
    out.write(block(1, struct.pack("<HHI", 1, 0, 65535)))
    out.write(block(4, field(1, bytes([192, 0, 2, 1]) + b"one.example\0") + end))
    out.write(block(6, struct.pack("<5I", 0, 0, 1, len(frame), len(frame)) + frame + options))
END
cat >"$room/read.py" <<'END'
import struct
import sys

data, at, found = open(sys.argv[1], "rb").read(), 0, []
while at < len(data):
    kind, length = struct.unpack_from("<II", data, at)
    if kind == 4:
        found.append("names")
    if kind == 6:
        (size,) = struct.unpack_from("<I", data, at + 20)
        place = at + 28 + size + -size % 4
        while (option := struct.unpack_from("<HH", data, place))[0]:
            found.append(f"option {option[0]} of {option[1]} bytes")
            place += 4 + option[1] + -option[1] % 4
    at += length
print(", ".join(found))
END
python3 "$room/write.py" "$room/given.pcapng"
fetch bookworm 4.0.17-0+deb12u3 libwiretap13 libwsutil14 libglib2.0-0
fetch sid 4.6.9-1+b1 libwiretap16 libwsutil17 libglib2.0-0t64 libxxhash0 libatomic1 libxml2-16
given=$(python3 "$room/read.py" "$room/given.pcapng")
old=$(blocks 4.0.17-0+deb12u3) new=$(blocks 4.6.9-1+b1)
printf 'given: %s\ncopied by 4.0.17: %s\ncopied by 4.6.9: %s\n' "$given" "$old" "$new"
[ "$given" = "names, option 6 of 4 bytes, option 7 of 9 bytes" ]
[ "$old" = "option 6 of 4 bytes, option 6 of 9 bytes" ]
[ "$new" = "$given" ]
