/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How many records could not be handed over: counted here, summed in every report. */
#ifndef STUCKTRACE_LOST_H
#define STUCKTRACE_LOST_H

#include "types.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} lost SEC(".maps");

/* Losing is rare, so one shared counter is cheap enough. */
static __always_inline void count_lost(void)
{
	__u32 zero = 0;
	__u64 *count = bpf_map_lookup_elem(&lost, &zero);

	if (count)
		__sync_fetch_and_add(count, 1);
}

#endif
