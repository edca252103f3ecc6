/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Enhanced Packet Blocks of pcapng (draft-ietf-opsawg-pcapng, section 4.3), in this machine's
 * byte order. Each has three options: the flow, what became of the packet and how many were lost
 * before it as a comment, the
 * direction, and the packet's number. The action of XDP is in the comment, too: there is an
 * option for it (epb_verdict), but Wireshark 4.0 writes that as another one, of a length that
 * no reader takes, so that whatever it copies a file to is lost.
 */
#include <stdio.h>
#include <string.h>

#include "recorder/record.h"

enum pcapng {
	PCAPNG_PACKET = 6,
	PCAPNG_COMMENT = 1, /* options */
	PCAPNG_FLAGS = 2,
	PCAPNG_PACKET_ID = 5,
	PCAPNG_INBOUND = 1, /* flags */
	PCAPNG_OUTBOUND = 2,
};

enum sizes {
	HEADER = 28,	   /* of the block, before the frame */
	FLOW = 5 + 16 + 1, /* "flow=", sixteen digits, a space */
	OPTION = 4,	   /* type and length */
	FLAGS_SIZE = 4,
	PACKET_ID_SIZE = 8,
	LOST_ROOM = 32, /* of its text, and the end */
};

/* By enum xdp_action. */
static const char *const actions[] = { " xdp=aborted", " xdp=drop", " xdp=pass", " xdp=tx",
				       " xdp=redirect" };

static const char *action_text(u8 action)
{
	return action < sizeof(actions) / sizeof(actions[0]) ? actions[action] : " xdp=other";
}

/* " lost=" and the number, or nothing of 0; returns its length. */
static u32 lost_text(u64 lost, char text[LOST_ROOM])
{
	return lost ? (u32)snprintf(text, LOST_ROOM, " lost=%llu", (unsigned long long)lost) : 0;
}

static u32 comment_length(const struct record *head, const struct label *label, u64 lost)
{
	char text[LOST_ROOM];

	return FLOW + label->length + (u32)strlen(action_text(head->action)) +
	       lost_text(lost, text);
}

static u32 padded(u32 length)
{
	return (length + 3) & ~3u;
}

u32 block_size(const struct record *head, const struct label *label, u64 lost)
{
	return HEADER + padded(head->captured) + OPTION +
	       padded(comment_length(head, label, lost)) + (OPTION + FLAGS_SIZE) +
	       (OPTION + PACKET_ID_SIZE) + OPTION /* the end of options */ + sizeof(u32);
}

static u8 *put(u8 *at, const void *what, u32 length)
{
	memcpy(at, what, length);
	return at + length;
}

static u8 *put_word(u8 *at, u32 word)
{
	return put(at, &word, sizeof(word));
}

/* Bytes and zeros up to a multiple of four. */
static u8 *put_padded(u8 *at, const void *what, u32 length)
{
	at = put(at, what, length);
	memset(at, 0, padded(length) - length);
	return at + padded(length) - length;
}

static u8 *put_option(u8 *at, u16 type, u16 length)
{
	at = put(at, &type, sizeof(type));
	return put(at, &length, sizeof(length));
}

static u8 *put_hex(u8 *at, u64 number)
{
	static const char digits[] = "0123456789abcdef";

	for (int shift = 60; shift >= 0; shift -= 4)
		*at++ = digits[number >> shift & 15];
	return at;
}

static u8 *put_comment(u8 *at, const struct record *head, const struct label *label, u64 lost)
{
	const char *action = action_text(head->action);
	char text[LOST_ROOM];
	u32 lost_length = lost_text(lost, text);
	u32 length = comment_length(head, label, lost), padding = padded(length) - length;

	at = put_option(at, PCAPNG_COMMENT, length);
	at = put(at, "flow=", 5);
	at = put_hex(at, head->flow);
	*at++ = ' ';
	at = put(at, label->text, label->length);
	at = put(at, action, strlen(action));
	at = put(at, text, lost_length);
	memset(at, 0, padding);
	return at + padding;
}

/*
 * Writes block_size() bytes. `lost`: records that had no room since this was last told. `time`:
 * nanoseconds since 1970.
 */
void write_block(u8 *at, const struct record *head, const u8 *frame, const struct label *label,
		 u64 lost, u32 interface, u64 time)
{
	u32 size = block_size(head, label, lost);

	at = put_word(at, PCAPNG_PACKET);
	at = put_word(at, size);
	at = put_word(at, interface);
	at = put_word(at, time >> 32);
	at = put_word(at, time);
	at = put_word(at, head->captured);
	at = put_word(at, head->length);
	at = put_padded(at, frame, head->captured);

	at = put_comment(at, head, label, lost);
	at = put_option(at, PCAPNG_FLAGS, FLAGS_SIZE);
	at = put_word(at, head->direction == RECORD_IN ? PCAPNG_INBOUND : PCAPNG_OUTBOUND);
	at = put_option(at, PCAPNG_PACKET_ID, PACKET_ID_SIZE);
	at = put(at, &head->packet, PACKET_ID_SIZE);
	at = put_option(at, 0, 0);
	put_word(at, size);
}
