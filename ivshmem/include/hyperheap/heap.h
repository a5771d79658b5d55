/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What stands in a heap: the only definition of it.
 *
 *   heap   0        4096                              size
 *          +--------+---------+-------+---------+-----+
 *          | header | channel |  free | channel | ... |      the host allocates; there are no free lists in here
 *          +--------+---------+-------+---------+-----+
 *
 *   channel = the buffer that the broker leased to one connection, page aligned
 *          0         4096            4096 + ring       4096 + 2 * ring
 *          +---------+---------------+-----------------+
 *          | control | ring 0        | ring 1          |     ring d carries what side d sends
 *          +---------+---------------+-----------------+
 *
 *   control 0        512              1024             1536
 *          +--------+----------------+----------------+------+
 *          | lease  | direction 0    | direction 1    | zero |
 *          +--------+----------------+----------------+------+
 *
 * Trust: everything here may be overwritten by a hostile member guest at any instant. A reader takes a word once
 * (atomics.h), checks the copy, uses the copy. Geometry comes from the offer, never from here. Cursors count bytes since
 * the channel began and never wrap (2^64 bytes); a ring index is cursor & (ring_size - 1).
 *
 * Release/acquire pairs (each is named where it is used):
 *   R1/A1  head         data written to the ring   -> read by the consumer
 *   R2/A2  tail         ring space given back      -> reused by the producer
 *   R3/A3  epochs       epoch_at[] entry           -> read by the consumer
 *   R4/A4  epochs_done  consumer is past a switch  -> producer may switch again
 *   R5/A5  want         consumer attached          -> producer may use the ring
 *   B1     data_waiters   full barrier both sides: set bit, look again  |  publish head, look for bits
 *   B2     space_waiters  full barrier both sides: set bit, look again  |  publish tail, look for bits
 */
#ifndef HYPERHEAP_HEAP_H
#define HYPERHEAP_HEAP_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#define HH_HEAP_MAGIC UINT64_C(0x5041454852505948) /* "HYPRHEAP" */
#define HH_CHANNEL_MAGIC UINT32_C(0x4e484348)      /* "HCHN" */
#define HH_LAYOUT_VERSION 1
#define HH_PAGE 4096
#define HH_CONTROL_SIZE HH_PAGE
#define HH_RING_MIN UINT32_C(4096)
#define HH_RING_MAX (UINT32_C(1) << 30)
#define HH_EPOCH_LOG 8
#define HH_SLOTS 64 /* doorbell slots: one bit each in a waiters word */

/* Written by the broker before any guest is a member, then never changed. */
struct hh_heap_header {
	uint64_t magic;
	uint32_t version;
	uint32_t header_size;
	uint64_t size;
	uint8_t uuid[16];
	char name[64]; /* NUL terminated */
};

enum hh_path {
	HH_PATH_NETWORK = 0,
	HH_PATH_SHARED = 1,
};

/*
 * One direction of a channel. Cache lines have one writer each, except the two waiters words, which the sleeper sets and
 * the waker takes. Path epochs: entry k of the log says where the direction changed its path for the k-th time. Even k:
 * from TCP byte epoch_at[k] on, the path is shared. Odd k: from ring byte epoch_at[k] on, it is the network. A producer
 * publishes an epoch only after the consumer has passed the one before it; until then it stays on the path it has. So at
 * most one epoch is pending, and a consumer never meets bytes on either path that belong behind the other.
 */
struct hh_direction {
	/* producer, every send */
	uint64_t head; /* R1: bytes ever put on the ring */
	uint8_t pad0[56];
	/* producer, at each change of path */
	uint32_t epochs; /* R3: entries ever published */
	uint8_t pad1[60];
	uint64_t epoch_at[HH_EPOCH_LOG]; /* entry k at k % HH_EPOCH_LOG */
	/* consumer, every receive */
	uint64_t tail; /* R2: bytes ever taken off the ring */
	uint8_t pad2[56];
	/* consumer, rarely */
	uint32_t want;        /* R5: enum hh_path that the consumer can take */
	uint32_t epochs_done; /* R4: epochs that the consumer has passed */
	uint8_t pad3[56];
	/* bit s: a process with doorbell slot s of the consumer's guest sleeps until there is data (B1) */
	uint64_t data_waiters;
	uint8_t pad4[56];
	/* bit s: a process with doorbell slot s of the producer's guest sleeps until there is space (B2) */
	uint64_t space_waiters;
	uint8_t pad5[56];
	uint8_t pad6[64];
};

/* Written by the host (for memory of one guest: its agent) at lease time, zeroed when the lease ends. */
struct hh_lease {
	uint32_t magic;
	uint32_t version;
	uint64_t channel;
	uint32_t generation;
	uint32_t ring_size;
};

struct hh_channel {
	struct hh_lease lease;
	uint8_t pad0[512 - sizeof(struct hh_lease)];
	struct hh_direction direction[2];
	uint8_t pad1[HH_CONTROL_SIZE - 512 - 2 * sizeof(struct hh_direction)];
};

static_assert(sizeof(struct hh_heap_header) == 104, "heap header");
static_assert(offsetof(struct hh_direction, epochs) == 64, "line 1");
static_assert(offsetof(struct hh_direction, epoch_at) == 128, "line 2");
static_assert(offsetof(struct hh_direction, tail) == 192, "line 3");
static_assert(offsetof(struct hh_direction, want) == 256, "line 4");
static_assert(offsetof(struct hh_direction, data_waiters) == 320, "line 5");
static_assert(offsetof(struct hh_direction, space_waiters) == 384, "line 6");
static_assert(sizeof(struct hh_direction) == 512, "direction");
static_assert(sizeof(struct hh_lease) == 24, "lease");
static_assert(offsetof(struct hh_channel, direction) == 512, "directions");
static_assert(sizeof(struct hh_channel) == HH_CONTROL_SIZE, "control page");

#endif
