/* SPDX-License-Identifier: Apache-2.0 */
/* Waking the peer: through the device of a heap, or the eventfds of this guest. */
#ifndef SHIM_DOORBELL_H
#define SHIM_DOORBELL_H

#include <stdbool.h>
#include <stdint.h>

struct channel;

/* Rings every slot in `sleepers`, which were taken out of `waiters`; who cannot be rung is put back there. */
void doorbell_ring(const struct channel *channel, uint64_t *waiters, uint64_t sleepers);
/* This process got its open file of a heap; true if it is kept. Called under the process lock. */
bool doorbell_add_heap(uint32_t heap, int device);

#endif
