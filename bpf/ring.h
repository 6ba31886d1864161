/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A stream of records to user space, which reads it every tick: `fd` is readable while anything lies there.
 *
 * A record begins with `struct record` and the time it was made, a __u64. Kernels before 5.8 have no ring buffers: there
 * the map is made a perf event array before it is created (collectors/libbpf.py), one buffer for each CPU, and every record
 * wakes the reader. What was compiled for the other kind of map is cut out by the verifier, for both conditions below are
 * known when it looks.
 */
#ifndef STUCKTRACE_RING_H
#define STUCKTRACE_RING_H

#include "types.h"
#include "lost.h"

/* A few thousand records between two ticks; what does not fit is counted as lost. */
#define RING_BYTES (1 << 18)

#ifdef __BCC__

/* Asked of the kernel by who compiles this (collectors/bcc.py). */
#ifdef RING_IS_PERF_ARRAY
BPF_PERF_OUTPUT(ring);
#else
BPF_RINGBUF_OUTPUT(ring, RING_BYTES / PAGE_SIZE);
#endif

static __always_inline bool emit_record(void *ctx, void *record, __u32 bytes, bool urgent)
{
	long refused;

#ifdef RING_IS_PERF_ARRAY
	refused = ring.perf_submit(ctx, record, bytes);
#else
	refused = ring.ringbuf_output(record, bytes, urgent ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP);
#endif
	if (refused)
		count_lost();
	return !refused;
}

#else

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, RING_BYTES);
} ring SEC(".maps");

/* Set before the programs are loaded. */
const volatile __u32 ring_is_perf_array SEC(".rodata.ring") = 0;

/* False: there was no room. `urgent`: wakes the reader; the rest waits for its next tick. */
static __always_inline bool emit_record(void *ctx, void *record, __u32 bytes, bool urgent)
{
	long refused;

	/* Where the helper is unknown, the verifier may not see it at all (5.4 does not know what a constant map holds). */
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_ringbuf_output) && !ring_is_perf_array)
		refused = bpf_ringbuf_output(&ring, record, bytes, urgent ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP);
	else
		refused = bpf_perf_event_output(ctx, &ring, BPF_F_CURRENT_CPU, record, bytes);
	if (refused)
		count_lost();
	return !refused;
}

#endif

#endif
