/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Every record that the kernel side hands to user space: the one definition of the wire.
 *
 * collectors/events.py mirrors it field by field; tests/unit/test_abi.py compares the mirror with the objects' BTF.
 * Rules: fixed-width fields, no implicit padding, each record begins with `struct record`, one struct per record, its
 * kind in `enum record_kind`. pid and tid are ids in the PID namespace of the tool that reads them, ns_* are the target's
 * own (innermost) ids, kernel_* are those of the initial namespace. Times `_ns` are CLOCK_MONOTONIC unless they say
 * "scheduler clock".
 */
#ifndef STUCKTRACE_EVENTS_H
#define STUCKTRACE_EVENTS_H

#include "types.h"

/* Keeps a record in the object's BTF when nothing else there names its type. */
#ifdef __BCC__
#define ANCHOR(name)
#else
#define ANCHOR(name) const struct name *anchor_##name __attribute__((unused))
#endif

enum record_kind {
	RECORD_THREAD = 1,
	RECORD_THREAD_STACK = 2,
	RECORD_INFLIGHT = 3,
	RECORD_LIFE = 4,
	RECORD_REGISTERS = 5,
	RECORD_SOCKET = 16,
	RECORD_UNIX_SOCKET = 17,
	RECORD_END = 18,
	RECORD_TROUBLE = 19,
	RECORD_CONNTRACK = 20,
};

struct record {
	__u32 kind;
	__u32 length; /* bytes, this header included */
};

/* One thread, from threads.bpf.c. */
struct thread_record {
	struct record header;
	__u32 pid;
	__u32 tid;
	__u32 ns_pid;
	__u32 ns_tid;
	__u32 kernel_pid;
	__u32 kernel_tid;
	__u32 state; /* task->__state: bits of the kernel's TASK_* */
	__u32 exit_state;
	__u32 on_cpu;
	__s32 syscall; /* number, negative: in no call */
	__u64 args[6];
	__s64 result; /* the register of the call's result: -EINTR or -ERESTART* in a call that a stop interrupted */
	__u64 now_ns;
	__u64 reader_arrival_ns; /* scheduler clock: when the reading thread last got its CPU; ties the two clocks together */
	__u64 slept_at_ns; /* scheduler clock: when it left the CPU */
	__u64 cpu_ns;
	__u64 switches_voluntary;
	__u64 switches_involuntary;
	char name[16];
};

#define STACK_DEPTH 12
#define SYMBOL_BYTES 40

/* The kernel stack of a sleeping thread, innermost first; follows its thread_record. */
struct thread_stack_record {
	struct record header;
	__u32 tid;
	__u32 depth; /* how many symbols are filled */
	char symbols[STACK_DEPTH][SYMBOL_BYTES];
};

#define REGISTER_WORDS 34

/*
 * The user-space registers of a sleeping thread as the kernel saved them when it entered its call, from threads.bpf.c, for
 * a process that is followed with them. Words as in the kernel's pt_regs: x86-64 the first 21, arm64 x0 to x30, sp, pc,
 * pstate. Follows its thread_record.
 */
struct registers_record {
	struct record header;
	__u32 tid;
	__u32 pad;
	__u64 words[REGISTER_WORDS];
};

/* A thread whose wait has lasted longer than its process's limit, from inflight.bpf.c. All times: scheduler clock. */
struct inflight_record {
	struct record header;
	__u32 pid;
	__u32 tid;
	__u32 kernel_tid;
	__s32 syscall;
	__u64 arg0; /* the call's first argument: its fd, mostly */
	__u64 since_ns; /* when this call on this fd was first seen, over any number of short polls */
	__u64 slept_at_ns; /* when the present sleep began */
	__u64 now_ns;
	__u32 on_lock; /* it sleeps, without a timeout, on the word of a mutex that somebody else holds */
	__u32 pad;
};

/* Value of the map `limits` in inflight.bpf.c: a process to watch, by its pid as the tool sees it. */
struct inflight_limit {
	__u64 after_ns; /* a wait is reported from this age on */
	__u64 lock_after_ns; /* a sleep on a mutex from this age on */
	__u32 rests_in_select; /* the main thread: a heartbeat tells how it is there */
	__u32 pad;
};

/* Value of the map `mutes` in inflight.bpf.c: a wait, by the thread's kernel_tid, that was examined and found healthy. */
struct inflight_mute {
	__u64 slept_at_ns; /* this very sleep is not reported again; 0: only until `until_ns` */
	__u64 since_ns; /* nor is this wait ... */
	__u64 until_ns; /* ... before this time */
};

