// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Who begins a new program, and how do the watched processes fork, get killed and end? Any process that execs is reported,
 * for a shell may become a worker; forks, ends and signals only of those that are watched, and a child of one is watched
 * from its first instruction on. A stranger's fork or exit costs one look-up.
 *
 * The current task is not the reader here, so the tool's own PID namespace is known by its inode number.
 */
#include "types.h"
#include "events.h"
#include "hook.h"
#include "ids.h"
#include "ring.h"
#include "maps.h"

ANCHOR(life_record);

#define SIGABRT 6
#define SIGKILL 9
#define SIGTERM 15
#define SIGNAL_GROUP_EXIT 4
/* What the tracepoint has instead of a siginfo: sent by user space without one, by the kernel. */
#define SEND_SIG_NOINFO 0
#define SEND_SIG_PRIV 1
/* The codes of kill, sigqueue and tgkill. Timers and the like have others, and come in interrupt context. */
#define SI_USER 0
#define SI_QUEUE -1
#define SI_TKILL -6
/* TRACE_SIGNAL_DELIVERED: neither ignored nor pending already. */
#define DELIVERED 0
/* The kernel's MAX_PID_NS_LEVEL and the initial namespace. */
#define LEVELS 33

#ifndef __BCC__
struct kernel_siginfo {
	int si_code;
} CORE;
#endif

/* pid in the initial namespace -> as the tool sees it. A process takes its entry with it. */
MAP_HASH_SPARSE(watched, __u32, __u32, 16384);

/* Inode number of the tool's PID namespace. */
MAP_ARRAY(own_namespace, __u32, 1);

/* 0: not visible there. */
static __always_inline __u32 pid_for_tool(struct task_struct *task)
{
#ifdef __BCC__
	/* Only in the initial namespace (collectors/bcc_node.py); Linux 6.1 refuses the walk below as bcc compiles it. */
	return BPF_CORE_READ(task, tgid);
#else
	struct pid *pid = process_of(task);
	__u32 zero = 0, innermost, id;
	__u32 *own = bpf_map_lookup_elem(&own_namespace, &zero);
	struct pid_namespace *ns;

	if (!own || !pid)
		return 0;
	innermost = BPF_CORE_READ(pid, level);
	for (__u32 level = 0; level < LEVELS && level <= innermost; level++) {
		id = id_at(pid, level, &ns);
		if (BPF_CORE_READ(ns, ns.inum) == *own)
			return id;
	}
	return 0;
#endif
}

static __always_inline void emit(void *ctx, struct life_record *record, __u32 pid, struct task_struct *process,
				 bool urgent)
{
	if (!pid)
		return;
	record->header.kind = RECORD_LIFE;
	record->header.length = sizeof(*record);
	record->time_ns = bpf_ktime_get_ns();
	record->pid = pid;
	record->kernel_pid = BPF_CORE_READ(process, tgid);
	record->parent = pid_for_tool(BPF_CORE_READ(process, real_parent));
	BPF_CORE_READ_INTO(&record->command, process, comm);
	emit_record(ctx, record, sizeof(*record), urgent);
}

HOOK(on_exec, sched_process_exec)
{
	struct task_struct *process = (struct task_struct *)ctx[0];
	struct life_record record = {.kind = LIFE_EXEC};

	emit(ctx, &record, pid_for_tool(process), process, false);
	return 0;
}

HOOK(on_fork, sched_process_fork)
{
	__u32 parent = bpf_get_current_pid_tgid() >> 32, kernel_pid, pid;
	struct life_record record = {.kind = LIFE_FORK};
	struct task_struct *child;

	if (!bpf_map_lookup_elem(&watched, &parent))
		return 0;
	child = (struct task_struct *)ctx[1];
	kernel_pid = BPF_CORE_READ(child, tgid);
	if (BPF_CORE_READ(child, pid) != kernel_pid)
		return 0;
	pid = pid_for_tool(child);
	if (bpf_map_update_elem(&watched, &kernel_pid, &pid, BPF_ANY))
		count_lost();
	emit(ctx, &record, pid, child, false);
	return 0;
}

HOOK(on_exit, sched_process_exit)
{
	__u32 kernel_pid = bpf_get_current_pid_tgid() >> 32, pid;
	struct life_record record = {.kind = LIFE_EXIT};
	struct task_struct *process;
	struct signal_struct *group;
	__u32 *known = bpf_map_lookup_elem(&watched, &kernel_pid);

	if (!known)
		return 0;
	pid = *known;
	process = BPF_CORE_READ((struct task_struct *)ctx[0], group_leader);
	group = BPF_CORE_READ(process, signal);
	/* The last two threads may both see nobody left: the one that takes the entry out tells it. */
	if (BPF_CORE_READ(group, live.counter) || bpf_map_delete_elem(&watched, &kernel_pid))
		return 0;
	if (BPF_CORE_READ(group, flags) & SIGNAL_GROUP_EXIT)
		record.status = BPF_CORE_READ(group, group_exit_code);
	else
		record.status = BPF_CORE_READ(process, exit_code);
	emit(ctx, &record, pid, process, false);
	return 0;
}

static __always_inline __u32 sender_of(__u64 info)
{
	int code = SI_USER;

	if (info == SEND_SIG_PRIV)
		return 0;
	if (info != SEND_SIG_NOINFO)
		code = BPF_CORE_READ((struct kernel_siginfo *)info, si_code);
	if (code != SI_USER && code != SI_QUEUE && code != SI_TKILL)
		return 0;
	return pid_for_tool((struct task_struct *)bpf_get_current_task());
}

HOOK(on_signal, signal_generate)
{
	struct life_record record = {.kind = LIFE_SIGNAL};
	struct task_struct *process;
	__u32 kernel_pid, *pid;

	record.signal = ctx[0];
	if (record.signal != SIGABRT && record.signal != SIGKILL && record.signal != SIGTERM)
		return 0;
	process = BPF_CORE_READ((struct task_struct *)ctx[2], group_leader);
	kernel_pid = BPF_CORE_READ(process, tgid);
	pid = bpf_map_lookup_elem(&watched, &kernel_pid);
	if (!pid || (__u32)ctx[4] != DELIVERED)
		return 0;
	record.sender = sender_of(ctx[1]);
	/* Its stack is there for an instant only. */
	emit(ctx, &record, *pid, process, record.signal == SIGABRT);
	return 0;
}

/* The argument was a pid of the initial namespace at first; it is the task since 6.8 or so. */
HOOK(on_oom, mark_victim)
{
	struct life_record record = {.kind = LIFE_OOM};
	struct task_struct *process;
	__u32 kernel_pid, *pid;
	__u64 victim = 0;

	bpf_probe_read_kernel(&victim, sizeof(victim), ctx);
	process = victim >> 32 ? BPF_CORE_READ((struct task_struct *)victim, group_leader) : NULL;
	kernel_pid = process ? BPF_CORE_READ(process, tgid) : (__u32)victim;
	pid = bpf_map_lookup_elem(&watched, &kernel_pid);
	if (pid)
		emit(ctx, &record, *pid, process, true);
	return 0;
}
