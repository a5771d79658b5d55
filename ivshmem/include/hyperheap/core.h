/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the broker and the agent do to heaps and to the region of ends. Exported by libivshmem.so and bound by
 * ivshmem/core.py. All return 0 or a value >= 0, or a negative errno.
 */
#ifndef HYPERHEAP_CORE_H
#define HYPERHEAP_CORE_H

#include "ends.h"

#include <sys/types.h>

#define HH_API __attribute__((visibility("default")))

/* What an agent knows when it offers an end to its processes. */
struct hh_offer {
	uint64_t cookie;
	uint64_t channel;
	uint64_t offset; /* bytes from the start of the heap */
	uint32_t ring_size;
	uint32_t generation;
	uint32_t heap; /* 0: memory of this guest */
	uint32_t side;
	uint32_t peer_id;
	uint32_t want; /* enum hh_path */
};

/* Counters of one end for the tables; bytes since the channel began. */
struct hh_end_stats {
	uint64_t cookie;
	uint64_t channel;
	uint64_t tx_shared; /* bytes put on the ring */
	uint64_t rx_shared; /* bytes taken off the ring */
	uint32_t tx_path;
	uint32_t rx_path;
	uint32_t tx_epochs;
	uint32_t rx_epochs;
	uint32_t gone;
	uint32_t error;
	uint32_t attached;
	uint32_t generation;
	uint64_t offset;
	uint32_t heap;
	uint32_t ring_size;
	uint32_t side;
	uint32_t peer_id;
};

HH_API int hh_heap_format(void *heap, uint64_t size, const uint8_t uuid[16], const char *name);
/* -EINVAL: not a heap, another version, or smaller than it says. */
HH_API int hh_heap_check(const void *heap, uint64_t size, uint8_t uuid[16], char name[64]);

/* Bytes of a channel with this ring size, or -EINVAL. */
HH_API int64_t hh_channel_length(uint32_t ring_size);
HH_API int hh_channel_format(void *heap, uint64_t heap_size, uint64_t offset, uint32_t ring_size, uint64_t channel,
			     uint32_t generation);
/* The lease ended: nobody may attach any more. */
HH_API int hh_channel_clear(void *heap, uint64_t heap_size, uint64_t offset);

/* Bytes of a region with this many ends (a power of two), or -EINVAL. */
HH_API int64_t hh_region_length(uint32_t end_count);
HH_API int hh_region_format(void *region, uint32_t end_count);
HH_API int hh_region_check(const void *region, uint64_t length);
/* A restarted agent adopts the region: the new agent_epoch. */
HH_API int64_t hh_region_adopt(void *region);
HH_API void hh_region_set_policy(void *region, uint32_t upgrade_calls, uint64_t upgrade_bytes, uint32_t spin_ns);
HH_API void hh_region_bump(void *region);

/* Index of the end. -EEXIST: the cookie has one; -ENOSPC: no room near its place. */
HH_API int hh_end_put(void *region, const struct hh_offer *offer);
/* Index, or -ENOENT. */
HH_API int hh_end_find(const void *region, uint64_t cookie);
/* -EBUSY: a living process is inside; try again. */
HH_API int hh_end_drop(void *region, uint32_t index);
/* -ENOENT: the slot is free. */
HH_API int hh_end_stats(const void *region, uint32_t index, struct hh_end_stats *stats);
HH_API int hh_end_set_gone(void *region, uint32_t index, uint32_t gone);
HH_API int hh_end_set_want(void *region, uint32_t index, uint32_t path);

/* How long a process should spin at most before it sleeps: about what a sleep and its wake-up cost on this machine. */
HH_API uint32_t hh_spin_ns(void);

/* The layout as JSON: {"struct": {"size": n, "field": offset, ...}, ...}; the string is static. */
HH_API const char *hh_layout_json(void);

#endif
