#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The Rust crate pcap-file 2.0.0 takes every time of a pcapng file for nanoseconds.
#
# The resolution is the interface's (if_tsresol), and microseconds if it says nothing, as tcpdump and Wireshark write by default.
# The crate's EnhancedPacketBlock.timestamp is the number in the file as nanoseconds whatever the interface says:
# a packet of 2023 is dated to January 1970. Files in nanoseconds are read right.
#
# Seen with pcap-file 2.0.0, rustc 1.95. Exit code 0: still so.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
mkdir "$room/src"
cat >"$room/Cargo.toml" <<'TOML'
[package]
name = "times"
version = "0.0.0"
edition = "2021"

[dependencies]
pcap-file = "=2.0.0"
TOML
cat >"$room/src/main.rs" <<'RUST'
use pcap_file::pcapng::{Block, PcapNgReader};

const SECONDS: u64 = 1_700_000_000;

fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32 + 12).to_le_bytes();
    [&kind.to_le_bytes()[..], &length[..], body, &length[..]].concat()
}

/// A file of one packet, by an interface whose times are in 10^-resolution seconds.
fn file(resolution: u8) -> Vec<u8> {
    let time = SECONDS * 10u64.pow(resolution.into());
    let section = [0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255];
    let interface = [1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 1, 0, resolution, 0, 0, 0, 0, 0, 0, 0];
    let mut packet = Vec::new();
    for word in [0, (time >> 32) as u32, time as u32, 60, 60] {
        packet.extend(word.to_le_bytes());
    }
    packet.extend([0; 60]);
    [block(0x0a0d0d0a, &section), block(1, &interface), block(6, &packet)].concat()
}

fn seconds(resolution: u8) -> f64 {
    let data = file(resolution);
    let mut reader = PcapNgReader::new(&data[..]).unwrap();
    while let Some(next) = reader.next_block() {
        if let Block::EnhancedPacket(packet) = next.unwrap() {
            return packet.timestamp.as_secs_f64();
        }
    }
    panic!("no packet");
}

fn main() {
    let (micro, nano) = (seconds(6), seconds(9));
    println!("{SECONDS} s, in microseconds: {micro}; in nanoseconds: {nano}");
    assert_eq!((micro, nano), (SECONDS as f64 / 1000.0, SECONDS as f64));
}
RUST
cd "$room"
cargo run --quiet
