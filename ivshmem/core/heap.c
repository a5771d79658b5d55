/* SPDX-License-Identifier: Apache-2.0 */
#include <hyperheap/atomics.h>
#include <hyperheap/core.h>

#include <errno.h>
#include <stdbool.h>
#include <string.h>

static bool is_power_of_two(uint64_t value)
{
	return value && !(value & (value - 1));
}

int hh_heap_format(void *heap, uint64_t size, const uint8_t uuid[16], const char *name)
{
	struct hh_heap_header header = {
		.magic = HH_HEAP_MAGIC,
		.version = HH_LAYOUT_VERSION,
		.header_size = sizeof(header),
		.size = size,
	};

	if (size < 2 * HH_PAGE || !is_power_of_two(size) || strlen(name) >= sizeof(header.name))
		return -EINVAL;
	memcpy(header.uuid, uuid, sizeof(header.uuid));
	memcpy(header.name, name, strlen(name));
	memcpy(heap, &header, sizeof(header));
	return 0;
}

int hh_heap_check(const void *heap, uint64_t size, uint8_t uuid[16], char name[64])
{
	struct hh_heap_header header;

	if (size < HH_PAGE)
		return -EINVAL;
	memcpy(&header, heap, sizeof(header));
	if (header.magic != HH_HEAP_MAGIC || header.version != HH_LAYOUT_VERSION || header.size > size)
		return -EINVAL;
	header.name[sizeof(header.name) - 1] = 0;
	memcpy(uuid, header.uuid, sizeof(header.uuid));
	memcpy(name, header.name, sizeof(header.name));
	return 0;
}

int64_t hh_channel_length(uint32_t ring_size)
{
	if (ring_size < HH_RING_MIN || ring_size > HH_RING_MAX || !is_power_of_two(ring_size))
		return -EINVAL;
	return HH_CONTROL_SIZE + 2 * (int64_t)ring_size;
}

static struct hh_channel *channel_at(void *heap, uint64_t heap_size, uint64_t offset, uint64_t length)
{
	if (offset % HH_PAGE || offset > heap_size || length > heap_size - offset)
		return NULL;
	return (struct hh_channel *)((uint8_t *)heap + offset);
}

int hh_channel_format(void *heap, uint64_t heap_size, uint64_t offset, uint32_t ring_size, uint64_t channel,
		      uint32_t generation)
{
	int64_t length = hh_channel_length(ring_size);
	struct hh_channel *control;

	if (length < 0)
		return -EINVAL;
	control = channel_at(heap, heap_size, offset, (uint64_t)length);
	if (!control)
		return -EINVAL;
	/* The rings keep what the last lease left there: nobody reads past a head that starts at zero. What a stranger
	 * could read with his own code is another matter: wipe it. */
	memset(control, 0, (size_t)length);
	control->lease.version = HH_LAYOUT_VERSION;
	control->lease.channel = channel;
	control->lease.generation = generation;
	control->lease.ring_size = ring_size;
	hh_store_release(&control->lease.magic, HH_CHANNEL_MAGIC);
	return 0;
}

int hh_channel_clear(void *heap, uint64_t heap_size, uint64_t offset)
{
	struct hh_channel *control = channel_at(heap, heap_size, offset, HH_CONTROL_SIZE);

	if (!control)
		return -EINVAL;
	memset(control, 0, HH_CONTROL_SIZE);
	return 0;
}
