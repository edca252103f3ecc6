/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Enhanced Packet Blocks of pcapng (draft-ietf-opsawg-pcapng, section 4.3), in this machine's
 * byte order. Each has four options: the flow and what became of the packet as a comment, the
 * direction, the packet's number, and the verdict as XDP has it.
 */
#include <string.h>

#include "recorder/record.h"

enum pcapng {
	PCAPNG_PACKET = 6,
	PCAPNG_COMMENT = 1, /* options */
	PCAPNG_FLAGS = 2,
	PCAPNG_PACKET_ID = 5,
	PCAPNG_VERDICT = 7,
	PCAPNG_XDP = 2,	    /* kind of verdict: eBPF XDP */
	PCAPNG_INBOUND = 1, /* flags */
	PCAPNG_OUTBOUND = 2,
};

enum sizes {
	HEADER = 28,	   /* of the block, before the frame */
	FLOW = 5 + 16 + 1, /* "flow=", sixteen digits, a space */
	OPTION = 4,	   /* type and length */
	FLAGS_SIZE = 4,
	PACKET_ID_SIZE = 8,
	VERDICT_SIZE = 9,
	VERDICT_ROOM = 12,
};

static u32 padded(u32 length)
{
	return (length + 3) & ~3u;
}

u32 block_size(const struct record *head, const struct label *label)
{
	return HEADER + padded(head->captured) + OPTION + padded(FLOW + label->length) +
	       (OPTION + FLAGS_SIZE) + (OPTION + PACKET_ID_SIZE) + (OPTION + VERDICT_ROOM) +
	       OPTION /* the end of options */ + sizeof(u32);
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

static u8 *put_comment(u8 *at, u64 flow, const struct label *label)
{
	u8 text[FLOW + LABEL_MAX], *end;

	end = put(text, "flow=", 5);
	end = put_hex(end, flow);
	*end++ = ' ';
	put(end, label->text, label->length);
	at = put_option(at, PCAPNG_COMMENT, FLOW + label->length);
	return put_padded(at, text, FLOW + label->length);
}

static u8 *put_verdict(u8 *at, u64 action)
{
	u8 verdict[VERDICT_SIZE] = { PCAPNG_XDP };

	memcpy(verdict + 1, &action, sizeof(action));
	at = put_option(at, PCAPNG_VERDICT, VERDICT_SIZE);
	return put_padded(at, verdict, VERDICT_SIZE);
}

/* Writes block_size() bytes. `time`: nanoseconds since 1970. */
void write_block(u8 *at, const struct record *head, const u8 *frame, const struct label *label,
		 u32 interface, u64 time)
{
	u32 size = block_size(head, label);

	at = put_word(at, PCAPNG_PACKET);
	at = put_word(at, size);
	at = put_word(at, interface);
	at = put_word(at, time >> 32);
	at = put_word(at, time);
	at = put_word(at, head->captured);
	at = put_word(at, head->length);
	at = put_padded(at, frame, head->captured);

	at = put_comment(at, head->flow, label);
	at = put_option(at, PCAPNG_FLAGS, FLAGS_SIZE);
	at = put_word(at, head->direction == RECORD_IN ? PCAPNG_INBOUND : PCAPNG_OUTBOUND);
	at = put_option(at, PCAPNG_PACKET_ID, PACKET_ID_SIZE);
	at = put(at, &head->packet, PACKET_ID_SIZE);
	at = put_verdict(at, head->action);
	at = put_option(at, 0, 0);
	put_word(at, size);
}
