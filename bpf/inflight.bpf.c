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

/* The processes to watch: a node has hundreds. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
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

SEC("iter/task")
int inflight(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task, *reader = bpf_get_current_task_btf();
	struct inflight_record record = {};
	struct inflight_limit *limit;
	struct wait *before, now = {};
	struct pt_regs *regs;

	if (!task)
		return 0;
	record.pid = pid_for_reader(task);
	limit = bpf_map_lookup_elem(&limits, &record.pid);
	if (!record.pid || !limit)
		return 0;
	/* One that runs at this instant may be between two polls: what was seen before stands. */
	if (!task->__state || task->exit_state || task->on_cpu)
		return 0;
	if (limit->skip_main && task->pid == task->tgid)
		return 0;
	regs = (struct pt_regs *)bpf_task_pt_regs(task);
	if (!regs)
		return 0;
	record.kernel_tid = task->pid;
	record.syscall = SYSCALL_NUMBER(regs);
	record.arg0 = SYSCALL_ARG0(regs);
	record.now_ns = reader->sched_info.last_arrival;
	record.slept_at_ns = left_cpu_ns(task);
	record.since_ns = record.slept_at_ns;
	before = bpf_map_lookup_elem(&waits_seen, &record.kernel_tid);
	if (before && before->pid == record.pid && before->syscall == record.syscall && before->arg0 == record.arg0) {
		record.since_ns = before->since_ns;
	} else {
		now.arg0 = record.arg0;
		now.since_ns = record.since_ns;
		now.syscall = record.syscall;
		now.pid = record.pid;
		bpf_map_update_elem(&waits_seen, &record.kernel_tid, &now, BPF_ANY);
	}
	if (record.now_ns < record.since_ns + limit->after_ns || is_muted(&record))
		return 0;
	record.header.kind = RECORD_INFLIGHT;
	record.header.length = sizeof(record);
	record.tid = id_for_reader(thread_of(task));
	if (record.tid)
		bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
	return 0;
}
