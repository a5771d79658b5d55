/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The region of ends: guest-local shared memory that the agent owns. One entry is one end of a channel: what all
 * processes of this guest that hold the socket must agree on. It never lies in a heap, so locks may live here.
 *
 *   0        4096                       4096 + 512 * end_count
 *   +--------+-------+-------+----------+
 *   | header | end 0 | end 1 | ...      |     found by the socket's cookie (SO_COOKIE)
 *   +--------+-------+-------+----------+
 *
 * The file outlives the agent: a restarted agent adopts it. Release/acquire pairs:
 *   R6/A6  cookie    the agent filled the entry      -> a process may use it
 *   R7/A7  offers    the agent sent grants/verdicts  -> a process reads its agent socket
 */
#ifndef HYPERHEAP_ENDS_H
#define HYPERHEAP_ENDS_H

#include "heap.h"

#include <pthread.h>

#define HH_REGION_MAGIC UINT64_C(0x53444e4548505948) /* "HYPHENDS" */
#define HH_REGION_HEADER 4096

enum hh_gone {
	HH_GONE_NO = 0,
	HH_GONE_CLOSED = 1,   /* the peer's socket is gone; TCP itself tells the reader so */
	HH_GONE_VANISHED = 2, /* the peer's guest is gone; no FIN or RST will ever come */
};

struct hh_region {
	uint64_t magic;
	uint32_t version;
	uint32_t end_count;
	uint32_t agent_epoch;   /* agent: +1 at each start of the agent */
	uint32_t offers;        /* R7 agent: +1 after it has sent a grant or verdict to any process */
	uint32_t upgrade_calls; /* agent, policy: announce a connection after this many data calls ... */
	uint32_t spin_ns;       /* agent, policy: longest spin before a sleep */
	uint64_t upgrade_bytes; /* ... or this many bytes */
};

/* The private, trusted cursors of the sending half. Guarded by lock; survive the death of its owner at any point. */
struct hh_tx {
	pthread_mutex_t lock; /* robust, process shared */
	uint64_t head;
	uint64_t tail;   /* last valid tail that was seen */
	uint64_t tcp_at; /* TCP bytes sent when the direction last left the network */
	uint32_t epochs;
	uint32_t path;     /* enum hh_path */
	uint64_t epoch_at; /* position of the newest epoch */
	uint32_t repair;   /* a plain send overtook the switch: publish where, before the ring goes on */
	uint32_t shut;     /* SHUT_WR was called */
	uint8_t pad[128 - sizeof(pthread_mutex_t) - 48];
};

struct hh_rx {
	pthread_mutex_t lock;
	uint64_t tail;
	uint64_t head;
	uint32_t epochs;
	uint32_t path;
	uint8_t pad[128 - sizeof(pthread_mutex_t) - 24];
};

struct hh_end {
	uint64_t cookie; /* R6, agent; 0: free */
	uint64_t channel;
	uint64_t offset;     /* of the channel in its heap, bytes */
	uint32_t ring_size;  /* bytes, a power of two */
	uint32_t generation; /* of the lease */
	uint32_t heap;       /* the agent's number of the heap; 0: memory of this guest */
	uint32_t side;       /* 0: the connecting end, 1: the accepting end */
	uint32_t peer_id;    /* ivshmem id of the peer's guest */
	uint32_t want;       /* agent, policy: enum hh_path wanted for what this end sends */
	uint32_t gone;       /* agent: enum hh_gone */
	uint32_t error;      /* errno, sticky: the peer wrote nonsense (EPROTO) */
	uint32_t attached;   /* number of attaches that processes made, for the tables */
	uint8_t pad0[128 - 60];
	struct hh_tx tx;
	struct hh_rx rx;
	uint8_t pad1[128];
};

static_assert(sizeof(struct hh_region) <= HH_REGION_HEADER, "region header");
static_assert(sizeof(struct hh_tx) == 128, "tx half");
static_assert(sizeof(struct hh_rx) == 128, "rx half");
static_assert(offsetof(struct hh_end, tx) == 128, "tx offset");
static_assert(sizeof(struct hh_end) == 512, "end");

#endif
