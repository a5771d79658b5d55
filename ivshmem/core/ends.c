/* SPDX-License-Identifier: Apache-2.0 */
#include <hyperheap/atomics.h>
#include <hyperheap/core.h>
#include <hyperheap/ends_find.h>

#include <errno.h>
#include <string.h>

int64_t hh_region_length(uint32_t end_count)
{
	if (end_count < HH_PROBES || end_count > (1U << 24) || (end_count & (end_count - 1)))
		return -EINVAL;
	return HH_REGION_HEADER + (int64_t)end_count * (int64_t)sizeof(struct hh_end);
}

int hh_region_format(void *memory, uint32_t end_count)
{
	struct hh_region *region = memory;
	int64_t length = hh_region_length(end_count);

	if (length < 0)
		return (int)length;
	memset(memory, 0, (size_t)length);
	region->version = HH_LAYOUT_VERSION;
	region->end_count = end_count;
	hh_store_release(&region->magic, HH_REGION_MAGIC);
	return 0;
}

int hh_region_check(const void *memory, uint64_t length)
{
	const struct hh_region *region = memory;
	int64_t expected;

	if (length < HH_REGION_HEADER || hh_load_acquire(&region->magic) != HH_REGION_MAGIC ||
	    region->version != HH_LAYOUT_VERSION)
		return -EINVAL;
	expected = hh_region_length(region->end_count);
	return expected > 0 && (uint64_t)expected <= length ? 0 : -EINVAL;
}

int64_t hh_region_adopt(void *memory)
{
	struct hh_region *region = memory;

	return hh_fetch_add(&region->agent_epoch, 1) + 1;
}

void hh_region_set_policy(void *memory, uint32_t upgrade_calls, uint64_t upgrade_bytes, uint32_t spin_ns)
{
	struct hh_region *region = memory;

	hh_store(&region->upgrade_calls, upgrade_calls);
	hh_store(&region->upgrade_bytes, upgrade_bytes);
	hh_store(&region->spin_ns, spin_ns);
}

void hh_region_bump(void *memory)
{
	struct hh_region *region = memory;

	hh_fetch_add(&region->offers, 1); /* R7 <-> A7 */
}

static struct hh_end *end_at(const void *memory, uint32_t index)
{
	const struct hh_region *region = memory;
	struct hh_end *end;

	if (index >= region->end_count)
		return NULL;
	end = hh_region_ends(region) + index;
	return end->cookie == 0 || end->cookie == HH_TOMBSTONE ? NULL : end;
}

static int init_lock(pthread_mutex_t *lock)
{
	pthread_mutexattr_t attr;
	int error = pthread_mutexattr_init(&attr);

	if (error)
		return -error;
	pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
	pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
	error = pthread_mutex_init(lock, &attr);
	pthread_mutexattr_destroy(&attr);
	return -error;
}

int hh_end_put(void *memory, const struct hh_offer *offer)
{
	struct hh_region *region = memory;
	struct hh_end *ends = hh_region_ends(region);
	uint32_t start = hh_cookie_hash(offer->cookie);

	if (offer->cookie == 0 || offer->cookie == HH_TOMBSTONE || hh_channel_length(offer->ring_size) < 0 || offer->side > 1)
		return -EINVAL;
	if (hh_end_lookup(region, offer->cookie) >= 0)
		return -EEXIST;
	for (uint32_t i = 0; i < HH_PROBES; i++) {
		uint32_t index = (start + i) & (region->end_count - 1);
		struct hh_end *end = &ends[index];

		if (end->cookie != 0 && end->cookie != HH_TOMBSTONE)
			continue;
		memset((uint8_t *)end + sizeof(end->cookie), 0, sizeof(*end) - sizeof(end->cookie));
		end->channel = offer->channel;
		end->offset = offer->offset;
		end->ring_size = offer->ring_size;
		end->generation = offer->generation;
		end->heap = offer->heap;
		end->side = offer->side;
		end->peer_id = offer->peer_id;
		end->want = offer->want;
		if (init_lock(&end->tx.lock) || init_lock(&end->rx.lock))
			return -ENOMEM;
		hh_store_release(&end->cookie, offer->cookie); /* R6 <-> A6 */
		return (int)index;
	}
	return -ENOSPC;
}

int hh_end_find(const void *memory, uint64_t cookie)
{
	return hh_end_lookup(memory, cookie);
}

/* Nobody is inside, or whoever was is dead. */
static int drain_lock(pthread_mutex_t *lock)
{
	int error = pthread_mutex_trylock(lock);

	if (error == EBUSY)
		return -EBUSY;
	if (error == EOWNERDEAD)
		pthread_mutex_consistent(lock);
	else if (error)
		return 0;
	pthread_mutex_unlock(lock);
	return 0;
}

int hh_end_drop(void *memory, uint32_t index)
{
	struct hh_region *region = memory;
	struct hh_end *end = end_at(memory, index);
	struct hh_end *next;

	if (!end)
		return -ENOENT;
	if (drain_lock(&end->tx.lock) || drain_lock(&end->rx.lock))
		return -EBUSY;
	next = hh_region_ends(region) + ((index + 1) & (region->end_count - 1));
	hh_store_release(&end->cookie, next->cookie == 0 ? 0 : HH_TOMBSTONE);
	return 0;
}

int hh_end_stats(const void *memory, uint32_t index, struct hh_end_stats *stats)
{
	const struct hh_end *end = end_at(memory, index);

	if (!end)
		return -ENOENT;
	*stats = (struct hh_end_stats){
		.cookie = end->cookie,
		.channel = end->channel,
		.tx_shared = hh_load(&end->tx.head),
		.rx_shared = hh_load(&end->rx.tail),
		.tx_path = hh_load(&end->tx.path),
		.rx_path = hh_load(&end->rx.path),
		.tx_epochs = hh_load(&end->tx.epochs),
		.rx_epochs = hh_load(&end->rx.epochs),
		.gone = hh_load(&end->gone),
		.error = hh_load(&end->error),
		.attached = hh_load(&end->attached),
		.generation = end->generation,
		.offset = end->offset,
		.heap = end->heap,
		.ring_size = end->ring_size,
		.side = end->side,
		.peer_id = end->peer_id,
	};
	return 0;
}

int hh_end_set_gone(void *memory, uint32_t index, uint32_t gone)
{
	struct hh_end *end = end_at(memory, index);

	if (!end)
		return -ENOENT;
	hh_store_release(&end->gone, gone);
	return 0;
}

int hh_end_set_want(void *memory, uint32_t index, uint32_t path)
{
	struct hh_end *end = end_at(memory, index);

	if (!end)
		return -ENOENT;
	hh_store_release(&end->want, path);
	return 0;
}
