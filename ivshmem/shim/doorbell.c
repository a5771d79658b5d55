/* SPDX-License-Identifier: Apache-2.0 */
#include "doorbell.h"

#include "agent.h"
#include "channel.h"
#include "libc.h"

#include <hyperheap/hyperheap_ioctl.h>

#include <errno.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define HEAPS_MAX 16

static struct {
	int device;                   /* private descriptor + 1; 0: none */
	uint8_t *registers;           /* NULL: ring by ioctl */
} heaps[HEAPS_MAX];

static struct {
	int fd; /* private descriptor + 1; 0: not asked yet */
	uint32_t agent_epoch;
} bells[HH_SLOTS];

bool doorbell_add_heap(uint32_t heap, int device)
{
	void *registers;

	if (heap >= HEAPS_MAX || heaps[heap].device)
		return false;
	device = fd_hide(device);
	if (device < 0)
		return true; /* fd_hide has closed it */
	registers = mmap(NULL, HH_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, device, (off_t)HH_MMAP_DOORBELL);
	heaps[heap].registers = registers == MAP_FAILED ? NULL : registers;
	hh_store_release(&heaps[heap].device, device + 1);
	return true;
}

static bool ring_heap(const struct channel *channel, uint32_t slot)
{
	int device = channel->heap < HEAPS_MAX ? hh_load_acquire(&heaps[channel->heap].device) - 1 : -1;
	struct hh_ring_request request = {.peer = channel->peer_id, .vector = slot};

	if (device < 0)
		return false;
	if (heaps[channel->heap].registers)
		hh_store_release((uint32_t *)(heaps[channel->heap].registers + HH_DOORBELL_REGISTER),
				 channel->peer_id << 16 | slot);
	else
		return libc.ioctl(device, HH_IOC_RING, &request) == 0;
	return true;
}

static bool ring_local(uint32_t slot)
{
	struct hh_region *region = agent_region();
	uint32_t epoch = region ? hh_load(&region->agent_epoch) : 0;
	const uint64_t one = 1;

	if (!hh_load_acquire(&bells[slot].fd) || bells[slot].agent_epoch != epoch) {
		int fd = agent_bell(slot), old;

		if (fd < 0)
			return false;
		bells[slot].agent_epoch = epoch;
		old = hh_exchange(&bells[slot].fd, fd + 1);
		if (old)
			fd_close_private(old - 1);
	}
	/* EAGAIN: the counter is full, and so it is rung. */
	(void)!libc.write(bells[slot].fd - 1, &one, sizeof(one));
	return true;
}

void doorbell_ring(const struct channel *channel, uint64_t *waiters, uint64_t sleepers)
{
	uint64_t missed = 0;
	int saved = errno;

	while (sleepers) {
		uint32_t slot = (uint32_t)__builtin_ctzll(sleepers);

		sleepers &= sleepers - 1;
		if (!(channel->heap ? ring_heap(channel, slot) : ring_local(slot)))
			missed |= UINT64_C(1) << slot;
	}
	if (missed)
		hh_fetch_or(waiters, missed); /* the next one tries again; such sleepers look by themselves, too (wait.c) */
	errno = saved;
}
