// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What did the threads of the watched processes achieve during the sampling window? Every return of a call that waits or
 * moves bytes is counted per thread, call and fd. What is in flight right now needs no hook: the iterator sees that.
 *
 * Three ways to hear of a return, all with the same records; collectors/call_hooks.py takes what serves:
 *   fexit       a program at the end of each counted call's function: all other calls cost nothing
 *   tracepoint  the classic pair of each counted call; every call of the node goes through the kernel's slow path
 *   sys_exit    (tp_btf or raw_tp) one program for all: every call pays that and a table look-up
 * While any of them is attached the counted calls of every process cost a look-up or two; so it is for a window only.
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

#if defined(__TARGET_ARCH_x86)
#define SYSCALL_FUNCTION "__x64_sys_"
#define SYSCALL_FUNCTION_0 "__do_sys_" /* of calls without arguments: the other name is an alias, not in BTF */
#define SYSCALL_SCHED_YIELD 24
#define COUNTED(CALL)                                                                                                  \
	CALL(read, 0, MOVES_BYTES)                                                                                     \
	CALL(write, 1, MOVES_BYTES)                                                                                    \
	CALL(readv, 19, MOVES_BYTES)                                                                                   \
	CALL(writev, 20, MOVES_BYTES)                                                                                  \
	CALL(sendto, 44, MOVES_BYTES)                                                                                  \
	CALL(recvfrom, 45, MOVES_BYTES)                                                                                \
	CALL(sendmsg, 46, MOVES_BYTES)                                                                                 \
	CALL(recvmsg, 47, MOVES_BYTES)                                                                                 \
	CALL(connect, 42, ON_FD)                                                                                       \
	CALL(accept, 43, ON_FD)                                                                                        \
	CALL(accept4, 288, ON_FD)                                                                                      \
	CALL(epoll_wait, 232, ON_FD)                                                                                   \
	CALL(epoll_pwait, 281, ON_FD)                                                                                  \
	CALL(epoll_pwait2, 441, ON_FD)                                                                                 \
	CALL(poll, 7, ON_NOTHING)                                                                                      \
	CALL(select, 23, ON_NOTHING)                                                                                   \
	CALL(pselect6, 270, ON_NOTHING)                                                                                \
	CALL(ppoll, 271, ON_NOTHING)                                                                                   \
	CALL(nanosleep, 35, ON_NOTHING)                                                                                \
	CALL(clock_nanosleep, 230, ON_NOTHING)                                                                         \
	CALL(futex, 202, ON_FUTEX)
#elif defined(__TARGET_ARCH_arm64)
#define SYSCALL_FUNCTION "__arm64_sys_"
#define SYSCALL_FUNCTION_0 SYSCALL_FUNCTION
#define SYSCALL_SCHED_YIELD 124
#define COUNTED(CALL)                                                                                                  \
	CALL(read, 63, MOVES_BYTES)                                                                                    \
	CALL(write, 64, MOVES_BYTES)                                                                                   \
	CALL(readv, 65, MOVES_BYTES)                                                                                   \
	CALL(writev, 66, MOVES_BYTES)                                                                                  \
	CALL(sendto, 206, MOVES_BYTES)                                                                                 \
	CALL(recvfrom, 207, MOVES_BYTES)                                                                               \
	CALL(sendmsg, 211, MOVES_BYTES)                                                                                \
	CALL(recvmsg, 212, MOVES_BYTES)                                                                                \
	CALL(connect, 203, ON_FD)                                                                                      \
	CALL(accept, 202, ON_FD)                                                                                       \
	CALL(accept4, 242, ON_FD)                                                                                      \
	CALL(epoll_pwait, 22, ON_FD)                                                                                   \
	CALL(epoll_pwait2, 441, ON_FD)                                                                                 \
	CALL(pselect6, 72, ON_NOTHING)                                                                                 \
	CALL(ppoll, 73, ON_NOTHING)                                                                                    \
	CALL(nanosleep, 101, ON_NOTHING)                                                                               \
	CALL(clock_nanosleep, 115, ON_NOTHING)                                                                         \
	CALL(futex, 98, ON_FUTEX)
#endif

#define KIND_OF(name, number, kind)                                                                                    \
	case number:                                                                                                   \
		return kind;

