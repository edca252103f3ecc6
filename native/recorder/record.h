/* SPDX-License-Identifier: Apache-2.0 */
/* Reading records out of a ring and making pcapng of them: what the files share. */
#ifndef TOWPATH_NATIVE_RECORD_H
#define TOWPATH_NATIVE_RECORD_H

#include <stddef.h>
#include <stdint.h>

#include "abi/recorder.h"

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

enum record_text {
	LABEL_MAX = 255, /* bytes of a label */
};

/* A device and direction, as the file has it. */
struct interface {
	u32 ifindex;
	u32 direction;
	u32 id;
	u32 _reserved;
	u64 records;
};

/* What is said of all packets that the same became of. */
struct label {
	u32 service;
	u32 handle;
	u32 verdict;
	u16 length; /* 0: nothing here */
	char text[LABEL_MAX];
};

struct table {
	struct interface *interfaces;
	u32 interface_count;
	struct label *labels; /* open addressing, a power of two of them */
	u32 label_count;
	u32 label_room;
};

struct interface *find_interface(struct table *table, u32 ifindex, u32 direction);
const struct label *find_label(const struct table *table, const struct record *head);

void towpath_record_forget(struct table *table);

u32 block_size(const struct record *head, const struct label *label, u64 lost);
void write_block(u8 *at, const struct record *head, const u8 *frame, const struct label *label,
		 u64 lost, u32 interface, u64 time);

#endif
