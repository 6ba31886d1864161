// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Which sockets of the watched processes retransmit, change state, get an error or a reset during the window?
 *
 * Retransmissions, errors and resets come in interrupt context, where the current process is a stranger: the socket's
 * inode says whose it is. A storm on one socket is one entry with a count. A hook that a kernel does not have is left out.
 * Only the first argument is used, the socket: tcp_retransmit_skb got another last one in 6.18.
 */
#include "net_types.h"
#include "events.h"
#include "hook.h"
#include "lost.h"
#include "maps.h"

ANCHOR(tcp_key);
ANCHOR(tcp_count);

/* Sockets to report, by inode: those held when the window began (0), and those that connect within it (by whom). */
MAP_HASH_SPARSE(watched_sockets, __u64, __u32, 65536);

/* Processes whose new connections are watched too, by their pid in the initial namespace. */
MAP_HASH_SPARSE(watched_processes, __u32, __u8, 4096);

/* A few kinds of events on the sockets that have any; what does not fit is counted as lost. */
MAP_HASH(tcp_events, struct tcp_key, struct tcp_count, 16384);

static __always_inline void count(struct sock *sk, __u32 kind, __u32 detail)
{
	struct tcp_key key = {.kind = kind, .detail = detail};
	struct tcp_count *known, fresh = {};
	__u32 *process;

	key.inode = inode_of(sk);
	process = key.inode ? bpf_map_lookup_elem(&watched_sockets, &key.inode) : NULL;
	if (!process)
		return;
	known = bpf_map_lookup_elem(&tcp_events, &key);
	if (known) {
		__sync_fetch_and_add(&known->count, 1);
		return;
	}
	fresh.count = 1;
	fresh.process = *process;
	fresh.family = BPF_CORE_READ(sk, __sk_common.skc_family);
	fresh.local_port = BPF_CORE_READ(sk, __sk_common.skc_num);
	fresh.remote_port = remote_port_of(sk);
	read_addresses(sk, fresh.local, fresh.remote);
	if (bpf_map_update_elem(&tcp_events, &key, &fresh, BPF_NOEXIST)) {
		/* Another CPU was first, or the map is full. */
		known = bpf_map_lookup_elem(&tcp_events, &key);
		if (known)
			__sync_fetch_and_add(&known->count, 1);
		else
			count_lost();
	}
}

HOOK(on_retransmit, tcp_retransmit_skb)
{
	count((struct sock *)ctx[0], TCP_RETRANSMIT, 0);
	return 0;
}

HOOK(on_state, inet_sock_set_state)
{
	struct sock *sk = (struct sock *)ctx[0];
	__u32 state = (__u32)ctx[2], process;
	__u64 inode;

	if (protocol_of(sk) != IPPROTO_TCP)
		return 0;
	/* This one change is made by the process itself. */
	if (state == TCP_SYN_SENT) {
		process = bpf_get_current_pid_tgid() >> 32;
		if (bpf_map_lookup_elem(&watched_processes, &process)) {
			inode = inode_of(sk);
			bpf_map_update_elem(&watched_sockets, &inode, &process, BPF_NOEXIST);
		}
	}
	count(sk, TCP_STATE, state);
	return 0;
}

HOOK(on_error, inet_sk_error_report)
{
	struct sock *sk = (struct sock *)ctx[0];

	if (protocol_of(sk) == IPPROTO_TCP)
		count(sk, TCP_ERROR, BPF_CORE_READ(sk, sk_err));
	return 0;
}

HOOK(on_reset, tcp_receive_reset)
{
	count((struct sock *)ctx[0], TCP_RESET_RECEIVED, 0);
	return 0;
}
