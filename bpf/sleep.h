/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What is a task inside, and since when does it sleep? The kernel keeps both for every task, for sleeps too that began
 * before we came.
 */
#ifndef STUCKTRACE_SLEEP_H
#define STUCKTRACE_SLEEP_H

#include "types.h"

/* TASK_RUNNING is 0. */
static __always_inline __u32 state_of(struct task_struct *task)
{
	struct task_struct___before_5_14 *older = (void *)task;

	if (bpf_core_field_exists(task->__state))
		return BPF_CORE_READ(task, __state);
	return BPF_CORE_READ(older, state);
}

/* When the task that reads an iterator got its CPU. */
static __always_inline __u64 reader_arrival_ns(void)
{
	return BPF_CORE_READ((struct task_struct *)bpf_get_current_task(), sched_info.last_arrival);
}

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

/* Kernels before 5.15 do not tell; there they are sought where both architectures have them, if the stack is this large. */
#define KERNEL_STACK_BYTES (1 << 14)

/* The registers with which a sleeping task entered the kernel, to be read with READ_SYSCALL_...; NULL: they are not known. */
static __always_inline struct pt_regs *saved_registers(struct task_struct *task)
{
	struct pt_regs *regs;
	void *stack;

	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_task_pt_regs))
		return (struct pt_regs *)bpf_task_pt_regs(task);
	stack = BPF_CORE_READ(task, stack);
	if (!stack)
		return NULL;
	regs = stack + KERNEL_STACK_BYTES - bpf_core_type_size(struct pt_regs);
	return CAME_FROM_USER_SPACE(regs) ? regs : NULL;
}

#endif
