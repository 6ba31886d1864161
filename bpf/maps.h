/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * How maps are declared, for both compilers of this source: clang with libbpf, and bcc where __BCC__ is defined.
 *
 * They are used as `bpf_map_lookup_elem(&name, &key)`, `bpf_map_update_elem(&name, &key, &value, BPF_ANY or BPF_NOEXIST)` and
 * `bpf_map_delete_elem(&name, &key)`. bcc has methods of the map instead and takes none from a macro, so these three are
 * rewritten before it sees the text (collectors/bcc_source.py): the map is a plain name, and the flags a plain word.
 */
#ifndef STUCKTRACE_MAPS_H
#define STUCKTRACE_MAPS_H

#include "types.h"

#ifdef __BCC__

#define MAP_HASH(name, key_type, value_type, entries) BPF_TABLE("hash", key_type, value_type, name, entries)
/* Entries are allocated as they come: for a map that is far from full on most nodes. */
#define MAP_HASH_SPARSE(name, key_type, value_type, entries)                                                           \
	BPF_F_TABLE("hash", key_type, value_type, name, entries, BPF_F_NO_PREALLOC)
#define MAP_LRU_HASH(name, key_type, value_type, entries) BPF_TABLE("lru_hash", key_type, value_type, name, entries)
#define MAP_ARRAY(name, value_type, entries) BPF_TABLE("array", __u32, value_type, name, entries)

#else

#define MAP_OF(map_type, flags, name, key_type, value_type, entries)                                                   \
	struct {                                                                                                       \
		__uint(type, map_type);                                                                                \
		__uint(max_entries, entries);                                                                          \
		__uint(map_flags, flags);                                                                              \
		__type(key, key_type);                                                                                 \
		__type(value, value_type);                                                                             \
	} name SEC(".maps")

#define MAP_HASH(name, key_type, value_type, entries) MAP_OF(BPF_MAP_TYPE_HASH, 0, name, key_type, value_type, entries)
/* Entries are allocated as they come: for a map that is far from full on most nodes. */
#define MAP_HASH_SPARSE(name, key_type, value_type, entries)                                                           \
	MAP_OF(BPF_MAP_TYPE_HASH, BPF_F_NO_PREALLOC, name, key_type, value_type, entries)
#define MAP_LRU_HASH(name, key_type, value_type, entries)                                                              \
	MAP_OF(BPF_MAP_TYPE_LRU_HASH, 0, name, key_type, value_type, entries)
#define MAP_ARRAY(name, value_type, entries) MAP_OF(BPF_MAP_TYPE_ARRAY, 0, name, __u32, value_type, entries)

#endif

#endif
