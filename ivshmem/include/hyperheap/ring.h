/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One direction of a channel: the single-producer, single-consumer ring and the path epochs.
 *
 * A `tx` or `rx` holds the private cursors of one side; they are trusted, the shared words are not. The callers hold the
 * half's lock. All functions return 0 or a count, or a negative errno; -EPROTO means that the peer wrote something that
 * cannot be, and the stream is beyond saving.
 */
#ifndef HYPERHEAP_RING_H
#define HYPERHEAP_RING_H

#include "ends.h"

#include <stdbool.h>
#include <sys/types.h>
#include <sys/uio.h>

/* Geometry of one direction as one process sees it: taken from the offer once, never read again from the heap. */
struct hh_ring {
	struct hh_direction *shared;
	uint8_t *data;
	uint32_t size; /* bytes, a power of two */
};

/* How many bytes fit right now. */
ssize_t hh_tx_space(struct hh_tx *tx, const struct hh_ring *ring);
/* Put as much of `iov` as fits and publish it; bytes, or -EAGAIN if there is no space at all. */
ssize_t hh_tx_write(struct hh_tx *tx, const struct hh_ring *ring, const struct iovec *iov, int count);
/* From here on the path is the other one. `position`: TCP bytes sent so far when going to shared, ignored when going back.
 * -EAGAIN: the consumer is not past the last switch yet. */
int hh_tx_switch(struct hh_tx *tx, const struct hh_ring *ring, enum hh_path path, uint64_t position);
/* After what was published: the doorbell slots that sleep for data (taken: ring each of them once). */
uint64_t hh_tx_sleepers(const struct hh_ring *ring);
/* A writer that found less than this does not wake before there is as much (keeps bulk streams from ping-pong). */
static inline uint32_t hh_ring_low_space(const struct hh_ring *ring)
{
	return ring->size / 2;
}

/* Bytes that can be read from the ring now, bounded by the next epoch. */
ssize_t hh_rx_available(struct hh_rx *rx, const struct hh_ring *ring);
/* Copy without taking; bytes, 0 if there are none. */
ssize_t hh_rx_peek(struct hh_rx *rx, const struct hh_ring *ring, const struct iovec *iov, int count);
/* Take `bytes` that hh_rx_available() has promised off the ring. */
void hh_rx_consume(struct hh_rx *rx, const struct hh_ring *ring, uint64_t bytes);
/* 1: an epoch waits that this side has not passed, and *position says where; 0: none. */
int hh_rx_pending(const struct hh_rx *rx, const struct hh_ring *ring, uint64_t *position);
/* Pass the pending epoch. */
void hh_rx_pass(struct hh_rx *rx, const struct hh_ring *ring);
/* After what was consumed: the doorbell slots that sleep for space, once enough of it is free. */
uint64_t hh_rx_sleepers(const struct hh_rx *rx, const struct hh_ring *ring);

/* Locks of ends: 0, or 1 if the previous owner died and the half was put right. */
int hh_tx_lock(struct hh_tx *tx, const struct hh_ring *ring);
int hh_rx_lock(struct hh_rx *rx, const struct hh_ring *ring);
static inline void hh_tx_unlock(struct hh_tx *tx)
{
	pthread_mutex_unlock(&tx->lock);
}
static inline void hh_rx_unlock(struct hh_rx *rx)
{
	pthread_mutex_unlock(&rx->lock);
}

#endif
