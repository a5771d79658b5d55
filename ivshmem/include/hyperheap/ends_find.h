/* SPDX-License-Identifier: Apache-2.0 */
/* Finding an end by its socket's cookie: open addressing, one writer (the agent), readers without locks. */
#ifndef HYPERHEAP_ENDS_FIND_H
#define HYPERHEAP_ENDS_FIND_H

#include "atomics.h"
#include "ends.h"

#include <errno.h>

#define HH_PROBES 64
#define HH_TOMBSTONE UINT64_MAX

static inline struct hh_end *hh_region_ends(const struct hh_region *region)
{
	return (struct hh_end *)((uintptr_t)region + HH_REGION_HEADER);
}

static inline uint32_t hh_cookie_hash(uint64_t cookie)
{
	return (uint32_t)((cookie * UINT64_C(0x9e3779b97f4a7c15)) >> 32); /* Fibonacci hashing, Knuth TAOCP 6.4 */
}

/* Index of the cookie's end, or -ENOENT. */
static inline int hh_end_lookup(const struct hh_region *region, uint64_t cookie)
{
	uint32_t count = region->end_count, start = hh_cookie_hash(cookie);

	for (uint32_t i = 0; i < HH_PROBES; i++) {
		uint32_t index = (start + i) & (count - 1);
		uint64_t found = hh_load_acquire(&hh_region_ends(region)[index].cookie); /* A6 <-> R6 */

		if (found == cookie)
			return (int)index;
		if (found == 0)
			return -ENOENT;
	}
	return -ENOENT;
}

#endif
