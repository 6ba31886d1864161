/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which process is it: ids as the tool sees them.
 *
 * BPF speaks in ids of the initial PID namespace. A tool that sits in a namespace of its own (a debug pod without
 * hostPID) would join strangers with those, so ids are looked up in the reader's namespace. In an iterator the current
 * task is the reader; the functions `..._for_reader` are for iterators only.
 */
#ifndef STUCKTRACE_IDS_H
#define STUCKTRACE_IDS_H

#include "types.h"

#ifdef __BCC__
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/pid_namespace.h>
#endif

/* The id at one level of the namespaces; *ns is that level's namespace. */
static __always_inline __u32 id_at(struct pid *pid, __u32 level, struct pid_namespace **ns)
{
	const void *numbers = (const void *)pid + bpf_core_field_offset(struct pid, numbers);
	struct upid entry = {};

	bpf_probe_read_kernel(&entry, sizeof(entry), numbers + level * sizeof(entry));
	*ns = entry.ns;
	return entry.nr;
}

/* The id as the reading tool sees it; 0: it is not visible there. */
static __always_inline __u32 id_for_reader(struct pid *pid)
{
	struct pid *reader = BPF_CORE_READ((struct task_struct *)bpf_get_current_task(), thread_pid);
	struct pid_namespace *its_ns = NULL, *reader_ns = NULL;
	__u32 level, id;

	if (!reader || !pid)
		return 0;
	level = BPF_CORE_READ(reader, level);
	if (BPF_CORE_READ(pid, level) < level)
		return 0;
	id_at(reader, level, &reader_ns);
	id = id_at(pid, level, &its_ns);
	return its_ns == reader_ns ? id : 0;
}

/* The id as the process itself sees it. */
static __always_inline __u32 id_for_itself(struct pid *pid)
{
	struct pid_namespace *ns;

	return pid ? id_at(pid, BPF_CORE_READ(pid, level), &ns) : 0;
}

static __always_inline struct pid *process_of(struct task_struct *task)
{
	return BPF_CORE_READ(task, group_leader, thread_pid);
}

static __always_inline struct pid *thread_of(struct task_struct *task)
{
	return BPF_CORE_READ(task, thread_pid);
}

static __always_inline __u32 pid_for_reader(struct task_struct *task)
{
	return id_for_reader(process_of(task));
}

#endif
