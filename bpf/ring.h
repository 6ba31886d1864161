/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A stream of records to user space, which reads it every tick: `fd` is readable while anything lies there. */
#ifndef STUCKTRACE_RING_H
#define STUCKTRACE_RING_H

#include "types.h"
#include "lost.h"

/* A few thousand records between two ticks; what does not fit is counted as lost. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} ring SEC(".maps");

/* False: there was no room. `urgent`: wakes the reader; the rest waits for its next tick. */
static __always_inline bool emit_record(void *record, __u32 bytes, bool urgent)
{
	if (bpf_ringbuf_output(&ring, record, bytes, urgent ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP)) {
		count_lost();
		return false;
	}
	return true;
}

#endif
