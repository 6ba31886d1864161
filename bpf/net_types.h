/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The kernel's types of files and sockets, cut down to the fields that are read; see types.h for how this works.
 */
#ifndef STUCKTRACE_NET_TYPES_H
#define STUCKTRACE_NET_TYPES_H

#include "types.h"

#ifdef __BCC__
/*
 * Left out is the kernel's header of BPF itself: from 6.2 on it needs types of the uapi header that comes with bcc, in which
 * an older bcc (0.26) lacks them. Before that others need it.
 */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 2, 0)
#define _LINUX_BPF_H
#endif
#include <net/sock.h>
#include <net/tcp_states.h>
#define HAS_IPV6 IS_ENABLED(CONFIG_IPV6)

#else

#define HAS_IPV6 1 /* asked for by its field */
#define AF_UNIX 1
#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_TCP 6
#define SOCK_STREAM 1
#define SOCK_DGRAM 2

enum tcp_state {
	TCP_ESTABLISHED = 1,
	TCP_SYN_SENT = 2,
	TCP_SYN_RECV = 3,
	TCP_LISTEN = 10,
	TCP_NEW_SYN_RECV = 12,
};

/* icsk_pending: what the retransmission timer is armed for. */
enum icsk_timer {
	ICSK_TIME_RETRANS = 1,
	ICSK_TIME_PROBE0 = 3,
	ICSK_TIME_LOSS_PROBE = 5,
	ICSK_TIME_REO_TIMEOUT = 6,
};

enum inet_csk_ack_state_t {
	ICSK_ACK_SCHED = 1,
	ICSK_ACK_TIMER = 2,
};

struct super_block {
	unsigned long s_magic;
} CORE;

struct inode {
	__u16 i_mode;
	struct super_block *i_sb;
	unsigned long i_ino;
} CORE;

struct file {
	struct inode *f_inode;
	void *private_data;
} CORE;

struct hlist_node {
	struct hlist_node **pprev;
} CORE;

struct timer_list {
	struct hlist_node entry;
	unsigned long expires;
} CORE;

/* The narrow ones were ints before 5.15 or so: they are loaded in the width that the running kernel has. */
struct netns_ipv4 {
	int sysctl_tcp_keepalive_time;
	int sysctl_tcp_keepalive_intvl;
	__u8 sysctl_tcp_keepalive_probes;
	__u8 sysctl_tcp_syn_retries;
	__u8 sysctl_tcp_retries2;
} CORE;

struct net {
	struct ns_common ns;
	struct netns_ipv4 ipv4;
} CORE;

typedef struct {
	struct net *net;
} CORE possible_net_t;

struct in6_addr {
	__u8 bytes[16];
};

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	int skc_bound_dev_if;
	unsigned long skc_flags;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
} CORE;

enum sock_flags {
	SOCK_KEEPOPEN = 3,
};

typedef struct {
	atomic_t refs;
} CORE refcount_t;

struct sock;

struct sk_buff {
	struct sk_buff *next;
	struct sock *sk;
	char cb[48];
	unsigned int len;
} CORE;

struct unix_skb_parms {
	__u32 consumed;
} CORE;

struct sk_buff_head {
	struct sk_buff *next;
	__u32 qlen;
} CORE;

struct socket {
	struct sock *sk;
} CORE;

struct socket_alloc {
	struct socket socket;
	struct inode vfs_inode;
} CORE;

struct sock {
	struct sock_common __sk_common;
	struct sk_buff_head sk_receive_queue;
	struct {
		atomic_t rmem_alloc;
	} sk_backlog;
	refcount_t sk_wmem_alloc;
	struct timer_list sk_timer;
	struct socket *sk_socket;
	int sk_err;
	int sk_err_soft;
	__u16 sk_protocol;
	__u16 sk_type;
	__u32 sk_ack_backlog;
	__u32 sk_max_ack_backlog;
	__u32 sk_mark;
} CORE;

/* From 6.19 on TCP's retransmission timer is the socket's own. */
struct sock___from_6_19 {
	struct timer_list tcp_retransmit_timer;
} CORE;

struct inet_sock {
	struct sock sk;
} CORE;

struct request_sock {
	struct request_sock *dl_next;
	struct sock *sk;
} CORE;

struct request_sock_queue {
	struct request_sock *rskq_accept_head;
} CORE;

struct inet_connection_sock {
	struct inet_sock icsk_inet;
	struct request_sock_queue icsk_accept_queue;
	struct timer_list icsk_retransmit_timer;
	__u32 icsk_rto;
	__u8 icsk_retransmits;
	__u8 icsk_pending;
	__u8 icsk_backoff;
	__u8 icsk_syn_retries;
	__u8 icsk_probes_out;
	struct {
		__u8 pending;
		__u32 lrcvtime;
	} icsk_ack;
	__u32 icsk_user_timeout;
} CORE;

struct inet_connection_sock___from_6_19 {
	struct timer_list icsk_keepalive_timer;
} CORE;

