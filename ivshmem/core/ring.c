/* SPDX-License-Identifier: Apache-2.0 */
#include <hyperheap/atomics.h>
#include <hyperheap/machine.h>
#include <hyperheap/ring.h>

#include <errno.h>
#include <string.h>

/* A long write is published in pieces, so that the consumer copies one while the next is being written. */
#define PUBLISH_BYTES UINT32_C(65536)

/*
 * TCG emulates vector instructions piece by piece: plain words are copied almost twice as fast (docs/benchmarks.md). The
 * empty asm keeps the compiler from turning the loop back into vectors, or into memcpy.
 */
static void copy_words(uint8_t *restrict to, const uint8_t *restrict from, size_t bytes)
{
	while (bytes >= 64) {
		for (int i = 0; i < 64; i += 8) {
			uint64_t word;

			memcpy(&word, from + i, sizeof(word));
			__asm__ volatile("" : "+r"(word));
			memcpy(to + i, &word, sizeof(word));
		}
		to += 64;
		from += 64;
		bytes -= 64;
	}
	memcpy(to, from, bytes);
}

static bool copies_words;

__attribute__((constructor)) static void choose_copy(void)
{
	copies_words = hh_is_tcg();
}

static void copy(uint8_t *restrict to, const uint8_t *restrict from, size_t bytes)
{
	if (copies_words)
		copy_words(to, from, bytes);
	else
		memcpy(to, from, bytes);
}

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

ssize_t hh_tx_space(struct hh_tx *tx, const struct hh_ring *ring)
{
	uint64_t tail = hh_load_acquire(&ring->shared->tail); /* A2 <-> R2 */

	/* tail only grows, and never past what was written */
	if (tail - tx->tail > tx->head - tx->tail)
		return -EPROTO;
	tx->tail = tail;
	return ring->size - (ssize_t)(tx->head - tail);
}

static void publish_head(struct hh_tx *tx, const struct hh_ring *ring, uint64_t head)
{
	/* The private copy first: whoever takes over after a SIGKILL between the two publishes it. */
	hh_store(&tx->head, head);
	hh_store_release(&ring->shared->head, head); /* R1 <-> A1 */
}

ssize_t hh_tx_write(struct hh_tx *tx, const struct hh_ring *ring, const struct iovec *iov, int count)
{
	uint64_t head = tx->head, space, written = 0;
	uint32_t unpublished = 0;

	/* The cached tail is enough as long as it promises room; only then is the consumer's cache line touched. */
	space = ring->size - (head - tx->tail);
	for (int i = 0; i < count; i++) {
		const uint8_t *from = iov[i].iov_base;
		size_t left = iov[i].iov_len;

		while (left) {
			uint64_t index = head & (ring->size - 1), piece;

			if (!space) {
				ssize_t fresh;

				publish_head(tx, ring, head);
				unpublished = 0;
				fresh = hh_tx_space(tx, ring);
				if (fresh < 0)
					return fresh;
				space = (uint64_t)fresh;
				if (!space)
					return written ? (ssize_t)written : -EAGAIN;
			}
			piece = min_u64(min_u64(left, space), min_u64(ring->size - index, PUBLISH_BYTES - unpublished));
			copy(ring->data + index, from, piece);
			from += piece;
			left -= piece;
			head += piece;
			space -= piece;
			written += piece;
			unpublished += (uint32_t)piece;
			if (unpublished == PUBLISH_BYTES) {
				publish_head(tx, ring, head);
				unpublished = 0;
			}
		}
	}
	publish_head(tx, ring, head);
	return (ssize_t)written;
}

int hh_tx_switch(struct hh_tx *tx, const struct hh_ring *ring, enum hh_path path, uint64_t position)
{
	struct hh_direction *shared = ring->shared;

	if (tx->path == (uint32_t)path)
		return 0;
	/* A4 <-> R4: the consumer must be past the last switch before the next one is published. */
	if (hh_load_acquire(&shared->epochs_done) != tx->epochs)
		return -EAGAIN;
	if (path == HH_PATH_SHARED)
		tx->tcp_at = position;
	tx->epoch_at = path == HH_PATH_SHARED ? position : tx->head;
	hh_store(&shared->epoch_at[tx->epochs % HH_EPOCH_LOG], tx->epoch_at);
	tx->path = path;
	hh_store(&tx->epochs, tx->epochs + 1);
	hh_store_release(&shared->epochs, tx->epochs); /* R3 <-> A3 */
	return 0;
}

uint64_t hh_tx_sleepers(const struct hh_ring *ring)
{
	hh_full_barrier(); /* B1: head is published, then look for sleepers */
	if (!hh_load(&ring->shared->data_waiters))
		return 0;
	return hh_exchange(&ring->shared->data_waiters, 0);
}

