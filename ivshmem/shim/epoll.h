/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Epoll instances that this process made, with the streams in them. The kernel's instance stays the real one: it wakes us,
 * for TCP and, through bells that are registered in it, for the rings.
 */
#ifndef SHIM_EPOLL_H
#define SHIM_EPOLL_H

#include <stdbool.h>

struct epoll_set;

/* Takes a reference; NULL if the set has ended meanwhile. */
struct epoll_set *epoll_set_get(struct epoll_set *set);
void epoll_set_put(struct epoll_set *set);
/* Whether this process has made an epoll instance at all. */
bool epoll_in_use(void);
bool epoll_set_has_streams(const struct epoll_set *set);
/* In a forked child, whose other threads are gone. */
void epoll_after_fork(void);
/* For poll() on the epoll descriptor: 1 if a ring in it has an event. */
int epoll_set_ready(struct epoll_set *set);
void epoll_set_arm(struct epoll_set *set);

#endif
