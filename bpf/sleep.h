/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Since when does a task sleep? The scheduler keeps it for every task, for sleeps too that began before we came. */
#ifndef STUCKTRACE_SLEEP_H
#define STUCKTRACE_SLEEP_H

#include "types.h"

/*
 * When the task last left its CPU. The runtime of its last turn is kept by the fair class alone (SCHED_NORMAL, BATCH, IDLE);
 * for a real-time task the turn's begin has to do.
 */
static __always_inline __u64 left_cpu_ns(struct task_struct *task)
{
	__u64 arrival_ns = task->sched_info.last_arrival;
	__u32 policy = task->policy;

	if (policy == 0 || policy == 3 || policy == 5)
		arrival_ns += task->se.sum_exec_runtime - task->se.prev_sum_exec_runtime;
	return arrival_ns;
}

#endif