struct tcp_options_received {
	__u32 ts_recent;
	__u16 tstamp_ok : 1, rcv_wscale : 4;
} CORE;

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	struct tcp_options_received rx_opt;
	__u32 snd_nxt;
	__u32 rcv_wup;
	__u32 rcv_wnd;
	__u32 tsoffset;
	__u32 snd_wnd;
	__u32 copied_seq;
	__u64 bytes_sent;
	__u32 write_seq;
	__u32 lsndtime;
	__u32 rcv_nxt;
	__u32 snd_una;
	__u32 packets_out;
	__u32 rcv_tstamp;
	__u64 bytes_received;
	__u64 bytes_acked;
	__u8 keepalive_probes;
	unsigned int keepalive_time;
	unsigned int keepalive_intvl;
} CORE;

struct tcp_sock___from_6_7 {
	__u8 tcp_usec_ts : 1;
} CORE;

/* As the kernel is configured: TCP-MD5, and from 6.7 on TCP-AO. */
struct tcp_sock___signs {
	void *md5sig_info;
	void *ao_info;
} CORE;

struct sockaddr_un {
	unsigned short sun_family;
	char sun_path[108];
};

struct unix_address {
	int len;
	struct sockaddr_un name[0];
} CORE;

struct unix_sock {
	struct sock sk;
	struct unix_address *addr;
	struct sock *peer;
} CORE;

/* From 6.18 on a stream counts what waits to be read. */
struct unix_sock___from_6_18 {
	int inq_len;
} CORE;

/*
 * Follows a list of the kernel's: `step` is called until it returns 1, or this often. Kernels before 5.17 have no bpf_loop,
 * and their verifier follows every step of a plain loop: there a list is followed for fewer steps. Those before 5.13 refuse
 * a program that names a function to call back, so whoever walks is there twice, as NAME and NAME_plain.
 */
#define WALK_STEPS 4096
#define WALK_STEPS_PLAIN 32

static __always_inline void walk(bool plain, long (*step)(__u64, void *), void *context)
{
	if (!plain) {
		bpf_loop(WALK_STEPS, step, context, 0);
		return;
	}
	for (int i = 0; i < WALK_STEPS_PLAIN; i++)
		if (step(i, context))
			return;
}

#define SOCKFS_MAGIC 0x534f434b
#define S_IFMT 0xf000
#define S_IFSOCK 0xc000

/* NULL: the file is no socket. To be read with BPF_CORE_READ: before 5.11 no helper tells, and the verifier does not know. */
static __always_inline struct sock *sock_of(struct file *file)
{
	struct socket *socket = NULL;

	if (!file)
		return NULL;
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_sock_from_file))
		socket = bpf_sock_from_file(file);
	else if ((BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT) == S_IFSOCK &&
		 BPF_CORE_READ(file, f_inode, i_sb, s_magic) == SOCKFS_MAGIC)
		socket = BPF_CORE_READ(file, private_data);
	return socket ? BPF_CORE_READ(socket, sk) : NULL;
}

#endif

/* Programs of tp_btf and iterators follow typed pointers themselves; elsewhere a read is a copy. */
static __always_inline __u64 inode_of(struct sock *sk)
{
	struct socket *socket = BPF_CORE_READ(sk, sk_socket);
	struct inode *inode;

	/* Closed by its holder, or not accepted yet. */
	if (!socket)
		return 0;
	inode = (void *)socket + bpf_core_field_offset(struct socket_alloc, vfs_inode);
	return BPF_CORE_READ(inode, i_ino);
}

static __always_inline __u32 protocol_of(struct sock *sk)
{
#if defined(__BCC__) && LINUX_VERSION_CODE < KERNEL_VERSION(5, 6, 0)
	/* A field of bits, which has no address; what follows it has one. */
	__u8 protocol = 0;

	bpf_probe_read_kernel(&protocol, 1, (void *)sk + __builtin_offsetof(struct sock, sk_gso_max_segs) - 3);
	return protocol;
#else
	return BPF_CORE_READ(sk, sk_protocol);
#endif
}

static __always_inline __u32 netns_of(struct sock *sk)
{
	return BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
}

/* Both addresses, the way user space compares them: IPv4 in the first four bytes, also of a dual-stack socket. */
static __always_inline void read_addresses(struct sock *sk, __u8 local[16], __u8 remote[16])
{
	__u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);

#if HAS_IPV6
	if (family == AF_INET6 && bpf_core_field_exists(sk->__sk_common.skc_v6_daddr)) {
		bpf_core_read(local, 16, &sk->__sk_common.skc_v6_rcv_saddr);
		bpf_core_read(remote, 16, &sk->__sk_common.skc_v6_daddr);
		return;
	}
#endif
	bpf_core_read(local, 4, &sk->__sk_common.skc_rcv_saddr);
	bpf_core_read(remote, 4, &sk->__sk_common.skc_daddr);
}

static __always_inline __u16 remote_port_of(struct sock *sk)
{
	return __builtin_bswap16(BPF_CORE_READ(sk, __sk_common.skc_dport));
}

#endif
