/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How many records could not be handed over: counted here, summed in every report. */
#ifndef STUCKTRACE_LOST_H
#define STUCKTRACE_LOST_H

#include "types.h"
#include "maps.h"

MAP_ARRAY(lost, __u64, 1);

/* Losing is rare, so one shared counter is cheap enough. */
static __always_inline void count_lost(void)
{
	__u32 zero = 0;
	__u64 *count = bpf_map_lookup_elem(&lost, &zero);

	if (count)
		__sync_fetch_and_add(count, 1);
}

#endif