int hh_rx_pending(const struct hh_rx *rx, const struct hh_ring *ring, uint64_t *position)
{
	uint32_t epochs = hh_load_acquire(&ring->shared->epochs); /* A3 <-> R3 */
	uint32_t pending = epochs - rx->epochs;

	if (pending == 0)
		return 0;
	if (pending > 1) /* the producer waits for us before the next one */
		return -EPROTO;
	*position = hh_load(&ring->shared->epoch_at[rx->epochs % HH_EPOCH_LOG]);
	return 1;
}

ssize_t hh_rx_available(struct hh_rx *rx, const struct hh_ring *ring)
{
	uint64_t limit = 0, head;
	int pending = hh_rx_pending(rx, ring, &limit);

	if (pending < 0)
		return pending;
	head = hh_load_acquire(&ring->shared->head); /* A1 <-> R1 */
	/* head only grows, and never by more than the ring holds */
	if (head - rx->tail > ring->size || head - rx->tail < rx->head - rx->tail)
		return -EPROTO;
	rx->head = head;
	/* The ring ended at the epoch: nothing follows until this side has passed it. */
	if (pending && rx->path == HH_PATH_SHARED && limit != head)
		return -EPROTO;
	return (ssize_t)(head - rx->tail);
}

ssize_t hh_rx_peek(struct hh_rx *rx, const struct hh_ring *ring, const struct iovec *iov, int count)
{
	ssize_t available = hh_rx_available(rx, ring);
	uint64_t at = rx->tail, left, done = 0;

	if (available <= 0)
		return available;
	left = (uint64_t)available;
	for (int i = 0; i < count && left; i++) {
		uint8_t *to = iov[i].iov_base;
		size_t room = iov[i].iov_len;

		while (room && left) {
			uint64_t index = at & (ring->size - 1);
			uint64_t piece = min_u64(min_u64(room, left), ring->size - index);

			copy(to, ring->data + index, piece);
			to += piece;
			room -= piece;
			left -= piece;
			at += piece;
			done += piece;
		}
	}
	return (ssize_t)done;
}

void hh_rx_consume(struct hh_rx *rx, const struct hh_ring *ring, uint64_t bytes)
{
	hh_store(&rx->tail, rx->tail + bytes);
	hh_store_release(&ring->shared->tail, rx->tail); /* R2 <-> A2 */
}

void hh_rx_pass(struct hh_rx *rx, const struct hh_ring *ring)
{
	rx->path = rx->path == HH_PATH_SHARED ? HH_PATH_NETWORK : HH_PATH_SHARED;
	hh_store(&rx->epochs, rx->epochs + 1);
	hh_store_release(&ring->shared->epochs_done, rx->epochs); /* R4 <-> A4 */
}

uint64_t hh_rx_sleepers(const struct hh_rx *rx, const struct hh_ring *ring)
{
	uint64_t head;

	hh_full_barrier(); /* B2: tail is published, then look for sleepers */
	if (!hh_load(&ring->shared->space_waiters))
		return 0;
	head = hh_load(&ring->shared->head);
	if (ring->size - (head - rx->tail) < hh_ring_low_space(ring))
		return 0;
	return hh_exchange(&ring->shared->space_waiters, 0);
}

int hh_tx_lock(struct hh_tx *tx, const struct hh_ring *ring)
{
	int error = pthread_mutex_lock(&tx->lock);

	if (error != EOWNERDEAD)
		return 0;
	/* The owner died inside: what it had finished privately becomes public, in the order of publication. An epoch that
	 * was counted but not published is in epoch_at; one that was not counted never happened, so the path follows. */
	tx->path = tx->epochs & 1;
	hh_store_release(&ring->shared->head, tx->head); /* R1 <-> A1 */
	if (tx->epochs)
		hh_store(&ring->shared->epoch_at[(tx->epochs - 1) % HH_EPOCH_LOG], tx->epoch_at);
	hh_store_release(&ring->shared->epochs, tx->epochs); /* R3 <-> A3 */
	tx->repair = 1;
	pthread_mutex_consistent(&tx->lock);
	return 1;
}

int hh_rx_lock(struct hh_rx *rx, const struct hh_ring *ring)
{
	int error = pthread_mutex_lock(&rx->lock);

	if (error != EOWNERDEAD)
		return 0;
	rx->path = rx->epochs & 1;
	hh_store_release(&ring->shared->tail, rx->tail);          /* R2 <-> A2 */
	hh_store_release(&ring->shared->epochs_done, rx->epochs); /* R4 <-> A4 */
	pthread_mutex_consistent(&rx->lock);
	return 1;
}