enum life_kind {
	LIFE_EXEC = 1,
	LIFE_FORK = 2,
	LIFE_EXIT = 3,
	LIFE_SIGNAL = 4, /* was sent to it, by `sender` */
	LIFE_OOM = 5, /* the kernel chose it to free memory */
};

/* What happened to a process, from lifecycle.bpf.c. */
struct life_record {
	struct record header;
	__u64 time_ns;
	__u32 kind; /* enum life_kind */
	__u32 pid;
	__u32 parent; /* 0: outside of the tool's namespace */
	__u32 sender; /* 0: the kernel, or outside of the tool's namespace */
	__u32 kernel_pid;
	__u32 signal;
	__s32 status; /* of an exit, as wait(2) tells it */
	__u32 pad;
	char command[16]; /* of an exec: afterwards */
};

/* What one thread did through one call on one fd: key and value of the map in waits.bpf.c, not a stream. */
struct call_key {
	__u32 kernel_pid;
	__u32 kernel_tid;
	__s32 syscall;
	__s32 fd; /* -1: the call has none */
};

struct call_count {
	__u64 returns;
	__u64 moved_bytes;
	__u64 empty; /* returns that achieved nothing: EAGAIN, ETIMEDOUT, EINTR, 0 events */
	__u32 last_error; /* errno of the last failed return, 0: none failed */
	__u32 pad;
};

/* Value of the map `entered` in waits.bpf.c, by the thread's kernel_tid: the call that it is inside of. */
struct entered_call {
	__u32 number;
	__s32 fd; /* its first argument */
	__u32 operation; /* its second, of a futex */
};

/*
 * One fd that is a socket, from sockets.bpf.c. Ages and times `_jiffies` count the kernel's own ticks; `now_jiffies` and
 * `now_ns` are of the same moment. An IPv4 address stands in the first four bytes.
 */
struct socket_record {
	struct record header;
	__u32 pid;
	__u32 fd;
	__u64 inode;
	__u64 now_ns;
	__u64 now_jiffies;
	__u64 bytes_sent;
	__u64 bytes_acked;
	__u64 bytes_received;
	__u32 netns;
	__u16 family;
	__u16 type;
	__u16 protocol;
	__u16 local_port;
	__u16 remote_port;
	__u8 state;
	__u8 keepalive; /* SO_KEEPALIVE is on */
	__u8 local[16];
	__u8 remote[16];
	__u32 send_bytes;
	__u32 receive_bytes; /* of a listener: connections that wait for accept */
	__u32 backlog;
	__s32 soft_error;
	/* TCP but not listening: the rest. */
	__u32 packets_out;
	__u32 send_window_bytes;
	__u32 rto_jiffies;
	__u32 sent_jiffies; /* ages */
	__u32 received_jiffies;
	__u32 acked_jiffies;
	__s32 expires_jiffies; /* of the timer, from now on */
	__u32 user_timeout_ms;
	__u32 keepalive_idle_jiffies; /* 0: the namespace's */
	__u32 keepalive_interval_jiffies;
	__u8 keepalive_count;
	__u8 timer; /* enum socket_timer */
	__u8 retransmits;
	__u8 backoff;
	__u8 probes_out;
	__u8 syn_retries; /* TCP_SYNCNT, 0: the namespace's */
	__u8 ack_pending;
	__u8 netns_keepalive_count;
	__u32 netns_keepalive_idle_jiffies;
	__u32 netns_keepalive_interval_jiffies;
	__u8 netns_syn_retries;
	__u8 netns_retries2;
	__u8 timestamps; /* enum timestamp_unit: its segments carry RFC 7323 time stamps */
	__u8 receive_window_scale;
	__u8 signed_segments; /* 1: TCP-MD5 or TCP-AO */
	__u8 pad[3];
	/* What a segment of this connection looks like now. */
	__u32 snd_una;
	__u32 snd_nxt;
	__u32 rcv_nxt;
	__u32 receive_window_bytes; /* as it was last advertised */
	__u32 timestamp_recent; /* the peer's latest */
	__u32 timestamp_offset; /* what is added to the clock */
	__u32 mark; /* SO_MARK, for routing */
	__s32 bound_interface; /* SO_BINDTODEVICE, or that of a link-local address; 0: any */
};

enum timestamp_unit {
	TIMESTAMPS_NONE = 0,
	TIMESTAMPS_MS = 1,
	TIMESTAMPS_US = 2, /* from 6.7 on, where the route says so */
};