/* No table: with bcc a program has no constant data. */
static __always_inline enum call_kind kind_of(__u32 number)
{
	switch (number) {
		COUNTED(KIND_OF)
	case SYSCALL_SCHED_YIELD:
		return YIELDS;
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

/* What threads are inside of, for the classic pair alone: the end of a call does not tell its arguments. */
MAP_HASH_SPARSE(entered, __u32, struct entered_call, 16384);

#define EINTR 4
#define EAGAIN 11
#define ETIMEDOUT 110
/* What the kernel returns inside itself for a call that a signal interrupted; user space sees EINTR or a restart. */
#define ERESTARTSYS 512
#define ERESTART_RESTARTBLOCK 516
#define FUTEX_COMMAND 0x7f
#define FUTEX_WAKE 1

static __always_inline bool is_empty(enum call_kind kind, __u32 number, __s64 result, __u64 argument)
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
		return result == 0 && (argument & FUTEX_COMMAND) == FUTEX_WAKE;
	case YIELDS:
		return true;
	default:
		break;
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

/* `regs`: of the call, or `call`: its arguments. */
static __always_inline int count(__u32 number, enum call_kind kind, __s64 result, struct pt_regs *regs,
				 struct entered_call *call)
{
	__u64 ids = bpf_get_current_pid_tgid(), argument = 0;
	struct call_count *count;
	struct call_key key;

	key.kernel_pid = ids >> 32;
	key.kernel_tid = (__u32)ids;
	key.syscall = number;
	key.fd = -1;
	if (kind == MOVES_BYTES || kind == ON_FD)
		key.fd = call ? (__s32)call->fd : (__s32)READ_SYSCALL_ARG0(regs);
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
	if (kind == ON_FUTEX)
		argument = call ? call->operation : READ_SYSCALL_ARG1(regs);
	count->returns++;
	if (is_empty(kind, number, result, argument))
		count->empty++;
	if (result < 0)
		count->last_error = -result;
	else if (kind == MOVES_BYTES)
		count->moved_bytes += result;
	return 0;
}

static __always_inline bool is_watched_now(void)
{
	return is_watched(bpf_get_current_pid_tgid() >> 32);
}

HOOK(count_return, sys_exit)
{
	struct pt_regs *regs = (struct pt_regs *)ctx[0];
	__u32 number = READ_SYSCALL_NUMBER(regs);
	enum call_kind kind = kind_of(number);

	if (kind == NOT_COUNTED || !is_watched_now())
		return 0;
	return count(number, kind, (__s64)ctx[1], regs, NULL);
}

#ifndef __BCC__

#define AT_END_OF(function, name, number, kind)                                                                        \
	SEC("fexit/" function #name)                                                                                   \
	int end_##name(__u64 *ctx)                                                                                     \
	{                                                                                                              \
		return is_watched_now() ? count(number, kind, (__s64)ctx[1], (struct pt_regs *)ctx[0], NULL) : 0;      \
	}
#define AT_END(name, number, kind) AT_END_OF(SYSCALL_FUNCTION, name, number, kind)
COUNTED(AT_END)
AT_END_OF(SYSCALL_FUNCTION_0, sched_yield, SYSCALL_SCHED_YIELD, YIELDS)

/* The classic pair. A program that reads an argument which a call does not have is refused there. */
#define NUMBER_IN(ctx) (*(__u32 *)&(ctx)[1])
#define ARGUMENT_IN(ctx, n) ((ctx)[2 + (n)])

static __always_inline int remember(__u32 number, __s32 fd, __u32 operation)
{
	struct entered_call call = {.number = number, .fd = fd, .operation = operation};
	__u32 tid = (__u32)bpf_get_current_pid_tgid();

	if (is_watched_now() && bpf_map_update_elem(&entered, &tid, &call, BPF_ANY))
		count_lost();
	return 0;
}

SEC("tracepoint/enter")
int enter(__u64 *ctx)
{
	return remember(NUMBER_IN(ctx), ARGUMENT_IN(ctx, 0), 0);
}

SEC("tracepoint/enter")
int enter_futex(__u64 *ctx)
{
	return remember(NUMBER_IN(ctx), ARGUMENT_IN(ctx, 0), ARGUMENT_IN(ctx, 1));
}

SEC("tracepoint/enter")
int enter_nothing(__u64 *ctx)
{
	return remember(NUMBER_IN(ctx), -1, 0);
}

SEC("tracepoint/leave")
int leave(__u64 *ctx)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	__u32 number = NUMBER_IN(ctx);
	struct entered_call *call;

	if (!is_watched_now())
		return 0;
	call = bpf_map_lookup_elem(&entered, &tid);
	if (!call || call->number != number) {
		count_lost();
		return 0;
	}
	return count(number, kind_of(number), (__s64)ARGUMENT_IN(ctx, 0), NULL, call);
}

#endif
