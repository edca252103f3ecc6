/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Services at the socket. Programs at the hooks of a cgroup:
 *
 *   connect, sendmsg       a service's address becomes a backend's, and the socket notes it
 *   recvmsg, getpeername   the backend's address that was noted becomes the service's
 *   sock_release           a note that isn't at the socket goes
 *
 * After connect() nothing is done per packet. An IPv6 socket may have IPv4-mapped addresses:
 * what they say is IPv4's.
 */
#include <stdbool.h>
#include <stddef.h>

#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "socket/count.h"
#include "socket/decide.h"
#include "socket/notes.h"
#include "socket/slots.h"

enum errors {
	ERROR_NO_MEMORY = 12,
};

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

/* The address that the call was given, or is about to tell. */
static __always_inline void read_address(const struct bpf_sock_addr *ctx, const bool v6,
					 struct socket_question *q)
{
	q->port = ctx->user_port;
	q->family = FAMILY_V4;
	if (!v6) {
		q->addr.word[3] = ctx->user_ip4;
		return;
	}
	q->addr.word[0] = ctx->user_ip6[0];
	q->addr.word[1] = ctx->user_ip6[1];
	q->addr.word[2] = ctx->user_ip6[2];
	q->addr.word[3] = ctx->user_ip6[3];
	if (!q->addr.word[0] && !q->addr.word[1] && q->addr.word[2] == bpf_htonl(0xffff))
		q->addr.word[2] = 0;
	else
		q->family = FAMILY_V6;
}

static __always_inline void write_address(struct bpf_sock_addr *ctx, const bool v6,
					  const struct address *addr, __be16 port, __u8 family)
{
	ctx->user_port = port;
	if (!v6) {
		ctx->user_ip4 = addr->word[3];
		return;
	}
	ctx->user_ip6[0] = addr->word[0];
	ctx->user_ip6[1] = addr->word[1];
	ctx->user_ip6[2] = family == FAMILY_V4 ? bpf_htonl(0xffff) : addr->word[2];
	ctx->user_ip6[3] = addr->word[3];
}

static __always_inline __u32 mark_of(const struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	return sk ? sk->mark : 0;
}

/* Whether the call goes on; if not, with which error. */
static __always_inline int go_on(__u32 verdict)
{
	if (verdict == SOCKET_REFUSE_NO_BACKEND) {
		if (socket_set_retval && socket_refuse_with)
			bpf_set_retval(-(int)socket_refuse_with);
		return 0;
	}
	if (verdict == SOCKET_REFUSE_MEMORY) {
		if (socket_set_retval)
			bpf_set_retval(-ERROR_NO_MEMORY);
		return 0;
	}
	return 1;
}

/* ---- Towards backends ----------------------------------------------------------------------- */

/* Whether a socket is one of MPTCP's, or may be. */
static __always_inline bool may_be_mptcp(struct bpf_sock *sk, __u8 protocol)
{
	if (!socket_has_mptcp || protocol != IPPROTO_TCP)
		return false;
	return !socket_tells_mptcp || bpf_skc_to_mptcp_sock(sk);
}

/* Where the note of a socket is, or NULL. */
static __always_inline struct socket_note *find_note(struct bpf_sock *sk,
						     const struct socket_question *q)
{
	struct socket_note *note = bpf_sk_storage_get(&socket_notes, sk, NULL, 0);
	struct socket_slot *slot;

	if (note || q->protocol != IPPROTO_TCP)
		return note;
	slot = slot_find(q->socket);
	return slot ? &slot->note : NULL;
}

/*
 * How often a socket was balanced: 0, it has no note. That it is any number to the verifier,
 * note or not, has it look at what follows once.
 */
static __always_inline __u32 connects_before(struct bpf_sock *sk, const struct socket_question *q)
{
	const struct socket_note *note = find_note(sk, q);
	__u32 hidden = (note ? note->connects : 0) + (__u32)q->socket;

	barrier_var(hidden);
	return hidden - (__u32)q->socket;
}

