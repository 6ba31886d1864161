/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A program on a tracepoint, by whichever means a kernel has: HOOK(name, tracepoint) { ... } is written once.
 *
 * The arguments are ctx[0], ctx[1], ... in the order of the tracepoint's prototype, in each of the forms:
 *   name      tp_btf   the kernel's types are known to the verifier (Linux 5.5 and BTF)
 *   name_raw  raw_tp   they are plain numbers (4.17)
 *   with bcc  a raw tracepoint, compiled against the kernel's own headers
 * So what an argument points to is read with BPF_CORE_READ, which is right in all of them. collectors/hooks.py takes the
 * first form that the kernel takes; the sections' names are its list.
 */
#ifndef STUCKTRACE_HOOK_H
#define STUCKTRACE_HOOK_H

#include "types.h"

#ifdef __BCC__
/* Loaded as a raw tracepoint by its name. */
#define HOOK(name, tracepoint) int name(__u64 *ctx)
#else
#define HOOK(name, tracepoint)                                \
	static __always_inline int name##_body(__u64 *ctx);   \
	SEC("tp_btf/" #tracepoint) int name(__u64 *ctx)       \
	{                                                     \
		return name##_body(ctx);                      \
	}                                                     \
	SEC("raw_tp/" #tracepoint) int name##_raw(__u64 *ctx) \
	{                                                     \
		return name##_body(ctx);                      \
	}                                                     \
	static __always_inline int name##_body(__u64 *ctx)
#endif

#endif
