/* SPDX-License-Identifier: Apache-2.0 */
/* Heaps, channels and the region of ends, as the broker and the agent use them. */
#include "check.h"

#include <hyperheap/ends_find.h>

#include <errno.h>
#include <sys/wait.h>
#include <unistd.h>

static void heaps_are_recognised(void)
{
	static uint8_t heap[65536];
	uint8_t uuid[16] = "0123456789abcde", found[16];
	char name[64];

	CHECK(hh_heap_check(heap, sizeof(heap), found, name) == -EINVAL);
	CHECK(hh_heap_format(heap, 60000, uuid, "shared") == -EINVAL);
	CHECK(hh_heap_format(heap, sizeof(heap), uuid, "shared") == 0);
	CHECK(hh_heap_check(heap, sizeof(heap), found, name) == 0);
	CHECK(!memcmp(uuid, found, 16) && !strcmp(name, "shared"));
	CHECK(hh_heap_check(heap, 32768, found, name) == -EINVAL);
}

static void channels_stay_in_their_heap(void)
{
	static uint8_t heap[65536];

	CHECK(hh_channel_length(4096) == 3 * 4096);
	CHECK(hh_channel_length(4095) == -EINVAL && hh_channel_length(6000) == -EINVAL && hh_channel_length(0) == -EINVAL);
	CHECK(hh_channel_format(heap, sizeof(heap), 4096, 4096, 1, 1) == 0);
	CHECK(hh_channel_format(heap, sizeof(heap), 100, 4096, 1, 1) == -EINVAL);
	CHECK(hh_channel_format(heap, sizeof(heap), 57344, 4096, 1, 1) == -EINVAL);
	CHECK(hh_channel_format(heap, sizeof(heap), UINT64_MAX & ~UINT64_C(4095), 4096, 1, 1) == -EINVAL);
	CHECK(hh_channel_clear(heap, sizeof(heap), 4096) == 0);
}

static void ends_come_and_go(void)
{
	size_t length = (size_t)hh_region_length(256);
	void *region = aligned_alloc(4096, length);
	struct hh_end_stats stats;
	int put = 0, index;

	CHECK(hh_region_length(100) == -EINVAL);
	CHECK(hh_region_format(region, 256) == 0 && hh_region_check(region, length) == 0);
	CHECK(hh_region_check(region, length - 1) == -EINVAL);
	for (uint64_t cookie = 1; cookie <= 200; cookie++) {
		struct hh_offer offer = {.cookie = cookie, .channel = cookie * 10, .ring_size = 4096};

		put += hh_end_put(region, &offer) >= 0;
		CHECK(hh_end_put(region, &offer) == -EEXIST);
	}
	CHECK(put == 200);
	for (uint64_t cookie = 1; cookie <= 200; cookie++) {
		index = hh_end_find(region, cookie);
		CHECK(index >= 0 && hh_end_stats(region, (uint32_t)index, &stats) == 0 && stats.channel == cookie * 10);
		if (cookie % 2)
			CHECK(hh_end_drop(region, (uint32_t)index) == 0 && hh_end_find(region, cookie) == -ENOENT);
	}
	/* What was probed past a dropped one is still found. */
	for (uint64_t cookie = 2; cookie <= 200; cookie += 2)
		CHECK(hh_end_find(region, cookie) >= 0);
	CHECK(hh_end_drop(region, 100000) == -ENOENT);
	free(region);
}

static void an_end_in_use_is_not_dropped(void)
{
	struct fixture f = make_channel(4096);
	int index = hh_end_find(f.region, 11), status;
	int ready[2], done[2];
	char byte;
	pid_t child;

	CHECK(!pipe(ready) && !pipe(done));
	child = fork();
	if (!child) {
		hh_tx_lock(&f.left->tx, &f.ring);
		CHECK(write(ready[1], "x", 1) == 1 && read(done[0], &byte, 1) == 1);
		_exit(0); /* with the lock: as if killed */
	}
	CHECK(read(ready[0], &byte, 1) == 1);
	CHECK(hh_end_drop(f.region, (uint32_t)index) == -EBUSY);
	CHECK(write(done[1], "x", 1) == 1 && waitpid(child, &status, 0) == child);
	CHECK(hh_end_drop(f.region, (uint32_t)index) == 0);
	drop_channel(&f);
}

int main(void)
{
	heaps_are_recognised();
	channels_stay_in_their_heap();
	ends_come_and_go();
	an_end_in_use_is_not_dropped();
	puts("passed");
	return 0;
}
