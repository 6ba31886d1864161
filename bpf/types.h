/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The kernel's types, cut down to the fields that are read: what stands here is what this tool depends on.
 *
 * Every struct is relocated when an object is loaded (CO-RE), so only names matter, not offsets or order. A field that was
 * renamed or moved has a flavour: the same struct with a suffix after three underscores, which the loader ignores.
 * Loading is what a look costs most: each relocated type is a search through the kernel's BTF (about 0.7 ms), and so is,
 * inside the verifier, each dereference of a pointer to a kernel type. So pointers are read with BPF_CORE_READ, and what
 * never changed its layout is not relocated.
 * Nothing is included from the system but libbpf's helper declarations, so this builds anywhere for any architecture.
 */
#ifndef STUCKTRACE_TYPES_H
#define STUCKTRACE_TYPES_H

#ifdef __BCC__
#include "kernel_types.h"
#else

typedef unsigned char __u8;
typedef signed char __s8;
typedef unsigned short __u16;
typedef short __s16;
typedef unsigned int __u32;
typedef int __s32;
typedef unsigned long long __u64;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u32 __wsum;
typedef _Bool bool;
#define true 1
#define false 0
#define NULL ((void *)0)

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* From the kernel's include/uapi/linux/bpf.h. */
enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_RINGBUF = 27,
};
enum { BPF_ANY = 0, BPF_NOEXIST = 1 };
enum { BPF_F_NO_PREALLOC = 1 };
enum { BPF_RB_NO_WAKEUP = 1, BPF_RB_FORCE_WAKEUP = 2 };
#define BPF_F_CURRENT_CPU 0xffffffffULL
/* Asked for by name: does this kernel have the helper? */
enum bpf_func_id {
	BPF_FUNC_jiffies64 = 118,
	BPF_FUNC_ringbuf_output = 130,
	BPF_FUNC_sock_from_file = 162,
	BPF_FUNC_snprintf = 165,
	BPF_FUNC_task_pt_regs = 175,
};

#define CORE __attribute__((preserve_access_index))

struct ns_common {
	unsigned int inum;
} CORE;

struct pid_namespace {
	struct ns_common ns;
} CORE;

/* numbers[] begins with the id in the initial namespace and ends, at `level`, with the innermost one. */
struct upid {
	int nr;
	struct pid_namespace *ns;
}; /* has had this layout in every kernel with BPF iterators */

struct pid {
	unsigned int level;
	struct upid numbers[1];
} CORE;

struct sched_info {
	unsigned long long last_arrival;
} CORE;

struct sched_entity {
	__u64 sum_exec_runtime;
	__u64 prev_sum_exec_runtime;
} CORE;

typedef struct {
	int counter;
} CORE atomic_t;

struct signal_struct {
	atomic_t live; /* threads that have not begun to exit */
	int group_exit_code;
	unsigned int flags;
} CORE;

struct task_struct {
	unsigned int __state;
	void *stack;
	int exit_state;
	int exit_code;
	int on_cpu;
	unsigned int policy;
	struct sched_entity se;
	struct sched_info sched_info;
	int pid;
	int tgid;
	struct pid *thread_pid;
	struct task_struct *real_parent;
	struct task_struct *group_leader;
	struct signal_struct *signal;
	unsigned long nvcsw;
	unsigned long nivcsw;
	char comm[16];
} CORE;

struct task_struct___before_5_14 {
	long state;
} CORE;

#if defined(__TARGET_ARCH_x86)
struct pt_regs {
	unsigned long di, si, dx, r10, r8, r9, ax, orig_ax, cs;
} CORE;
#elif defined(__TARGET_ARCH_arm64)
struct pt_regs {
	__u64 regs[31];
	__u64 pc;
	__u64 pstate;
	__u64 orig_x0;
	__s32 syscallno;
} CORE;
#endif

struct seq_file;

/* What an iterator is called with: a stable interface. */
struct bpf_iter_meta {
	struct seq_file *seq;
	__u64 session_id;
	__u64 seq_num;
};

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
};

struct file;

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	__u32 fd;
	struct file *file;
};

#endif

#if defined(__TARGET_ARCH_x86)
#define SYSCALL_CONNECT 42
#define SYSCALL_FUTEX 202
#define SYSCALL_PSELECT6 270
#define SYSCALL_SELECT 23
#define SYSCALL_NANOSLEEP 35
#define SYSCALL_CLOCK_NANOSLEEP 230
#define SAVED_REGISTERS 21 /* words of pt_regs */
#define CAME_FROM_USER_SPACE(regs) ((BPF_CORE_READ(regs, cs) & 3) == 3)
#define READ_SYSCALL_NUMBER(regs) ((__s32)BPF_CORE_READ(regs, orig_ax))
#define READ_SYSCALL_RESULT(regs) ((__s64)BPF_CORE_READ(regs, ax))
#define READ_SYSCALL_ARG0(regs) BPF_CORE_READ(regs, di)
#define READ_SYSCALL_ARG1(regs) BPF_CORE_READ(regs, si)
#define READ_SYSCALL_ARG2(regs) BPF_CORE_READ(regs, dx)
#define READ_SYSCALL_ARG3(regs) BPF_CORE_READ(regs, r10)
#define READ_SYSCALL_ARG4(regs) BPF_CORE_READ(regs, r8)
#define READ_SYSCALL_ARG5(regs) BPF_CORE_READ(regs, r9)
/* Arguments of a function of the kernel's, for a kprobe. */
#define FUNCTION_ARG0 di
#define FUNCTION_ARG1 si
#define FUNCTION_ARG2 dx
#elif defined(__TARGET_ARCH_arm64)
#define SYSCALL_CONNECT 203
#define SYSCALL_FUTEX 98
#define SYSCALL_PSELECT6 72
#define SYSCALL_SELECT SYSCALL_PSELECT6 /* there is no other */
#define SYSCALL_NANOSLEEP 101
#define SYSCALL_CLOCK_NANOSLEEP 115
#define SAVED_REGISTERS 34
/* Memory that was never written says the same in pstate alone. */
#define CAME_FROM_USER_SPACE(regs) ((BPF_CORE_READ(regs, pstate) & 15) == 0 && BPF_CORE_READ(regs, pc))
#define READ_SYSCALL_NUMBER(regs) BPF_CORE_READ(regs, syscallno)
#define READ_SYSCALL_RESULT(regs) ((__s64)BPF_CORE_READ(regs, regs[0]))
/* x0 holds the result once the call has ended. */
#define READ_SYSCALL_ARG0(regs) BPF_CORE_READ(regs, orig_x0)
#define READ_SYSCALL_ARG1(regs) BPF_CORE_READ(regs, regs[1])
#define READ_SYSCALL_ARG2(regs) BPF_CORE_READ(regs, regs[2])
#define READ_SYSCALL_ARG3(regs) BPF_CORE_READ(regs, regs[3])
#define READ_SYSCALL_ARG4(regs) BPF_CORE_READ(regs, regs[4])
#define READ_SYSCALL_ARG5(regs) BPF_CORE_READ(regs, regs[5])
#define FUNCTION_ARG0 regs[0]
#define FUNCTION_ARG1 regs[1]
#define FUNCTION_ARG2 regs[2]
#else
#error "compile with -D__TARGET_ARCH_x86 or -D__TARGET_ARCH_arm64"
#endif

#endif
