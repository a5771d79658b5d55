/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sleeping until the kernel or a peer has something. Bells are eventfds that nobody ever reads: each thread watches them
 * through an epoll instance of its own, edge-triggered, so every ring wakes every sleeping thread once, and none steals the
 * wake-up of another.
 */
#ifndef SHIM_WAIT_H
#define SHIM_WAIT_H

#include "channel.h"

#include <poll.h>
#include <signal.h>
#include <time.h>

#define NO_DEADLINE INT64_MAX

int64_t monotonic_ns(void);
/* A deadline from a poll()-style timeout in ms, or from a timespec (NULL: none). */
int64_t deadline_from_ms(int timeout);
int64_t deadline_from_timespec(const struct timespec *timeout);

/*
 * ppoll over fds[0..count) and the bells. fds[] must have room for one more. The number of ready entries of the caller
 * (0: a bell, or time to look again), or -errno. `mask` as in ppoll.
 */
int wait_any(struct pollfd *fds, nfds_t count, int64_t deadline, const sigset_t *mask);
/* How long a sleep on this channel may last: who sleeps on the memory of one guest is rung by help of the agent, which may be
 * dead, and looks by itself once in a while. */
int64_t wait_limit(const struct channel *channel, int64_t deadline);
/* Waits until `events` may be true for a channel: spins while that pays, then sleeps. 0, -ETIMEDOUT or -EINTR. */
int wait_channel(struct channel *channel, int fd, short events, int64_t deadline);
/* Whether a spin of up to *limit ns is worth a try before this sleep, and what came of the spin or the sleep. */
bool wait_may_spin(struct channel *channel, int64_t *limit);
void wait_spun(struct channel *channel, bool found);
void wait_slept(struct channel *channel, int64_t waited);
/* Waits for a plain descriptor and the bells. */
int wait_stream(int fd, short events, int64_t deadline);
/* Whether an interrupted call is to be restarted: every handler was installed with SA_RESTART. */
bool signals_restart(void);
void signals_note(const struct sigaction *action);
void signals_interrupt(void);

#endif
