/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Lists sockets of all network namespaces by what they have noted: iterators over the storage
 * that socket.bpf.c keeps at them (Linux 5.9). Those with notes in a table are listed one namespace
 * at a time, by an iterator over its sockets. What is read is an array of struct socket_seen.
 */
#include <stdbool.h>
#include <stddef.h>

#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "socket/slots.h"

enum tcp_states {
	TCP_ESTABLISHED = 1, /* of UDP: it is connected */
};

/* What is read of the kernel's own, wherever it is there. */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct ns_common {
	unsigned int inum;
};

struct net {
	struct ns_common ns;
};

typedef struct {
	struct net *net;
} possible_net_t;

typedef struct {
	__s64 counter;
} atomic64_t;

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	int skc_bound_dev_if;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	atomic64_t skc_cookie;
};

struct sock {
	struct sock_common __sk_common;
};

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__bpf_sk_storage_map {
	struct bpf_iter_meta *meta;
	struct sock *sk;
	void *value;
};

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
};

#pragma clang attribute pop

static __always_inline void read_ends(struct socket_seen *seen, const struct sock_common *sk)
{
	seen->family = sk->skc_family;
	seen->state = sk->skc_state;
	seen->local_port = bpf_htons(sk->skc_num);
	seen->remote_port = sk->skc_dport;
	seen->ifindex = sk->skc_bound_dev_if;
	seen->cookie = sk->skc_cookie.counter;
	seen->netns = sk->skc_net.net->ns.inum;
	if (seen->family == FAMILY_V4) {
		seen->local.word[3] = sk->skc_rcv_saddr;
		seen->remote.word[3] = sk->skc_daddr;
		return;
	}
	for (int i = 0; i < 4; i++) {
		seen->local.word[i] = sk->skc_v6_rcv_saddr.in6_u.u6_addr32[i];
		seen->remote.word[i] = sk->skc_v6_daddr.in6_u.u6_addr32[i];
	}
}

/* `sk`: the one that was found not to be NULL. Read again it may be, to the verifier. */
static __always_inline void tell(const struct bpf_iter_meta *meta, const struct sock_common *sk,
				 const struct socket_note *note)
{
	struct socket_seen seen = {};

	seen.note = *note;
	read_ends(&seen, sk);
	bpf_seq_write(meta->seq, &seen, sizeof(seen));
}

/* Those that are, or were, connected to a service. */
SEC("iter/bpf_sk_storage_map")
int socket_list_notes(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	const struct socket_note *note = ctx->value;
	const struct sock *sk = ctx->sk;

	if (sk && note && note->family)
		tell(ctx->meta, &sk->__sk_common, note);
	return 0;
}

/* The same of one namespace, with notes in the table. */
SEC("iter/tcp")
int socket_list_slots(struct bpf_iter__tcp *ctx)
{
	const struct sock_common *sk = ctx->sk_common;
	const struct socket_slot *slot = sk ? slot_find(sk->skc_cookie.counter) : NULL;

	if (slot && slot->note.family)
		tell(ctx->meta, sk, &slot->note);
	return 0;
}

/* Of these the ones of UDP that are connected now. */
SEC("iter/bpf_sk_storage_map")
int socket_list_udp(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	const struct socket_note *note = ctx->value;
	const struct sock *sk = ctx->sk;

	if (sk && note && note->family && note->protocol == IPPROTO_UDP &&
	    sk->__sk_common.skc_state == TCP_ESTABLISHED)
		tell(ctx->meta, &sk->__sk_common, note);
	return 0;
}

/* Those that send to services without having connected: a record for each service. */
SEC("iter/bpf_sk_storage_map")
int socket_list_peers(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	const struct socket_peers *peers = ctx->value;
	const struct sock *sk = ctx->sk;

	if (!sk || !peers)
		return 0;
	for (int i = 0; i < SOCKET_PEERS; i++)
		if (peers->note[i].family && peers->note[i].handle)
			tell(ctx->meta, &sk->__sk_common, &peers->note[i]);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
