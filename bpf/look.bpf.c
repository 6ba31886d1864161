// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * One look: what the threads are in, which sockets they hold, and who is at the other end. All iterators in one object,
 * because reading the kernel's BTF is what loading costs.
 */
#include "threads.bpf.c"
#include "sockets.bpf.c"
#include "peers.bpf.c"
