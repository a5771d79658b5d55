/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A channel as this process sees it: the end in the region (shared by all processes that hold the socket), the rings in
 * the heap, and the rules of which path the next byte takes. The only file that knows both TCP and the rings.
 */
#ifndef SHIM_CHANNEL_H
#define SHIM_CHANNEL_H

#include "fds.h"

#include <hyperheap/agent_protocol.h>
#include <hyperheap/ring.h>

struct channel {
	uint32_t refs;    /* operations under way, descriptors, the table */
	uint32_t claims;  /* descriptors */
	uint64_t cookie;
	struct hh_end *end;
	struct hh_ring tx, rx;
	void *map;
	size_t map_length;
	uint32_t heap;    /* 0: memory of this guest */
	uint32_t slot;    /* where this process sleeps, as the peer names it */
	uint32_t peer_id;
	uint32_t generation;
	uint32_t trust;   /* in spinning: how many more failures it may have (see wait.c) */
	uint32_t waits;   /* since the last spin */
	uint32_t pause;   /* waits without a spin between two tries, while there is no trust */
	bool full;        /* a send found too little space since edge-triggered EPOLLOUT was last reported */
	int tcp_error;    /* that TCP has said, to be told when the ring is empty */
	bool finished;    /* TCP has had the peer's FIN while the ring was full */
	struct channel *next;
};

/* Whether this process has any channel. */
bool channel_any(void);
/* The socket's cookie, asked once. 0: none. */
uint64_t channel_cookie(int fd, struct fd *entry);
/* The channel of a stream if it has one by now, referenced; else NULL. Cheap while nothing changes. */
struct channel *channel_of(int fd, struct fd *entry);
/* The channel that the entry names, referenced, or NULL. */
struct channel *channel_get(struct fd *entry);
void channel_put(struct channel *channel);
/* A descriptor takes / gives back its share. */
void channel_claim(struct channel *channel);
void channel_release(struct channel *channel);
/* A GRANT has come, with the memory. Takes over the descriptor. Called under the process lock. */
void channel_grant(const struct hh_message *message, int memory);

/* One attempt without waiting: bytes, 0 at end-of-file, or a negative errno (-EAGAIN). */
ssize_t channel_receive(struct channel *channel, int fd, const struct iovec *iov, int count, int flags);
ssize_t channel_send(struct channel *channel, int fd, const struct iovec *iov, int count, int flags);
/* A plain send may have overtaken a switch to the ring that somebody else made: note it. */
void channel_plain_sent(struct channel *channel, int fd);
void channel_shutdown(struct channel *channel);

/* What the ring alone can tell, without a system call where possible: POLLIN, POLLOUT or both of `events`. */
short channel_ready(struct channel *channel, int fd, short events);
/* Says where to ring when `events` come true, then a full barrier: look again after this, then sleep. */
void channel_arm(struct channel *channel, short events);
/* What the kernel may be asked about the TCP socket for these events. */
short channel_kernel_events(const struct channel *channel, short events);
/* Bytes that a receive could take off the ring now. */
int channel_readable_bytes(struct channel *channel);

#endif
