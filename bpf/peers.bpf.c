// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Who on this node holds the other end of a connection, or the same socket? One walk over every process's fds, for the few
 * sockets that user space asks about. A connection that nobody accepted yet has no fd: it is found in the accept queue of
 * its listener, which has one. A connection behind NAT has other addresses at its other end and is not found.
 */
#include "net_types.h"
#include "events.h"
#include "ids.h"

ANCHOR(end_record);

/* Sockets whose holders are asked for. A worker has tens, an event loop thousands; user space asks in turns beyond that. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, __u8);
} held SEC(".maps");

/* TCP connections on which something waits, as their other end has them. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct end_key);
	__type(value, struct end_wanted);
} ends SEC(".maps");

/* Their ports at the other end: only such listeners' queues are walked. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, __u8);
} end_ports SEC(".maps");

/* UNIX sockets that nobody accepted yet, by inode. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, __u8);
} unaccepted SEC(".maps");

/* Where a walk over an accept queue is. */
struct search {
	struct seq_file *seq;
	void *next; /* request_sock of TCP, sk_buff of UNIX */
	void *end;
	__u64 inode;
	__u32 pid;
};

static __always_inline void normalise(__u8 address[16])
{
	__u32 *words = (__u32 *)address;

	/* ::ffff:a.b.c.d, in network order on a little-endian machine. */
	if (words[0] == 0 && words[1] == 0 && words[2] == 0xffff0000) {
		words[0] = words[3];
		words[2] = 0;
		words[3] = 0;
	}
}

/* The inode of the socket whose other end this is; 0: of none that was asked for. */
static __always_inline __u64 other_end(struct sock *sk)
{
	struct end_key key = {};
	struct end_wanted *wanted;

	key.local_port = BPF_CORE_READ(sk, __sk_common.skc_num);
	key.remote_port = remote_port_of(sk);
	read_addresses(sk, key.local, key.remote);
	normalise(key.local);
	normalise(key.remote);
	wanted = bpf_map_lookup_elem(&ends, &key);
	if (!wanted || (wanted->netns && wanted->netns != netns_of(sk)))
		return 0;
	return wanted->inode;
}

static __always_inline void emit(struct seq_file *seq, __u32 pid, __u32 kind, __u64 inode, __u64 of, struct sock *sk)
{
	struct end_record record = {};
	struct tcp_sock *tp = (void *)sk;
	__u32 unread;

	record.header.kind = RECORD_END;
	record.header.length = sizeof(record);
	record.pid = pid;
	record.kind = kind;
	record.inode = inode;
	record.of = of;
	if (kind != END_HELD) {
		record.state = BPF_CORE_READ(sk, __sk_common.skc_state);
		if (BPF_CORE_READ(sk, __sk_common.skc_family) != AF_UNIX) {
			unread = BPF_CORE_READ(tp, rcv_nxt) - BPF_CORE_READ(tp, copied_seq);
			record.receive_bytes = (__s32)unread < 0 ? 0 : unread;
		}
	}
	bpf_seq_write(seq, &record, sizeof(record));
}

static long tcp_queue_step(__u64 index, void *context)
{
	struct search *search = context;
	struct request_sock *request = search->next;
	struct sock *child;
	__u64 of;

	if (!request)
		return 1;
	child = BPF_CORE_READ(request, sk);
	of = child ? other_end(child) : 0;
	if (of)
		emit(search->seq, search->pid, END_QUEUED, search->inode, of, child);
	search->next = BPF_CORE_READ(request, dl_next);
	return 0;
}

/* A UNIX listener's receive queue holds one empty message for each connection, sent by the socket to be accepted. */
static long unix_queue_step(__u64 index, void *context)
{
	struct search *search = context;
	struct sk_buff *skb = search->next;
	struct sock *child, *client;
	__u64 of;

	if (!skb || (void *)skb == search->end)
		return 1;
	child = BPF_CORE_READ(skb, sk);
	client = child ? BPF_CORE_READ((struct unix_sock *)child, peer) : NULL;
	of = client ? inode_of(client) : 0;
	if (of && bpf_map_lookup_elem(&unaccepted, &of))
		emit(search->seq, search->pid, END_QUEUED, search->inode, of, child);
	search->next = BPF_CORE_READ(skb, next);
	return 0;
}

static __always_inline int look_at_end(struct bpf_iter__task_file *ctx, bool plain)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct sock *sk = sock_of(file);
	struct search search = {};
	__u16 family;
	__u64 inode, of;
	__u32 pid, port;
	__u8 state;

	if (!task || !sk)
		return 0;
	inode = BPF_CORE_READ(file, f_inode, i_ino);
	pid = pid_for_reader(task);
	if (!pid)
		return 0;
	if (bpf_map_lookup_elem(&held, &inode))
		emit(ctx->meta->seq, pid, END_HELD, inode, 0, sk);
	family = BPF_CORE_READ(sk, __sk_common.skc_family);
	state = BPF_CORE_READ(sk, __sk_common.skc_state);
	search.seq = ctx->meta->seq;
	search.inode = inode;
	search.pid = pid;
	if (family == AF_UNIX) {
		if (state != TCP_LISTEN)
			return 0;
		search.next = BPF_CORE_READ(sk, sk_receive_queue.next);
		search.end = (void *)sk + bpf_core_field_offset(struct sock, sk_receive_queue);
		walk(plain, unix_queue_step, &search);
		return 0;
	}
	if ((family != AF_INET && family != AF_INET6) || BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	if (state == TCP_LISTEN) {
		port = BPF_CORE_READ(sk, __sk_common.skc_num);
		if (!bpf_map_lookup_elem(&end_ports, &port))
			return 0;
		search.next = BPF_CORE_READ((struct inet_connection_sock *)sk, icsk_accept_queue.rskq_accept_head);
		walk(plain, tcp_queue_step, &search);
		return 0;
	}
	of = other_end(sk);
	if (of && of != inode)
		emit(ctx->meta->seq, pid, END_PEER, inode, of, sk);
	return 0;
}

SEC("iter/task_file")
int peers(struct bpf_iter__task_file *ctx)
{
	return look_at_end(ctx, false);
}

SEC("iter/task_file")
int peers_plain(struct bpf_iter__task_file *ctx)
{
	return look_at_end(ctx, true);
}