/* As sock_diag numbers them. */
enum socket_timer {
	TIMER_NONE = 0,
	TIMER_RETRANSMIT = 1,
	TIMER_KEEPALIVE = 2,
	TIMER_PERSIST = 4,
};

#define UNIX_NAME_BYTES 112

/* One fd that is a UNIX socket, from sockets.bpf.c. */
struct unix_socket_record {
	struct record header;
	__u32 pid;
	__u32 fd;
	__u64 inode;
	__u64 peer_inode; /* 0: nobody accepted it, or the other end is closed */
	__u32 netns;
	__u16 type;
	__u8 state;
	__u8 has_peer;
	__u32 send_bytes;
	__u32 receive_bytes; /* of a listener: connections that wait for accept */
	__u32 backlog;
	__u32 peer_receive_bytes;
	__u16 name_bytes;
	__u16 peer_name_bytes;
	__u32 pad;
	char name[UNIX_NAME_BYTES];
	char peer_name[UNIX_NAME_BYTES];
};

enum end_kind {
	END_HELD = 1, /* somebody holds this inode */
	END_PEER = 2, /* somebody holds the other end of the socket `of` */
	END_QUEUED = 3, /* the other end waits in the accept queue of this listener, which somebody holds */
};

/* What peers.bpf.c found out about one process. */
struct end_record {
	struct record header;
	__u32 pid;
	__u32 kind; /* enum end_kind */
	__u64 inode;
	__u64 of; /* inode of the socket whose other end it is */
	__u32 state;
	__u32 receive_bytes;
};

/* Key and value of the map `ends` in peers.bpf.c: connections, seen from their other end. */
struct end_key {
	__u8 local[16];
	__u8 remote[16];
	__u16 local_port;
	__u16 remote_port;
};

struct end_wanted {
	__u64 inode;
	__u32 netns; /* 0: in any */
	__u32 pad;
};

/* Key and value of the map `tcp_events` in tcp.bpf.c. */
struct tcp_key {
	__u64 inode;
	__u32 kind; /* enum tcp_kind */
	__u32 detail; /* errno, or the new state */
};

enum tcp_kind {
	TCP_RETRANSMIT = 1,
	TCP_STATE = 2,
	TCP_ERROR = 3,
	TCP_RESET_RECEIVED = 4,
};

struct tcp_count {
	__u64 count;
	__u8 local[16];
	__u8 remote[16];
	__u16 local_port;
	__u16 remote_port;
	__u16 family;
	__u16 pad;
	__u32 process; /* whose connection it is, by its pid in the initial namespace; 0: watched from the start */
	__u32 pad2;
};

/* Trouble on one socket, from trouble.bpf.c: what happened since the record before. */
struct trouble_record {
	struct record header;
	__u64 time_ns;
	__u64 inode;
	__u64 count;
	__u32 kind; /* enum tcp_kind */
	__u32 error; /* errno of a TCP_ERROR */
	__u32 netns;
	__u16 family;
	__u16 local_port;
	__u16 remote_port;
	__u16 pad[3];
	__u8 local[16];
	__u8 remote[16];
};

/* Key of the map `flows` in conntrack.bpf.c: one direction of a connection, as it is called in some namespace. */
struct flow_key {
	__u8 source[16];
	__u8 target[16];
	__u16 source_port;
	__u16 target_port;
};

enum conntrack_kind {
	CONNTRACK_BORN = 1,
	CONNTRACK_GONE = 2,
	CONNTRACK_REFUSED = 3, /* a packet that got no entry, and is dropped: the table is full */
};

enum conntrack_reason {
	GONE_OTHERWISE = 0, /* by the kernel: a reset, a namespace or an address that goes */
	GONE_EVICTED = 1, /* to make room in a full table */
	GONE_ASKED = 2, /* deleted or flushed through netlink */
	GONE_EXPIRED = 3,
};

/* Index of the map `counts` in conntrack.bpf.c. */
enum conntrack_counter {
	COUNT_BORN,
	COUNT_GONE,
	COUNT_EVICTED, /* of these */
	COUNT_REFUSED,
	CONNTRACK_COUNTERS,
};

/* What happened to the entry of a followed connection, from conntrack.bpf.c. */
struct conntrack_record {
	struct record header;
	__u64 time_ns;
	__u32 kind; /* enum conntrack_kind */
	__u32 reason; /* enum conntrack_reason */
	__u32 netns;
	__u32 status; /* IPS_... bits */
	__u16 family;
	__u8 state; /* enum tcp_conntrack */
	__u8 pad[5];
	struct flow_key original;
	struct flow_key reply; /* not the reverse where addresses are translated; of a refusal unknown */
};

#endif
