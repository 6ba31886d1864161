// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Which TCP sockets of the node, in any network namespace, are in trouble: a retransmission, an error, a reset? The first
 * sign of it at once, then at most one record a second for each socket, with a count: user space asks whose the socket is.
 *
 * All of it comes in interrupt context, where the current process is a stranger. A socket without an inode (closed by its
 * holder, or not accepted yet) is nobody's and is left out, and so is a refused connection, whose caller knows at once. Of
 * the arguments only the first is used, the socket.
 */
#include "net_types.h"
#include "events.h"
#include "hook.h"
#include "ring.h"
#include "maps.h"

ANCHOR(trouble_record);

#define SECOND_NS 1000000000ULL
/* Between two records of a socket, and after so long it is another outage. */
#define PAUSE_NS SECOND_NS
#define OVER_NS (60 * SECOND_NS)
#define ECONNREFUSED 111

/* What was counted on one socket. Its events come one after the other, for its lock is held. */
struct outage {
	__u64 count;
	__u64 reported;
	__u64 at_ns; /* of the last record */
};

/* Where more sockets are in trouble at once, the oldest begin anew: one record more for each. */
MAP_LRU_HASH(outages, struct tcp_key, struct outage, 16384);

static __always_inline void report(void *ctx, struct sock *sk, __u32 kind, __u32 error)
{
	struct tcp_key key = {.kind = kind, .detail = error};
	struct trouble_record record = {};
	struct outage *outage, fresh = {};
	bool begins;

	key.inode = inode_of(sk);
	if (!key.inode)
		return;
	outage = bpf_map_lookup_elem(&outages, &key);
	if (!outage) {
		bpf_map_update_elem(&outages, &key, &fresh, BPF_NOEXIST);
		outage = bpf_map_lookup_elem(&outages, &key);
	}
	if (!outage) {
		count_lost();
		return;
	}
	outage->count++;
	record.time_ns = bpf_ktime_get_ns();
	if (outage->at_ns && record.time_ns - outage->at_ns < PAUSE_NS)
		return;
	record.header.kind = RECORD_TROUBLE;
	record.header.length = sizeof(record);
	record.inode = key.inode;
	record.count = outage->count - outage->reported;
	record.kind = kind;
	record.error = error;
	record.netns = netns_of(sk);
	record.family = BPF_CORE_READ(sk, __sk_common.skc_family);
	record.local_port = BPF_CORE_READ(sk, __sk_common.skc_num);
	record.remote_port = remote_port_of(sk);
	read_addresses(sk, record.local, record.remote);
	begins = !outage->at_ns || record.time_ns - outage->at_ns > OVER_NS;
	if (emit_record(ctx, &record, sizeof(record), kind == TCP_RETRANSMIT && begins)) {
		outage->reported = outage->count;
		outage->at_ns = record.time_ns;
	}
}

HOOK(on_retransmit, tcp_retransmit_skb)
{
	report(ctx, (struct sock *)ctx[0], TCP_RETRANSMIT, 0);
	return 0;
}

HOOK(on_error, inet_sk_error_report)
{
	struct sock *sk = (struct sock *)ctx[0];
	int error = BPF_CORE_READ(sk, sk_err);

	/* A disconnect by the holder wakes its waiters the same way, without an error. */
	if (error && error != ECONNREFUSED && protocol_of(sk) == IPPROTO_TCP)
		report(ctx, sk, TCP_ERROR, error);
	return 0;
}

HOOK(on_reset, tcp_receive_reset)
{
	struct sock *sk = (struct sock *)ctx[0];

	if (BPF_CORE_READ(sk, __sk_common.skc_state) != TCP_SYN_SENT)
		report(ctx, sk, TCP_RESET_RECEIVED, 0);
	return 0;
}
