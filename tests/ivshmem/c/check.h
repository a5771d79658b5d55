/* SPDX-License-Identifier: Apache-2.0 */
/* What the C tests need: a check that names itself, and a channel in ordinary memory. */
#ifndef TESTS_CHECK_H
#define TESTS_CHECK_H

#include <hyperheap/core.h>
#include <hyperheap/ring.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define CHECK(condition)                                                                                                       \
	do {                                                                                                                   \
		if (!(condition)) {                                                                                            \
			fprintf(stderr, "%s:%d: %s: failed: %s\n", __FILE__, __LINE__, __func__, #condition);                   \
			exit(1);                                                                                               \
		}                                                                                                              \
	} while (0)

struct fixture {
	void *memory;
	size_t length;
	struct hh_region *region;
	struct hh_end *left, *right; /* the two ends; left sends in direction 0 */
	struct hh_ring ring;         /* direction 0 */
};

/* A channel and its two ends, in shared anonymous memory (so that forked children see it). */
static inline struct fixture make_channel(uint32_t ring_size)
{
	struct fixture f = {.length = (size_t)hh_channel_length(ring_size)};
	struct hh_offer offer = {.cookie = 11, .channel = 1, .ring_size = ring_size, .want = HH_PATH_SHARED};
	struct hh_channel *control;
	int left, right;

	f.memory = mmap(NULL, f.length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	f.region = mmap(NULL, (size_t)hh_region_length(64), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(f.memory != MAP_FAILED && f.region != MAP_FAILED);
	CHECK(hh_channel_format(f.memory, f.length, 0, ring_size, 1, 1) == 0);
	CHECK(hh_region_format(f.region, 64) == 0);
	left = hh_end_put(f.region, &offer);
	offer.cookie = 12;
	offer.side = 1;
	right = hh_end_put(f.region, &offer);
	CHECK(left >= 0 && right >= 0);
	f.left = (struct hh_end *)((char *)f.region + HH_REGION_HEADER) + left;
	f.right = (struct hh_end *)((char *)f.region + HH_REGION_HEADER) + right;
	control = f.memory;
	f.ring = (struct hh_ring){&control->direction[0], (uint8_t *)f.memory + HH_CONTROL_SIZE, ring_size};
	return f;
}

static inline void drop_channel(struct fixture *f)
{
	munmap(f->memory, f->length);
	munmap(f->region, (size_t)hh_region_length(64));
}

#endif
