// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What happens to the conntrack entries of the followed TCP connections, in any network namespace: made anew in mid-stream,
 * evicted or deleted (and why), refused because the table is full? Everything else is counted only.
 *
 * On functions of nf_conntrack, for there is no tracepoint: fentry where the kernel or the module has BTF, else kprobes.
 * Only an entry in state ESTABLISHED is told of, as one that opens or closes comes and goes as it should.
 */
#include "net_types.h"
#include "events.h"
#include "maps.h"
#include "ring.h"

ANCHOR(conntrack_record);
ANCHOR(flow_key);

/* enum tcp_conntrack */
#define CONNTRACK_ESTABLISHED 3

/* One direction of a flow. Has had this layout in every kernel with BPF; ports in network order. */
struct conntrack_tuple {
	__u8 source[16];
	__be16 source_port;
	__u16 family;
	__u8 target[16];
	__be16 target_port;
	__u8 protocol;
	__u8 direction;
};

struct nf_conntrack_tuple {
	char anything;
};

struct nf_conntrack_tuple_hash {
	struct nf_conntrack_tuple tuple;
} CORE;

struct ip_ct_tcp {
	__u8 state;
} CORE;

union nf_conntrack_proto {
	struct ip_ct_tcp tcp;
} CORE;

struct nf_conn {
	__u32 timeout;
	struct nf_conntrack_tuple_hash tuplehash[2];
	unsigned long status;
	possible_net_t ct_net;
	union nf_conntrack_proto proto;
} CORE;

/* The connections to tell of, each in both directions and under every name that it has on its way. */
MAP_HASH_SPARSE(flows, struct flow_key, __u8, 65536);

/* How often each thing happened on the node, by enum conntrack_counter. */
MAP_ARRAY(counts, __u64, CONNTRACK_COUNTERS);

/*
 * The allocation that this CPU is in the middle of. One that was preempted and goes on elsewhere may lend its tuple to
 * another; then a refusal is not told of, or its reason is.
 */
struct allocation {
	struct net *net;
	void *tuple;
	__u32 evicts; /* the table is full, and it looks for an entry to give up */
};
MAP_OF(BPF_MAP_TYPE_PERCPU_ARRAY, 0, allocations, __u32, struct allocation, 1);

static __always_inline void tally(__u32 counter)
{
	__u64 *count = bpf_map_lookup_elem(&counts, &counter);

	if (count)
		__sync_fetch_and_add(count, 1);
}

static __always_inline void read_tuple(struct flow_key *key, struct conntrack_tuple *tuple)
{
	/* IPv4 fills the first four bytes; the rest is zero. */
	__builtin_memcpy(key->source, tuple->source, 16);
	__builtin_memcpy(key->target, tuple->target, 16);
	key->source_port = __builtin_bswap16(tuple->source_port);
	key->target_port = __builtin_bswap16(tuple->target_port);
}

static __always_inline void tell(void *ctx, __u32 kind, __u32 reason, struct net *net, struct conntrack_record *record)
{
	record->header.kind = RECORD_CONNTRACK;
	record->header.length = sizeof(*record);
	record->time_ns = bpf_ktime_get_ns();
	record->kind = kind;
	record->reason = reason;
	record->netns = BPF_CORE_READ(net, ns.inum);
	emit_record(ctx, record, sizeof(*record), true);
}

/* Fills the tuples of an entry. False: it is not one to tell of. */
static __always_inline bool is_followed_flow(struct nf_conn *entry, struct conntrack_record *record)
{
	__u32 offset = bpf_core_field_offset(struct nf_conntrack_tuple_hash, tuple);
	struct conntrack_tuple tuple;

	bpf_probe_read_kernel(&tuple, sizeof(tuple), (void *)&entry->tuplehash[0] + offset);
	record->state = BPF_CORE_READ(entry, proto.tcp.state);
	if (tuple.protocol != IPPROTO_TCP || record->state != CONNTRACK_ESTABLISHED)
		return false;
	record->family = tuple.family;
	read_tuple(&record->original, &tuple);
	bpf_probe_read_kernel(&tuple, sizeof(tuple), (void *)&entry->tuplehash[1] + offset);
	read_tuple(&record->reply, &tuple);
	record->status = BPF_CORE_READ(entry, status);
	return bpf_map_lookup_elem(&flows, &record->original) || bpf_map_lookup_elem(&flows, &record->reply);
}

static __always_inline struct allocation *allocation_here(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&allocations, &zero);
}

