/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The set of processes that a look follows. */
#ifndef STUCKTRACE_FOLLOWED_H
#define STUCKTRACE_FOLLOWED_H

#include "types.h"

/* Processes to report, by their pid as the tool sees it. A gunicorn master and its workers are tens, a node hundreds. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u8); /* FOLLOW_REGISTERS, or anything else */
} followed SEC(".maps");

#define FOLLOW_REGISTERS 2 /* its sleeping threads' user-space registers too */

static __always_inline bool is_followed(__u32 pid)
{
	return bpf_map_lookup_elem(&followed, &pid) != NULL;
}

static __always_inline bool wants_registers(__u32 pid)
{
	__u8 *how = bpf_map_lookup_elem(&followed, &pid);

	return how && *how == FOLLOW_REGISTERS;
}

#endif
