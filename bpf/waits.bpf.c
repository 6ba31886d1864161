// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What did the threads of the watched processes achieve during the sampling window? Every return of a call that waits or
 * moves bytes is counted per thread, call and fd. What is in flight right now needs no hook: the iterator sees that.
 *
 * One program at the exit of system calls. While it is attached every process pays the kernel's slow path for system
 * calls and one or two table look-ups; so it is attached for a window only.
 */
#include "types.h"
#include "events.h"
#include "hook.h"
#include "lost.h"
#include "maps.h"

ANCHOR(call_key);
ANCHOR(call_count);

enum call_kind {
	NOT_COUNTED,
	MOVES_BYTES, /* fd first, the result is a number of bytes */
	ON_FD, /* fd first */
	ON_NOTHING, /* no fd, or several */
	ON_FUTEX,
	YIELDS,
};

#define CALLS 512

static const __u8 kinds[CALLS] = {
#if defined(__TARGET_ARCH_x86)
	[0 /* read */] = MOVES_BYTES,	    [1 /* write */] = MOVES_BYTES,
	[19 /* readv */] = MOVES_BYTES,	    [20 /* writev */] = MOVES_BYTES,
	[44 /* sendto */] = MOVES_BYTES,    [45 /* recvfrom */] = MOVES_BYTES,
	[46 /* sendmsg */] = MOVES_BYTES,   [47 /* recvmsg */] = MOVES_BYTES,
	[42 /* connect */] = ON_FD,	    [43 /* accept */] = ON_FD,
	[288 /* accept4 */] = ON_FD,	    [232 /* epoll_wait */] = ON_FD,
	[281 /* epoll_pwait */] = ON_FD,    [441 /* epoll_pwait2 */] = ON_FD,
	[7 /* poll */] = ON_NOTHING,	    [23 /* select */] = ON_NOTHING,
	[270 /* pselect6 */] = ON_NOTHING,  [271 /* ppoll */] = ON_NOTHING,
	[35 /* nanosleep */] = ON_NOTHING,  [230 /* clock_nanosleep */] = ON_NOTHING,
	[202 /* futex */] = ON_FUTEX,	    [24 /* sched_yield */] = YIELDS,
#elif defined(__TARGET_ARCH_arm64)
	[63 /* read */] = MOVES_BYTES,	    [64 /* write */] = MOVES_BYTES,
	[65 /* readv */] = MOVES_BYTES,	    [66 /* writev */] = MOVES_BYTES,
	[206 /* sendto */] = MOVES_BYTES,   [207 /* recvfrom */] = MOVES_BYTES,
	[211 /* sendmsg */] = MOVES_BYTES,  [212 /* recvmsg */] = MOVES_BYTES,
	[203 /* connect */] = ON_FD,	    [202 /* accept */] = ON_FD,
	[242 /* accept4 */] = ON_FD,	    [22 /* epoll_pwait */] = ON_FD,
	[441 /* epoll_pwait2 */] = ON_FD,   [72 /* pselect6 */] = ON_NOTHING,
	[73 /* ppoll */] = ON_NOTHING,	    [101 /* nanosleep */] = ON_NOTHING,
	[115 /* clock_nanosleep */] = ON_NOTHING,
	[98 /* futex */] = ON_FUTEX,	    [124 /* sched_yield */] = YIELDS,
#endif
};

/* Processes in the window, by their pid in the initial namespace. */
MAP_HASH(watched, __u32, __u8, 4096);

/* The same by the pid's low bits: tells most processes apart without a hash (an array look-up is inlined; 30 ns less). */
#define SLOTS 4096
MAP_ARRAY(watched_slots, __u32, SLOTS);

/* A thread uses a few calls on a few fds in a window of seconds; what does not fit is counted as lost. */
MAP_HASH(calls, struct call_key, struct call_count, 16384);

#define EINTR 4
#define EAGAIN 11
#define ETIMEDOUT 110
/* What the kernel returns inside itself for a call that a signal interrupted; user space sees EINTR or a restart. */
#define ERESTARTSYS 512
#define ERESTART_RESTARTBLOCK 516
#define FUTEX_COMMAND 0x7f
#define FUTEX_WAKE 1

static __always_inline bool is_empty(__u8 kind, __u32 number, __s64 result, struct pt_regs *regs)
{
	if (result < 0)
		return result == -EAGAIN || result == -ETIMEDOUT || result == -EINTR;
	switch (kind) {
	case MOVES_BYTES:
		return result == 0;
	case ON_FD:
		/* 0 events; for connect 0 is success, and an accepted fd is hardly ever 0. */
		return result == 0 && number != SYSCALL_CONNECT;
	case ON_FUTEX:
		/* 0 from a wait is a wake-up; 0 from a wake woke nobody. */
		return result == 0 && (READ_SYSCALL_ARG1(regs) & FUTEX_COMMAND) == FUTEX_WAKE;
	case YIELDS:
		return true;
	}
	/* Sleeps end with 0, as they should; polls with 0 when nothing was ready. */
	return result == 0 && number != SYSCALL_NANOSLEEP && number != SYSCALL_CLOCK_NANOSLEEP;
}

static __always_inline bool is_watched(__u32 kernel_pid)
{
	__u32 slot = kernel_pid % SLOTS;
	__u32 *there = bpf_map_lookup_elem(&watched_slots, &slot);

	if (!there || !*there)
		return false;
	return *there == kernel_pid || bpf_map_lookup_elem(&watched, &kernel_pid);
}

HOOK(count_return, sys_exit)
{
	struct pt_regs *regs = (struct pt_regs *)ctx[0];
	__s64 result = (__s64)ctx[1];
	__u64 number = (__u32)READ_SYSCALL_NUMBER(regs);
	struct call_count *count;
	struct call_key key;
	__u64 ids;
	__u8 kind;

	/* The compiler may not move the check to another register than the verifier watches. */
	barrier_var(number);
	if (number >= CALLS)
		return 0;
	kind = kinds[number];
	if (kind == NOT_COUNTED)
		return 0;
	ids = bpf_get_current_pid_tgid();
	key.kernel_pid = ids >> 32;
	if (!is_watched(key.kernel_pid))
		return 0;
	key.kernel_tid = (__u32)ids;
	key.syscall = number;
	key.fd = kind == MOVES_BYTES || kind == ON_FD ? (__s32)READ_SYSCALL_ARG0(regs) : -1;
	count = bpf_map_lookup_elem(&calls, &key);
	if (!count) {
		struct call_count fresh = {};

		if (bpf_map_update_elem(&calls, &key, &fresh, BPF_NOEXIST))
			count_lost();
		count = bpf_map_lookup_elem(&calls, &key);
		if (!count)
			return 0;
	}
	/* Only this thread writes to its entry. */
	if (result <= -ERESTARTSYS && result >= -ERESTART_RESTARTBLOCK)
		result = -EINTR;
	count->returns++;
	if (is_empty(kind, number, result, regs))
		count->empty++;
	if (result < 0)
		count->last_error = -result;
	else if (kind == MOVES_BYTES)
		count->moved_bytes += result;
	return 0;
}
