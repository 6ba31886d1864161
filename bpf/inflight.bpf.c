// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Which threads of the watched processes have been in one wait for too long? Run every tick over all tasks of the node, so
 * it reports those alone: a healthy node gives no records. A wait is one sleep, or the same call on the same first
 * argument over short polls; the latter is remembered here from tick to tick.
 */
#include "types.h"
#include "events.h"
#include "ids.h"
#include "sleep.h"

ANCHOR(inflight_record);

/* The processes to watch: a node has hundreds, a large one thousands. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct inflight_limit);
} limits SEC(".maps");

/* By kernel_tid. Where more threads poll than fit here, the oldest waits begin anew: late, never wrong. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct inflight_mute);
} mutes SEC(".maps");

struct wait {
	__u64 arg0;
	__u64 since_ns;
	__s32 syscall;
	__u32 pid; /* a tid that came again belongs to another process, most likely */
};

/* By kernel_tid; as large as `mutes`, for the same reason. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct wait);
} waits_seen SEC(".maps");

static __always_inline bool is_muted(const struct inflight_record *record)
{
	struct inflight_mute *mute = bpf_map_lookup_elem(&mutes, &record->kernel_tid);

	if (!mute)
		return false;
	if (mute->slept_at_ns == record->slept_at_ns)
		return true;
	return mute->since_ns == record->since_ns && record->now_ns < mute->until_ns;
}

/* __TASK_STOPPED */
#define STOPPED 4

#define FUTEX_COMMAND 0x7f
#define FUTEX_WAIT 0
#define FUTEX_LOCK_PI 6
#define FUTEX_LOCK_PI2 13
#define FUTEX_WAITERS 0x80000000
#define FUTEX_TID_MASK 0x3fffffff
#define PID_MAX (1 << 22)
/* glibc's mutexes: locked, and somebody waits. */
#define CONTENDED 2

/*
 * Sleeps until a mutex is free, for however long. What idle threads wait for looks different: glibc's semaphores,
 * condition variables, joins and read-write locks use FUTEX_WAIT_BITSET, and so do CPython's locks, which are semaphores.
 * A robust mutex has its owner in the word.
 */
static __always_inline bool is_on_mutex(__s32 syscall, struct pt_regs *regs)
{
	__u32 command, expected, owner;

	if (syscall != SYSCALL_FUTEX || READ_SYSCALL_ARG3(regs))
		return false;
	command = READ_SYSCALL_ARG1(regs) & FUTEX_COMMAND;
	expected = READ_SYSCALL_ARG2(regs);
	owner = expected & FUTEX_TID_MASK;
	if (command == FUTEX_LOCK_PI || command == FUTEX_LOCK_PI2)
		return true;
	return command == FUTEX_WAIT &&
	       (expected == CONTENDED || (expected & FUTEX_WAITERS && owner && owner <= PID_MAX));
}

/* Of a mutex only the present sleep counts: a busy one is waited for again and again, and healthy. */
static __always_inline bool is_over_limit(const struct inflight_record *record, const struct inflight_limit *limit)
{
	if (record->on_lock && record->now_ns >= record->slept_at_ns + limit->lock_after_ns)
		return true;
	return record->now_ns >= record->since_ns + limit->after_ns;
}

SEC("iter/task")
int inflight(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct inflight_record record = {};
	struct inflight_limit *limit;
	struct wait *before, now = {};
	struct pt_regs *regs;
	__u32 state;

	if (!task)
		return 0;
	record.pid = pid_for_reader(task);
	limit = bpf_map_lookup_elem(&limits, &record.pid);
	if (!record.pid || !limit)
		return 0;
	/* One that runs at this instant may be between two polls: what was seen before stands. */
	state = state_of(task);
	if (!state || task->exit_state || task->on_cpu)
		return 0;
	regs = saved_registers(task);
	if (!regs)
		return 0;
	record.kernel_tid = task->pid;
	record.syscall = READ_SYSCALL_NUMBER(regs);
	record.arg0 = READ_SYSCALL_ARG0(regs);
	record.on_lock = is_on_mutex(record.syscall, regs);
	if (limit->rests_in_select && task->pid == task->tgid &&
	    (record.syscall == SYSCALL_PSELECT6 || record.syscall == SYSCALL_SELECT))
		return 0;
	record.now_ns = reader_arrival_ns();
	record.slept_at_ns = left_cpu_ns(task);
	record.since_ns = record.slept_at_ns;
	before = bpf_map_lookup_elem(&waits_seen, &record.kernel_tid);
	/* Stopped by a signal: no longer the wait that it is inside of, which may be muted. */
	if (!(state & STOPPED) && before && before->pid == record.pid && before->syscall == record.syscall && before->arg0 == record.arg0) {
		record.since_ns = before->since_ns;
	} else {
		now.arg0 = record.arg0;
		now.since_ns = record.since_ns;
		now.syscall = record.syscall;
		now.pid = record.pid;
		bpf_map_update_elem(&waits_seen, &record.kernel_tid, &now, BPF_ANY);
	}
	if (!is_over_limit(&record, limit) || is_muted(&record))
		return 0;
	record.header.kind = RECORD_INFLIGHT;
	record.header.length = sizeof(record);
	record.tid = id_for_reader(thread_of(task));
	if (record.tid)
		bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
	return 0;
}
