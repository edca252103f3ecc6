#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# gopacket 1.6.0 takes times in whole seconds for microseconds.
#
# An interface of a pcapng file may say that its times are in seconds: if_tsresol 0, which is 10^0. pcapgo's NgReader has 0
# for "not said", and not said is microseconds: a packet of 2023 is dated to the first hour of 1970. scapy 2.8.0, dpkt 1.9.8,
# python-pcapng 2.1.1 and Wireshark 4.0 read it right. Other resolutions, powers of two too, are right.
#
# Seen with github.com/gopacket/gopacket v1.6.0, Go 1.26. Exit code 0: still so.
set -euo pipefail
room=$(mktemp -d)
trap 'chmod -R u+w "$room"; rm -rf "$room"' EXIT
cd "$room"
cat >main.go <<'GO'
package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log"

	"github.com/gopacket/gopacket/pcapgo"
)

const seconds = 1_700_000_000

func block(kind uint32, body []byte) []byte {
	length := uint32(len(body) + 12)
	made := binary.LittleEndian.AppendUint32(nil, kind)
	made = binary.LittleEndian.AppendUint32(made, length)
	return binary.LittleEndian.AppendUint32(append(made, body...), length)
}

// One packet, by an interface whose times are in 10^-resolution seconds.
func file(resolution byte) []byte {
	time := uint64(seconds)
	for range resolution {
		time *= 10
	}
	section := []byte{0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255}
	device := []byte{1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 1, 0, resolution, 0, 0, 0, 0, 0, 0, 0}
	var packet []byte
	for _, word := range []uint32{0, uint32(time >> 32), uint32(time), 60, 60} {
		packet = binary.LittleEndian.AppendUint32(packet, word)
	}
	packet = append(packet, make([]byte, 60)...)
	return append(append(block(0x0a0d0d0a, section), block(1, device)...), block(6, packet)...)
}

func read(resolution byte) int64 {
	reader, err := pcapgo.NewNgReader(bytes.NewReader(file(resolution)), pcapgo.DefaultNgReaderOptions)
	if err != nil {
		log.Fatal(err)
	}
	_, info, err := reader.ReadPacketData()
	if err != nil {
		log.Fatal(err)
	}
	return info.Timestamp.Unix()
}

func main() {
	whole, milli := read(0), read(3)
	fmt.Printf("%d s, in seconds: %d; in milliseconds: %d\n", seconds, whole, milli)
	if whole != seconds/1_000_000 || milli != seconds {
		log.Fatal("it is otherwise")
	}
}
GO
export GOPATH="$room/go" GOFLAGS=-mod=mod
go mod init times 2>/dev/null
go get github.com/gopacket/gopacket@v1.6.0 2>/dev/null
go run .
