/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What types.h and net_types.h give, from the headers of the kernel that runs: for bcc, which compiles on the node itself.
 *
 * The headers are exact, so nothing is relocated: a read is a copy at a known offset, and whether a field is there is
 * known when this is compiled. Reading headers is what compiling costs, so ids.h and net_types.h include theirs themselves.
 */
#ifndef STUCKTRACE_KERNEL_TYPES_H
#define STUCKTRACE_KERNEL_TYPES_H

#include <linux/version.h>
#include <linux/types.h>
#include <linux/errno.h>
#include <asm/ptrace.h>

/* One copy was enough for kernel and user memory before 5.5. */
#if LINUX_VERSION_CODE < KERNEL_VERSION(5, 5, 0)
#define bpf_probe_read_kernel bpf_probe_read
#endif

#define READ_1(source, field)                                                                                          \
	({                                                                                                             \
		__typeof__((source)->field) copy;                                                                      \
		bpf_probe_read_kernel(&copy, sizeof(copy), &(source)->field);                                          \
		copy;                                                                                                  \
	})
#define READ_2(source, one, two) READ_1(READ_1(source, one), two)
#define READ_3(source, one, two, three) READ_1(READ_2(source, one, two), three)
#define READ_AS(_1, _2, _3, name, ...) name
/* BPF_CORE_READ(source, a, b): source->a->b, as libbpf's. */
#define BPF_CORE_READ(source, ...) READ_AS(__VA_ARGS__, READ_3, READ_2, READ_1)(source, __VA_ARGS__)
#define BPF_CORE_READ_INTO(to, source, field) bpf_probe_read_kernel(to, sizeof(*(to)), &(source)->field)
#define bpf_core_read(to, bytes, from) bpf_probe_read_kernel(to, bytes, from)
#define bpf_core_field_exists(field) 1
#define bpf_core_field_offset(type, field) __builtin_offsetof(type, field)

#define CORE

#endif