/* The same for one that goes to a backend: in the table, if it may be and there is a place. */
static __always_inline struct socket_note *make_note(struct bpf_sock *sk,
						     const struct socket_question *q, bool in_table)
{
	struct socket_note *note = bpf_sk_storage_get(&socket_notes, sk, NULL, 0);
	struct socket_slot *slot = !note && in_table ? slot_take(q->socket) : NULL;

	if (slot) {
		slot->netns = q->netns;
		return &slot->note;
	}
	return note ? note
		    : bpf_sk_storage_get(&socket_notes, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
}

static __always_inline __u32 connect_to(struct bpf_sock_addr *ctx, const bool v6,
					struct socket_question *q, struct socket_answer *a)
{
	struct bpf_sock *sk = ctx->sk;
	struct socket_note *note;
	bool mptcp;

	if (!sk)
		return SOCKET_PASS_NO_SERVICE;
	q->netns = bpf_get_netns_cookie(ctx);
	q->socket = bpf_get_socket_cookie(ctx);
	q->connects = connects_before(sk, q);
	socket_decide(ctx, true, mark_of(ctx), q, a);
	if (a->verdict != SOCKET_BALANCED) {
		note = q->connects ? find_note(sk, q) : NULL;
		if (note)
			note->family = FAMILY_NONE;
		return a->verdict;
	}
	mptcp = may_be_mptcp(sk, q->protocol);
	/* Of MPTCP it is the kernel's own socket that connects, whose end no hook tells. */
	note = make_note(sk, q, q->protocol == IPPROTO_TCP && !mptcp);
	if (!note)
		return SOCKET_REFUSE_MEMORY;
	note->connects++;
	note_down(note, q, a);
	if (mptcp)
		note_mptcp(q, a);
	write_address(ctx, v6, &a->addr, a->port, a->family);
	return SOCKET_BALANCED;
}

static __always_inline int do_connect(struct bpf_sock_addr *ctx, const bool v6)
{
	struct socket_question q = {};
	struct socket_answer a = {};
	__u32 verdict = SOCKET_PASS_PROTOCOL;

	if (ctx->protocol == IPPROTO_TCP || ctx->protocol == IPPROTO_UDP) {
		q.protocol = ctx->protocol;
		read_address(ctx, v6, &q);
		verdict = connect_to(ctx, v6, &q, &a);
	}
	count_forward(SOCKET_CONNECT, verdict, a.service, a.handle);
	return go_on(verdict);
}

static __always_inline __u32 send_to(struct bpf_sock_addr *ctx, const bool v6,
				     struct socket_question *q, struct socket_answer *a)
{
	struct bpf_sock *sk = ctx->sk;
	struct socket_peers *peers;
	struct socket_note *note;

	if (!sk)
		return SOCKET_PASS_NO_SERVICE;
	peers = bpf_sk_storage_get(&socket_peers, sk, NULL, 0);
	if (peers)
		recall(peers, q);
	q->netns = bpf_get_netns_cookie(ctx);
	q->socket = bpf_get_socket_cookie(ctx);
	socket_decide(ctx, true, mark_of(ctx), q, a);
	if (a->verdict != SOCKET_BALANCED) {
		/* A connected IPv6 socket comes here with its IPv4-mapped peer, each time. */
		note = sk->state == BPF_TCP_ESTABLISHED
			       ? NULL
			       : bpf_sk_storage_get(&socket_notes, sk, NULL, 0);
		if (note && is_backend(note, &q->addr, q->port, q->family))
			note->family = FAMILY_NONE;
		if (peers)
			forget(peers, q);
		return a->verdict;
	}
	if (!peers)
		peers = bpf_sk_storage_get(&socket_peers, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!peers)
		return SOCKET_REFUSE_MEMORY;
	remember(peers, q, a);
	write_address(ctx, v6, &a->addr, a->port, a->family);
	return SOCKET_BALANCED;
}

static __always_inline int do_sendmsg(struct bpf_sock_addr *ctx, const bool v6)
{
	struct socket_question q = {};
	struct socket_answer a = {};
	__u32 verdict = SOCKET_PASS_PROTOCOL;

	if (ctx->protocol == IPPROTO_UDP) {
		q.protocol = IPPROTO_UDP;
		read_address(ctx, v6, &q);
		verdict = send_to(ctx, v6, &q, &a);
	}
	count_forward(SOCKET_SENDMSG, verdict, a.service, a.handle);
	return go_on(verdict);
}

/* ---- And back ------------------------------------------------------------------------------- */

/* The service's address in place of the one of its backend that the socket is connected to. */
static __always_inline bool tell_connected(struct bpf_sock_addr *ctx, const bool v6,
					   const struct socket_question *q)
{
	struct bpf_sock *sk = ctx->sk;
	struct socket_note *note = sk ? bpf_sk_storage_get(&socket_notes, sk, NULL, 0) : NULL;
	struct socket_slot *slot;

	if (!note && ctx->protocol == IPPROTO_TCP) {
		slot = slot_find(bpf_get_socket_cookie(ctx));
		note = slot ? &slot->note : NULL;
	}
	if (!note || !is_backend(note, &q->addr, q->port, q->family))
		return false;
	write_address(ctx, v6, &note->vip, note->vip_port, note->family);
	return true;
}

/* The same of one of those that an unconnected socket has sent to. */
static __always_inline bool tell_sent(struct bpf_sock_addr *ctx, const bool v6,
				      const struct socket_question *q)
{
	struct bpf_sock *sk = ctx->sk;
	struct socket_peers *peers = sk ? bpf_sk_storage_get(&socket_peers, sk, NULL, 0) : NULL;

	if (!peers)
		return false;
	for (__u32 i = 0; i < SOCKET_PEERS; i++) {
		struct socket_note *note = &peers->note[i];

		if (is_backend(note, &q->addr, q->port, q->family)) {
			write_address(ctx, v6, &note->vip, note->vip_port, note->family);
			return true;
		}
	}
	return false;
}

static __always_inline bool tell_mptcp(struct bpf_sock_addr *ctx, const bool v6,
				       const struct socket_question *q)
{
	struct socket_mptcp_key key = {
		.netns = bpf_get_netns_cookie(ctx),
		.addr = q->addr,
		.port = q->port,
		.family = q->family,
	};
	const struct socket_mptcp *found = bpf_map_lookup_elem(&socket_mptcp, &key);

	if (found)
		write_address(ctx, v6, &found->vip, found->port, q->family);
	return found;
}

static __always_inline int do_recvmsg(struct bpf_sock_addr *ctx, const bool v6)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct socket_question q = {};
	bool told;

	read_address(ctx, v6, &q);
	told = tell_connected(ctx, v6, &q) || tell_sent(ctx, v6, &q);
	count_call(cpu, SOCKET_RECVMSG, told ? SOCKET_RESTORED : SOCKET_PASS_NO_SERVICE);
	return 1;
}

