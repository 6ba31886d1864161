// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Which sockets do the followed processes hold, and what does the kernel know of each: addresses, timers, retransmissions,
 * queues, keepalive? An iterator over their fds reads it out of struct sock: no lock is taken, nothing is duplicated, and
 * the network namespace does not matter.
 */
#include "net_types.h"
#include "events.h"
#include "followed.h"
#include "ids.h"

ANCHOR(socket_record);
ANCHOR(unix_socket_record);

/* Too large for the BPF stack. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct unix_socket_record);
} unix_scratch SEC(".maps");

/* Where the sum over a receive queue is. */
struct sum {
	struct sk_buff *next;
	void *end;
	__u64 bytes;
	__u64 only_one;
};

static __always_inline bool timer_pending(struct timer_list *timer)
{
	return BPF_CORE_READ(timer, entry.pprev) != NULL;
}

static __always_inline struct timer_list *retransmit_timer(struct tcp_sock *tp)
{
	struct sock___from_6_19 *sk = (void *)tp;

	if (bpf_core_field_exists(sk->tcp_retransmit_timer))
		return &sk->tcp_retransmit_timer;
	return &tp->inet_conn.icsk_retransmit_timer;
}

static __always_inline struct timer_list *keepalive_timer(struct tcp_sock *tp)
{
	struct inet_connection_sock___from_6_19 *icsk = (void *)tp;

	if (bpf_core_field_exists(icsk->icsk_keepalive_timer))
		return &icsk->icsk_keepalive_timer;
	return &((struct sock *)tp)->sk_timer;
}

static __always_inline void read_timer(struct socket_record *record, struct tcp_sock *tp, __u64 now)
{
	struct timer_list *timer = retransmit_timer(tp);

	switch (BPF_CORE_READ(tp, inet_conn.icsk_pending)) {
	case ICSK_TIME_RETRANS:
	case ICSK_TIME_LOSS_PROBE:
	case ICSK_TIME_REO_TIMEOUT:
		record->timer = TIMER_RETRANSMIT;
		break;
	case ICSK_TIME_PROBE0:
		record->timer = TIMER_PERSIST;
		break;
	default:
		timer = keepalive_timer(tp);
		if (!timer_pending(timer))
			return;
		record->timer = TIMER_KEEPALIVE;
	}
	record->expires_jiffies = (__s32)(BPF_CORE_READ(timer, expires) - now);
}

static __always_inline void read_sequence(struct socket_record *record, struct tcp_sock *tp)
{
	struct tcp_sock___from_6_7 *newer = (void *)tp;
	struct tcp_sock___signs *signs = (void *)tp;
	__s32 window = BPF_CORE_READ(tp, rcv_wup) + BPF_CORE_READ(tp, rcv_wnd) - BPF_CORE_READ(tp, rcv_nxt);

	record->snd_una = BPF_CORE_READ(tp, snd_una);
	record->snd_nxt = BPF_CORE_READ(tp, snd_nxt);
	record->rcv_nxt = BPF_CORE_READ(tp, rcv_nxt);
	record->receive_window_bytes = window > 0 ? window : 0;
	record->receive_window_scale = BPF_CORE_READ_BITFIELD_PROBED(tp, rx_opt.rcv_wscale);
	if (bpf_core_field_exists(signs->md5sig_info) && BPF_CORE_READ(signs, md5sig_info))
		record->signed_segments = 1;
	if (bpf_core_field_exists(signs->ao_info) && BPF_CORE_READ(signs, ao_info))
		record->signed_segments = 1;
	if (!BPF_CORE_READ_BITFIELD_PROBED(tp, rx_opt.tstamp_ok))
		return;
	record->timestamps = TIMESTAMPS_MS;
	if (bpf_core_field_exists(newer->tcp_usec_ts) && BPF_CORE_READ_BITFIELD_PROBED(newer, tcp_usec_ts))
		record->timestamps = TIMESTAMPS_US;
	record->timestamp_recent = BPF_CORE_READ(tp, rx_opt.ts_recent);
	record->timestamp_offset = BPF_CORE_READ(tp, tsoffset);
}

