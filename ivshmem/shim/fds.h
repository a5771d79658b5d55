/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What this process knows of its descriptors. Only a cache: the kernel's socket is the identity of a connection, so an
 * entry may be forgotten at any time and is found again by the socket's cookie.
 */
#ifndef SHIM_FDS_H
#define SHIM_FDS_H

#include <stdbool.h>
#include <stdint.h>

struct channel;
struct epoll_set;

enum fd_kind {
	FD_UNKNOWN = 0, /* not looked at yet */
	FD_OTHER,       /* nothing of ours: not a TCP stream, or one that stays on TCP for ever */
	FD_STREAM,      /* a TCP socket that may have, or get, a channel */
	FD_EPOLL,       /* an epoll instance that this process made */
	FD_PRIVATE,     /* the shim's own; it does not exist for the program */
};

struct fd {
	uint8_t kind;      /* enum fd_kind */
	uint8_t side;      /* HH_SIDE_* */
	uint8_t announced; /* the agent has been told */
	uint8_t listening;
	uint32_t serial;   /* changes whenever the number changes its meaning */
	uint32_t calls;    /* data calls so far, until announced */
	uint32_t offers;   /* region.offers when the entry was last checked */
	uint32_t blocked;  /* threads of this process that wait in the kernel for data, deaf to the bell */
	uint64_t bytes;    /* moved so far, until announced */
	uint64_t cookie;   /* SO_COOKIE, 0: not asked yet */
	struct channel *channel;
	struct epoll_set *set;
};

#define FD_CHUNK 1024
#define FD_CHUNKS 1024 /* a million descriptors */

extern struct fd fd_first_[FD_CHUNK];
extern struct fd *fd_chunks_[FD_CHUNKS];
struct fd *fd_slow_(int fd);

/* The entry of a descriptor; NULL for a number that cannot be one. */
static inline struct fd *fd_entry(int fd)
{
	if ((unsigned int)fd < FD_CHUNK)
		return &fd_first_[fd];
	return fd_slow_(fd);
}

/* False in a child of vfork(), which runs in the memory of its parent: what it does to its descriptors must not be noted. */
bool fd_table_is_ours(void);
/* Finds out what an unknown descriptor is. */
void fd_classify(int fd, struct fd *entry);
/* The number means nothing any more, or something new. */
void fd_reset(int fd);
/* In a forked child. */
void fd_own_table(void);
/* `to` now names the same open file as `from`. */
void fd_copy(int from, int to);
void fd_set_stream(int fd, int side);
/* This connection stays on TCP for ever, as far as this process is concerned. */
void fd_pin(int fd);
/* Makes a descriptor the shim's own: moved out of the program's sight, close-on-exec. The new number, or -errno. */
int fd_hide(int fd);
void fd_close_private(int fd);
static inline bool fd_is_private(int fd)
{
	struct fd *entry = fd_entry(fd);

	return entry && entry->kind == FD_PRIVATE;
}
/* The lowest private descriptor >= first, or -1; for close_range. */
int fd_next_private(unsigned int first);

#endif
