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

/* No table: with bcc a program has no constant data. */
static __always_inline enum call_kind kind_of(__u32 number)
{
	switch (number) {
#if defined(__TARGET_ARCH_x86)
	case 0: /* read */
	case 1: /* write */
	case 19: /* readv */
	case 20: /* writev */
	case 44: /* sendto */
	case 45: /* recvfrom */
	case 46: /* sendmsg */
	case 47: /* recvmsg */
		return MOVES_BYTES;
	case 42: /* connect */
	case 43: /* accept */
	case 288: /* accept4 */
	case 232: /* epoll_wait */
	case 281: /* epoll_pwait */
	case 441: /* epoll_pwait2 */
		return ON_FD;
	case 7: /* poll */
	case 23: /* select */
	case 270: /* pselect6 */
	case 271: /* ppoll */
	case 35: /* nanosleep */
	case 230: /* clock_nanosleep */
		return ON_NOTHING;
	case 202: /* futex */
		return ON_FUTEX;
	case 24: /* sched_yield */
		return YIELDS;
#elif defined(__TARGET_ARCH_arm64)
	case 63: /* read */
	case 64: /* write */
	case 65: /* readv */
	case 66: /* writev */
	case 206: /* sendto */
	case 207: /* recvfrom */
	case 211: /* sendmsg */
	case 212: /* recvmsg */
		return MOVES_BYTES;
	case 203: /* connect */
	case 202: /* accept */
	case 242: /* accept4 */
	case 22: /* epoll_pwait */
	case 441: /* epoll_pwait2 */
		return ON_FD;
	case 72: /* pselect6 */
	case 73: /* ppoll */
	case 101: /* nanosleep */
	case 115: /* clock_nanosleep */
		return ON_NOTHING;
	case 98: /* futex */
		return ON_FUTEX;
	case 124: /* sched_yield */
		return YIELDS;
#endif
	}
	return NOT_COUNTED;
}

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
	__u32 number = READ_SYSCALL_NUMBER(regs);
	struct call_count *count;
	struct call_key key;
	enum call_kind kind;
	__u64 ids;

	kind = kind_of(number);
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