static __always_inline int do_getpeername(struct bpf_sock_addr *ctx, const bool v6)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct socket_question q = {};
	bool told;

	read_address(ctx, v6, &q);
	told = tell_connected(ctx, v6, &q);
	if (!told && socket_has_mptcp && ctx->protocol == IPPROTO_MPTCP)
		told = tell_mptcp(ctx, v6, &q);
	count_call(cpu, SOCKET_GETPEERNAME, told ? SOCKET_RESTORED : SOCKET_PASS_NO_SERVICE);
	return 1;
}

#define HOOK(name, version)                                   \
	SEC("cgroup/" #name #version)                         \
	int socket_##name##version(struct bpf_sock_addr *ctx) \
	{                                                     \
		return do_##name(ctx, version == 6);          \
	}

HOOK(connect, 4)
HOOK(connect, 6)
HOOK(sendmsg, 4)
HOOK(sendmsg, 6)
HOOK(recvmsg, 4)
HOOK(recvmsg, 6)
HOOK(getpeername, 4)
HOOK(getpeername, 6)

/* ---- The end -------------------------------------------------------------------------------- */

/* A program's last descriptor of a socket is closed. Nothing of it is counted. */
SEC("cgroup/sock_release")
int socket_sock_release(struct bpf_sock *sk)
{
	if (sk->protocol == IPPROTO_TCP)
		slot_leave(bpf_get_socket_cookie(sk));
	return 1;
}

/* ---- The decision alone --------------------------------------------------------------------- */

/* For test runs, since the kernel has none for hooks of cgroups: see struct socket_trial. */
SEC("tc")
int socket_trial(struct __sk_buff *skb)
{
	struct socket_question q = {};
	struct socket_answer a = {};

	if (bpf_skb_load_bytes(skb, SOCKET_QUESTION_AT, &q, sizeof(q)))
		return TC_ACT_SHOT;
	socket_decide(skb, false, 0, &q, &a);
	if (bpf_skb_store_bytes(skb, SOCKET_ANSWER_AT, &a, sizeof(a), 0))
		return TC_ACT_SHOT;
	return TC_ACT_OK;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
