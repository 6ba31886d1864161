// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What is every thread of the followed processes inside right now, and since when? Also for waits that began long before
 * we came: the kernel keeps all of it in task_struct, so this is an iterator and costs the target nothing.
 */
#include "types.h"
#include "events.h"
#include "followed.h"
#include "ids.h"
#include "lost.h"
#include "sleep.h"

ANCHOR(thread_record);

/* A stack record is too large for the BPF stack. The reader runs on one CPU at a time and is not preempted within a program. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct thread_stack_record);
} stack_scratch SEC(".maps");

/* Nor does this one fit beside a thread_record. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct registers_record);
} registers_scratch SEC(".maps");

static __always_inline void emit_stack(struct seq_file *seq, struct task_struct *task, __u32 tid)
{
	static const char symbol_format[] = "%ps";
	__u64 addresses[STACK_DEPTH];
	struct thread_stack_record *record;
	__u32 zero = 0;
	long bytes;

	/* Kernels before 5.13 cannot name the functions; user space asks /proc for the one that matters. */
	if (!bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_snprintf))
		return;
	record = bpf_map_lookup_elem(&stack_scratch, &zero);
	if (!record)
		return;
	bytes = bpf_get_task_stack(task, addresses, sizeof(addresses), 0);
	if (bytes <= 0)
		return;
	record->header.kind = RECORD_THREAD_STACK;
	record->header.length = sizeof(*record);
	record->tid = tid;
	record->depth = 0;
	for (int i = 0; i < STACK_DEPTH; i++) {
		if (i * (long)sizeof(__u64) >= bytes)
			break;
		bpf_snprintf(record->symbols[i], SYMBOL_BYTES, symbol_format, &addresses[i], sizeof(__u64));
		record->depth++;
	}
	bpf_seq_write(seq, record, sizeof(*record));
}

/* pt_regs as a whole: user-space programs (ptrace, core files) know it by this order, so it is not relocated. */
static __always_inline void emit_registers(struct seq_file *seq, const struct pt_regs *regs, __u32 tid)
{
	struct registers_record *record;
	__u32 zero = 0;

	record = bpf_map_lookup_elem(&registers_scratch, &zero);
	if (!record)
		return;
	record->header.kind = RECORD_REGISTERS;
	record->header.length = sizeof(*record);
	record->tid = tid;
	bpf_probe_read_kernel(record->words, SAVED_REGISTERS * sizeof(__u64), regs);
	bpf_seq_write(seq, record, sizeof(*record));
}

SEC("iter/task")
int threads(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct seq_file *seq = ctx->meta->seq;
	struct thread_record record = {};
	struct pt_regs *regs = NULL;

	if (!task)
		return 0;
	record.pid = pid_for_reader(task);
	if (!record.pid || !is_followed(record.pid))
		return 0;
	record.header.kind = RECORD_THREAD;
	record.header.length = sizeof(record);
	record.tid = id_for_reader(thread_of(task));
	if (!record.tid)
		return 0;
	record.ns_pid = id_for_itself(process_of(task));
	record.ns_tid = id_for_itself(thread_of(task));
	record.kernel_pid = task->tgid;
	record.kernel_tid = task->pid;
	record.state = state_of(task);
	record.exit_state = task->exit_state;
	record.on_cpu = task->on_cpu;
	record.now_ns = bpf_ktime_get_ns();
	record.reader_arrival_ns = reader_arrival_ns();
	record.slept_at_ns = left_cpu_ns(task);
	record.cpu_ns = task->se.sum_exec_runtime;
	record.switches_voluntary = task->nvcsw;
	record.switches_involuntary = task->nivcsw;
	bpf_probe_read_kernel(record.name, sizeof(record.name), task->comm);

	/* The saved registers of a thread that runs are those of its last entry, not of a call it is in. */
	record.syscall = -1;
	if (record.state && !record.exit_state && !record.on_cpu) {
		regs = saved_registers(task);
		if (regs) {
			record.syscall = READ_SYSCALL_NUMBER(regs);
			record.args[0] = READ_SYSCALL_ARG0(regs);
			record.args[1] = READ_SYSCALL_ARG1(regs);
			record.args[2] = READ_SYSCALL_ARG2(regs);
			record.args[3] = READ_SYSCALL_ARG3(regs);
			record.args[4] = READ_SYSCALL_ARG4(regs);
			record.args[5] = READ_SYSCALL_ARG5(regs);
			record.result = READ_SYSCALL_RESULT(regs);
		}
	}
	bpf_seq_write(seq, &record, sizeof(record));
	if (record.state && !record.exit_state && !record.on_cpu)
		emit_stack(seq, task, record.tid);
	if (regs && wants_registers(record.pid))
		emit_registers(seq, regs, record.tid);
	return 0;
}