static __always_inline void read_tcp(struct socket_record *record, struct tcp_sock *tp, struct net *net, __u64 now)
{
	struct inet_connection_sock *icsk = (void *)tp;

	record->send_bytes = BPF_CORE_READ(tp, write_seq) - BPF_CORE_READ(tp, snd_una);
	record->receive_bytes = BPF_CORE_READ(tp, rcv_nxt) - BPF_CORE_READ(tp, copied_seq);
	if ((__s32)record->receive_bytes < 0)
		record->receive_bytes = 0;
	record->bytes_sent = BPF_CORE_READ(tp, bytes_sent);
	record->bytes_acked = BPF_CORE_READ(tp, bytes_acked);
	record->bytes_received = BPF_CORE_READ(tp, bytes_received);
	record->packets_out = BPF_CORE_READ(tp, packets_out);
	record->send_window_bytes = BPF_CORE_READ(tp, snd_wnd);
	record->rto_jiffies = BPF_CORE_READ(icsk, icsk_rto);
	record->sent_jiffies = (__u32)now - BPF_CORE_READ(tp, lsndtime);
	record->received_jiffies = (__u32)now - BPF_CORE_READ(icsk, icsk_ack.lrcvtime);
	record->acked_jiffies = (__u32)now - BPF_CORE_READ(tp, rcv_tstamp);
	record->user_timeout_ms = BPF_CORE_READ(icsk, icsk_user_timeout);
	record->keepalive_idle_jiffies = BPF_CORE_READ(tp, keepalive_time);
	record->keepalive_interval_jiffies = BPF_CORE_READ(tp, keepalive_intvl);
	record->keepalive_count = BPF_CORE_READ(tp, keepalive_probes);
	record->retransmits = BPF_CORE_READ(icsk, icsk_retransmits);
	record->backoff = BPF_CORE_READ(icsk, icsk_backoff);
	record->probes_out = BPF_CORE_READ(icsk, icsk_probes_out);
	record->syn_retries = BPF_CORE_READ(icsk, icsk_syn_retries);
	record->ack_pending = (BPF_CORE_READ(icsk, icsk_ack.pending) & (ICSK_ACK_SCHED | ICSK_ACK_TIMER)) != 0;
	if (net) {
		record->netns_keepalive_idle_jiffies = BPF_CORE_READ(net, ipv4.sysctl_tcp_keepalive_time);
		record->netns_keepalive_interval_jiffies = BPF_CORE_READ(net, ipv4.sysctl_tcp_keepalive_intvl);
		record->netns_keepalive_count = BPF_CORE_READ(net, ipv4.sysctl_tcp_keepalive_probes);
		record->netns_syn_retries = BPF_CORE_READ(net, ipv4.sysctl_tcp_syn_retries);
		record->netns_retries2 = BPF_CORE_READ(net, ipv4.sysctl_tcp_retries2);
	}
	read_timer(record, tp, now);
	read_sequence(record, tp);
}

static __always_inline void emit_other(struct seq_file *seq, struct sock *sk, __u32 pid, __u32 fd, __u64 inode)
{
	struct socket_record record = {};
	struct net *net = BPF_CORE_READ(sk, __sk_common.skc_net.net);
	struct tcp_sock *tp;

	record.header.kind = RECORD_SOCKET;
	record.header.length = sizeof(record);
	record.pid = pid;
	record.fd = fd;
	record.inode = inode;
	record.now_ns = bpf_ktime_get_ns();
	record.now_jiffies = bpf_jiffies64();
	record.netns = net ? BPF_CORE_READ(net, ns.inum) : 0;
	record.family = BPF_CORE_READ(sk, __sk_common.skc_family);
	record.type = BPF_CORE_READ(sk, sk_type);
	record.protocol = BPF_CORE_READ(sk, sk_protocol);
	record.state = BPF_CORE_READ(sk, __sk_common.skc_state);
	record.soft_error = BPF_CORE_READ(sk, sk_err_soft);
	record.mark = BPF_CORE_READ(sk, sk_mark);
	record.bound_interface = BPF_CORE_READ(sk, __sk_common.skc_bound_dev_if);
	if (record.family == AF_INET || record.family == AF_INET6) {
		read_addresses(sk, record.local, record.remote);
		record.local_port = BPF_CORE_READ(sk, __sk_common.skc_num);
		record.remote_port = __builtin_bswap16(BPF_CORE_READ(sk, __sk_common.skc_dport));
		record.keepalive =
			BPF_CORE_READ(sk, __sk_common.skc_flags) >> bpf_core_enum_value(enum sock_flags, SOCK_KEEPOPEN) & 1;
		tp = record.protocol == IPPROTO_TCP && record.type == SOCK_STREAM ? (struct tcp_sock *)sk : NULL;
		if (record.state == TCP_LISTEN && record.protocol == IPPROTO_TCP) {
			record.receive_bytes = BPF_CORE_READ(sk, sk_ack_backlog);
			record.backlog = BPF_CORE_READ(sk, sk_max_ack_backlog);
		} else if (tp) {
			read_tcp(&record, tp, net, record.now_jiffies);
		} else {
			record.receive_bytes = BPF_CORE_READ(sk, sk_backlog.rmem_alloc.counter);
			record.send_bytes = BPF_CORE_READ(sk, sk_wmem_alloc.refs.counter) - 1;
		}
	}
	bpf_seq_write(seq, &record, sizeof(record));
}