static __always_inline __u32 reason_of(struct nf_conn *entry, __u32 asked_by)
{
	struct allocation *here = allocation_here();

	if (here && here->evicts)
		return GONE_EVICTED;
	if (asked_by)
		return GONE_ASKED;
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_jiffies64) &&
	    (__s32)(BPF_CORE_READ(entry, timeout) - (__u32)bpf_jiffies64()) <= 0)
		return GONE_EXPIRED;
	return GONE_OTHERWISE;
}

static __always_inline int gone(void *ctx, struct nf_conn *entry, __u32 asked_by)
{
	struct conntrack_record record = {};
	__u32 reason = reason_of(entry, asked_by);

	tally(COUNT_GONE);
	if (reason == GONE_EVICTED)
		tally(COUNT_EVICTED);
	if (is_followed_flow(entry, &record))
		tell(ctx, CONNTRACK_GONE, reason, BPF_CORE_READ(entry, ct_net.net), &record);
	return 0;
}

static __always_inline int born(void *ctx, struct nf_conn *entry)
{
	struct conntrack_record record = {};

	tally(COUNT_BORN);
	if (is_followed_flow(entry, &record))
		tell(ctx, CONNTRACK_BORN, 0, BPF_CORE_READ(entry, ct_net.net), &record);
	return 0;
}

static __always_inline int allocates(struct net *net, void *tuple)
{
	struct allocation *here = allocation_here();

	if (here) {
		here->net = net;
		here->tuple = tuple;
		here->evicts = 0;
	}
	return 0;
}

static __always_inline int evicts(void)
{
	struct allocation *here = allocation_here();

	if (here)
		here->evicts = 1;
	return 0;
}

/* `made_room`: false, and the packet that asked for an entry is dropped. */
static __always_inline int has_evicted(void *ctx, bool made_room)
{
	struct allocation *here = allocation_here();
	struct conntrack_record record = {};
	struct conntrack_tuple tuple = {};

	if (!here)
		return 0;
	here->evicts = 0;
	if (made_room)
		return 0;
	tally(COUNT_REFUSED);
	if (!here->tuple)
		return 0;
	bpf_probe_read_kernel(&tuple, sizeof(tuple), here->tuple);
	record.family = tuple.family;
	read_tuple(&record.original, &tuple);
	if (tuple.protocol == IPPROTO_TCP && bpf_map_lookup_elem(&flows, &record.original))
		tell(ctx, CONNTRACK_REFUSED, 0, here->net, &record);
	return 0;
}

/* bool nf_ct_delete(struct nf_conn *ct, u32 portid, int report) */
SEC("fentry/nf_ct_delete")
int on_delete(__u64 *ctx)
{
	return gone(ctx, (struct nf_conn *)ctx[0], ctx[1]);
}

SEC("kprobe/nf_ct_delete")
int on_delete_kprobe(struct pt_regs *regs)
{
	return gone(regs, (struct nf_conn *)BPF_CORE_READ(regs, FUNCTION_ARG0), BPF_CORE_READ(regs, FUNCTION_ARG1));
}

/* void __nf_conntrack_hash_insert(struct nf_conn *ct, unsigned int hash, unsigned int reply_hash) */
SEC("fentry/__nf_conntrack_hash_insert")
int on_insert(__u64 *ctx)
{
	return born(ctx, (struct nf_conn *)ctx[0]);
}

SEC("kprobe/__nf_conntrack_hash_insert")
int on_insert_kprobe(struct pt_regs *regs)
{
	return born(regs, (struct nf_conn *)BPF_CORE_READ(regs, FUNCTION_ARG0));
}

/* struct nf_conn *__nf_conntrack_alloc(net, zone, const struct nf_conntrack_tuple *orig, ...) */
SEC("fentry/__nf_conntrack_alloc")
int on_alloc(__u64 *ctx)
{
	return allocates((struct net *)ctx[0], (void *)ctx[2]);
}

SEC("kprobe/__nf_conntrack_alloc")
int on_alloc_kprobe(struct pt_regs *regs)
{
	return allocates((struct net *)BPF_CORE_READ(regs, FUNCTION_ARG0), (void *)BPF_CORE_READ(regs, FUNCTION_ARG2));
}

/* bool early_drop(struct net *net, unsigned int hash) */
SEC("fentry/early_drop")
int on_evict(__u64 *ctx)
{
	return evicts();
}

SEC("kprobe/early_drop")
int on_evict_kprobe(struct pt_regs *regs)
{
	return evicts();
}

SEC("fexit/early_drop")
int on_evicted(__u64 *ctx)
{
	return has_evicted(ctx, (__u8)ctx[2]);
}

SEC("kretprobe/early_drop")
int on_evicted_kprobe(struct pt_regs *regs)
{
	return has_evicted(regs, (__u8)READ_SYSCALL_RESULT(regs));
}
