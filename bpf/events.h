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
#define ANCHOR(name) const struct name *anchor_##name __attribute__((unused))

enum record_kind {
	RECORD_THREAD = 1,
	RECORD_STACK = 2,
	/* 16-31: sockets and their peers. */
	/* 32-47: tcp events. */
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
struct stack_record {
	struct record header;
	__u32 tid;
	__u32 depth; /* how many symbols are filled */
	char symbols[STACK_DEPTH][SYMBOL_BYTES];
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

#endif