static long add_unread(__u64 index, void *context)
{
	struct sum *sum = context;
	struct sk_buff *skb = sum->next;
	__u32 consumed = 0;

	if (!skb || (void *)skb == sum->end)
		return 1;
	if (bpf_core_field_exists(struct unix_skb_parms, consumed))
		bpf_probe_read_kernel(&consumed, sizeof(consumed),
				      (void *)skb + bpf_core_field_offset(struct sk_buff, cb) +
					      bpf_core_field_offset(struct unix_skb_parms, consumed));
	sum->bytes += BPF_CORE_READ(skb, len) - consumed;
	sum->next = BPF_CORE_READ(skb, next);
	return sum->only_one;
}

/* What waits to be read: of a stream all of it, of datagrams the next one. */
static __always_inline __u32 unix_unread(struct sock *sk, bool plain)
{
	struct unix_sock___from_6_18 *counted = (void *)sk;
	__u16 type = BPF_CORE_READ(sk, sk_type);
	struct sum sum = {};

	if (type == SOCK_STREAM && bpf_core_field_exists(counted->inq_len))
		return BPF_CORE_READ(counted, inq_len);
	sum.next = BPF_CORE_READ(sk, sk_receive_queue.next);
	sum.end = (void *)sk + bpf_core_field_offset(struct sock, sk_receive_queue);
	sum.only_one = type == SOCK_DGRAM;
	walk(plain, add_unread, &sum);
	return sum.bytes;
}

/* sun_path: its address record begins with the family. */
static __always_inline __u16 read_name(struct sock *sk, char name[UNIX_NAME_BYTES])
{
	struct unix_address *address = BPF_CORE_READ((struct unix_sock *)sk, addr);
	int length;

	if (!address)
		return 0;
	length = BPF_CORE_READ(address, len) - (int)sizeof(__u16);
	if (length <= 0)
		return 0;
	if (length > 108)
		length = 108;
	bpf_probe_read_kernel(name, 108, (void *)address + bpf_core_field_offset(struct unix_address, name) + 2);
	return length;
}

static __always_inline void emit_unix(struct seq_file *seq, struct sock *sk, __u32 pid, __u32 fd, __u64 inode, bool plain)
{
	struct unix_socket_record *record;
	struct sock *peer;
	__u32 zero = 0;

	record = bpf_map_lookup_elem(&unix_scratch, &zero);
	if (!record)
		return;
	record->header.kind = RECORD_UNIX_SOCKET;
	record->header.length = sizeof(*record);
	record->pid = pid;
	record->fd = fd;
	record->inode = inode;
	record->netns = netns_of(sk);
	record->type = BPF_CORE_READ(sk, sk_type);
	record->state = BPF_CORE_READ(sk, __sk_common.skc_state);
	record->peer_inode = 0;
	record->peer_receive_bytes = 0;
	record->peer_name_bytes = 0;
	record->backlog = 0;
	record->send_bytes = 0;
	record->name_bytes = read_name(sk, record->name);
	if (record->state == TCP_LISTEN) {
		record->has_peer = 0;
		record->receive_bytes = BPF_CORE_READ(sk, sk_receive_queue.qlen);
		record->backlog = BPF_CORE_READ(sk, sk_max_ack_backlog);
	} else {
		record->receive_bytes = unix_unread(sk, plain);
		record->send_bytes = BPF_CORE_READ(sk, sk_wmem_alloc.refs.counter) - 1;
		peer = BPF_CORE_READ((struct unix_sock *)sk, peer);
		record->has_peer = peer != NULL;
		if (peer) {
			record->peer_inode = inode_of(peer);
			record->peer_receive_bytes = unix_unread(peer, plain);
			record->peer_name_bytes = read_name(peer, record->peer_name);
		}
	}
	bpf_seq_write(seq, record, sizeof(*record));
}

static __always_inline int look_at_socket(struct bpf_iter__task_file *ctx, bool plain)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct sock *sk = sock_of(file);
	__u64 inode;
	__u32 pid;

	if (!task || !sk)
		return 0;
	pid = pid_for_reader(task);
	if (!pid || !is_followed(pid))
		return 0;
	inode = BPF_CORE_READ(file, f_inode, i_ino);
	if (BPF_CORE_READ(sk, __sk_common.skc_family) == AF_UNIX)
		emit_unix(ctx->meta->seq, sk, pid, ctx->fd, inode, plain);
	else
		emit_other(ctx->meta->seq, sk, pid, ctx->fd, inode);
	return 0;
}

SEC("iter/task_file")
int sockets(struct bpf_iter__task_file *ctx)
{
	return look_at_socket(ctx, false);
}

SEC("iter/task_file")
int sockets_plain(struct bpf_iter__task_file *ctx)
{
	return look_at_socket(ctx, true);
}
