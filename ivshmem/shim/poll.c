/* SPDX-License-Identifier: Apache-2.0 */
/*
 * poll and select over any mix of descriptors. The kernel is asked about all of them, with what the rings know better
 * taken out of the question; the rings are asked by looking.
 */
#include "agent.h"
#include "channel.h"
#include "epoll.h"
#include "libc.h"
#include "wait.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define ON_STACK 64
#define SPINS_PER_CLOCK 16

struct watch {
	struct pollfd *fds;       /* the program's */
	struct pollfd *kernel;    /* what the kernel is asked; one more than count */
	struct channel **channel; /* referenced, or NULL */
	nfds_t count;
	struct channel *first; /* some channel of the set, or NULL */
	bool all_channels;     /* there is nothing else in the set */
};

/* How often in a row the rings alone may answer for a set that has nothing but channels. */
#define WITHOUT_KERNEL 15
static __thread unsigned int without_kernel __attribute__((tls_model("initial-exec")));

/* Whether the shim has any business with this set. */
static bool concerns_us(const struct pollfd *fds, nfds_t count)
{
	bool found = false;

	for (nfds_t i = 0; i < count; i++) {
		struct fd *entry = fds[i].fd >= 0 ? fd_entry(fds[i].fd) : NULL;

		if (!entry)
			continue;
		if (unlikely(entry->kind == FD_UNKNOWN))
			fd_classify(fds[i].fd, entry);
		if (entry->kind == FD_STREAM || (entry->kind == FD_EPOLL && epoll_set_has_streams(entry->set)))
			found = true;
	}
	return found;
}

static void look_up(struct watch *watch)
{
	watch->all_channels = watch->count > 0;
	for (nfds_t i = 0; i < watch->count; i++) {
		struct fd *entry = watch->fds[i].fd >= 0 ? fd_entry(watch->fds[i].fd) : NULL;

		if (entry && entry->kind == FD_STREAM && !watch->channel[i])
			watch->channel[i] = channel_of(watch->fds[i].fd, entry);
		if (watch->channel[i])
			watch->first = watch->channel[i];
		else
			watch->all_channels = false;
		watch->kernel[i] = watch->fds[i];
		watch->kernel[i].revents = 0;
		if (watch->channel[i])
			watch->kernel[i].events = channel_kernel_events(watch->channel[i], watch->fds[i].events);
	}
}

static struct epoll_set *nested_set(const struct watch *watch, nfds_t i)
{
	struct fd *entry = watch->fds[i].fd >= 0 ? fd_entry(watch->fds[i].fd) : NULL;

	return entry && entry->kind == FD_EPOLL && watch->fds[i].events & POLLIN ? entry->set : NULL;
}

static int rings_ready(struct watch *watch)
{
	int ready = 0;

	for (nfds_t i = 0; i < watch->count; i++) {
		struct epoll_set *set = nested_set(watch, i);

		if (watch->channel[i])
			ready += channel_ready(watch->channel[i], watch->fds[i].fd, watch->fds[i].events) != 0;
		else if (set)
			ready += epoll_set_ready(set);
	}
	return ready;
}

static void arm(struct watch *watch)
{
	for (nfds_t i = 0; i < watch->count; i++) {
		struct epoll_set *set = nested_set(watch, i);

		if (watch->channel[i])
			channel_arm(watch->channel[i], watch->fds[i].events);
		else if (set)
			epoll_set_arm(set);
	}
}

static bool spin(struct watch *watch, int64_t start)
{
	int64_t limit;

	if (!watch->first || watch->count > SPINS_PER_CLOCK || !wait_may_spin(watch->first, &limit))
		return false;
	do {
		for (int i = 0; i < SPINS_PER_CLOCK; i++) {
			if (rings_ready(watch)) {
				wait_spun(watch->first, true);
				return true;
			}
			hh_cpu_relax();
		}
	} while (monotonic_ns() - start < limit);
	wait_spun(watch->first, false);
	return false;
}

/* Fills in the program's revents from both; how many are not zero. */
static int merge(struct watch *watch)
{
	int ready = 0;

	for (nfds_t i = 0; i < watch->count; i++) {
		struct epoll_set *set = nested_set(watch, i);

		watch->fds[i].revents = watch->kernel[i].revents;
		if (watch->channel[i])
			watch->fds[i].revents |= channel_ready(watch->channel[i], watch->fds[i].fd, watch->fds[i].events);
		else if (set && epoll_set_ready(set))
			watch->fds[i].revents |= POLLIN;
		ready += watch->fds[i].revents != 0;
	}
	return ready;
}

static int watch_loop(struct watch *watch, int64_t deadline, const sigset_t *mask)
{
	for (;;) {
		int64_t start = monotonic_ns();
		bool now;
		int ready;

		look_up(watch);
		now = deadline <= start || rings_ready(watch) || spin(watch, start);
		if (!now) {
			arm(watch);
			now = rings_ready(watch);
		}
		if (now && deadline > start && watch->all_channels && without_kernel++ % (WITHOUT_KERNEL + 1))
			ready = 0; /* the kernel is not asked this time */
		else
			ready = wait_any(watch->kernel, watch->count, now ? 0 : wait_limit(watch->first, deadline), mask);
		if (watch->first && !now)
			wait_slept(watch->first, monotonic_ns() - start);
		if (ready < 0)
			return ready;
		ready = merge(watch);
		if (ready || monotonic_ns() >= deadline)
			return ready;
	}
}

static int watch_fds(struct pollfd *fds, nfds_t count, int64_t deadline, const sigset_t *mask)
{
	struct pollfd kernel_stack[ON_STACK + 1];
	struct channel *channel_stack[ON_STACK];
	struct watch watch = {.fds = fds, .kernel = kernel_stack, .channel = channel_stack, .count = count};
	int saved = errno, ready;

	if (count > ON_STACK) {
		watch.kernel = malloc((count + 1) * sizeof(*watch.kernel));
		watch.channel = malloc(count * sizeof(struct channel *));
		if (!watch.kernel || !watch.channel) {
			free(watch.kernel);
			free(watch.channel);
			return -ENOMEM;
		}
	}
	memset(watch.channel, 0, count * sizeof(struct channel *));
	ready = watch_loop(&watch, deadline, mask);
	for (nfds_t i = 0; i < count; i++) {
		if (watch.channel[i])
			channel_put(watch.channel[i]);
	}
	if (count > ON_STACK) {
		free(watch.kernel);
		free(watch.channel);
	}
	errno = saved;
	return ready;
}

static int answer(int result)
{
	if (result >= 0)
		return result;
	errno = -result;
	return -1;
}


SHIM_EXPORT int poll(struct pollfd *fds, nfds_t count, int timeout)
{
	if (!concerns_us(fds, count))
		return libc.poll(fds, count, timeout);
	if (agent_is_quiet())
		return DEAF(libc.poll(fds, count, timeout));
	return answer(watch_fds(fds, count, deadline_from_ms(timeout), NULL));
}

SHIM_EXPORT int __poll_chk(struct pollfd *fds, nfds_t count, int timeout, size_t size)
{
	if (size / sizeof(*fds) < count)
		abort();
	return poll(fds, count, timeout);
}

SHIM_EXPORT int ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask)
{
	if (!concerns_us(fds, count))
		return libc.ppoll(fds, count, timeout, mask);
	if (agent_is_quiet())
		return DEAF(libc.ppoll(fds, count, timeout, mask));
	return answer(watch_fds(fds, count, deadline_from_timespec(timeout), mask));
}

SHIM_EXPORT int __ppoll_chk(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask, size_t size)
{
	if (size / sizeof(*fds) < count)
		abort();
	return ppoll(fds, count, timeout, mask);
}

/* ---- select: the same through poll ----------------------------------------------------------------------------- */

#define SELECT_IN (POLLIN | POLLRDNORM)
#define SELECT_OUT (POLLOUT | POLLWRNORM)

static nfds_t from_sets(struct pollfd *fds, int limit, const fd_set *in, const fd_set *out, const fd_set *except)
{
	nfds_t count = 0;

	for (int fd = 0; fd < limit && fd < FD_SETSIZE; fd++) {
		short events = 0;

		if (in && FD_ISSET(fd, in))
			events |= SELECT_IN;
		if (out && FD_ISSET(fd, out))
			events |= SELECT_OUT;
		if (except && FD_ISSET(fd, except))
			events |= POLLPRI;
		if (events)
			fds[count++] = (struct pollfd){.fd = fd, .events = events};
	}
	return count;
}

/* The mapping of select to poll is that of the kernel's fs/select.c. */
static int to_sets(const struct pollfd *fds, nfds_t count, fd_set *in, fd_set *out, fd_set *except)
{
	int ready = 0;

	for (nfds_t i = 0; i < count; i++) {
		short events = fds[i].events, got = fds[i].revents;

		if (in && events & SELECT_IN && !(got & (SELECT_IN | POLLHUP | POLLERR)))
			FD_CLR(fds[i].fd, in);
		else if (in && events & SELECT_IN)
			ready++;
		if (out && events & SELECT_OUT && !(got & (SELECT_OUT | POLLERR)))
			FD_CLR(fds[i].fd, out);
		else if (out && events & SELECT_OUT)
			ready++;
		if (except && events & POLLPRI && !(got & POLLPRI))
			FD_CLR(fds[i].fd, except);
		else if (except && events & POLLPRI)
			ready++;
	}
	return ready;
}

/* -EAGAIN: not for us. -EXDEV: for us, but there is nobody to hear from. */
static int select_streams(int limit, fd_set *in, fd_set *out, fd_set *except, const struct timespec *timeout, const sigset_t *mask)
{
	struct pollfd fds[FD_SETSIZE];
	nfds_t count;
	int ready;

	if (limit < 0 || limit > FD_SETSIZE)
		return -EAGAIN;
	count = from_sets(fds, limit, in, out, except);
	if (!concerns_us(fds, count))
		return -EAGAIN;
	if (agent_is_quiet())
		return -EXDEV;
	ready = watch_fds(fds, count, deadline_from_timespec(timeout), mask);
	if (ready < 0)
		return ready;
	for (nfds_t i = 0; i < count; i++) {
		if (fds[i].revents & POLLNVAL)
			return -EBADF;
	}
	return to_sets(fds, count, in, out, except);
}

SHIM_EXPORT int select(int limit, fd_set *in, fd_set *out, fd_set *except, struct timeval *timeout)
{
	struct timespec limit_time;
	int64_t start = 0;
	int ready;

	if (timeout) {
		limit_time = (struct timespec){timeout->tv_sec, timeout->tv_usec * 1000};
		start = monotonic_ns();
	}
	ready = select_streams(limit, in, out, except, timeout ? &limit_time : NULL, NULL);
	if (ready == -EAGAIN)
		return libc.select(limit, in, out, except, timeout);
	if (ready == -EXDEV)
		return DEAF(libc.select(limit, in, out, except, timeout));
	if (timeout) { /* Linux says how much was left */
		int64_t left = timeout->tv_sec * INT64_C(1000000) + timeout->tv_usec - (monotonic_ns() - start) / 1000;

		left = left < 0 ? 0 : left;
		timeout->tv_sec = left / 1000000;
		timeout->tv_usec = left % 1000000;
	}
	return answer(ready);
}

SHIM_EXPORT int pselect(int limit, fd_set *in, fd_set *out, fd_set *except, const struct timespec *timeout, const sigset_t *mask)
{
	int ready = select_streams(limit, in, out, except, timeout, mask);

	if (ready == -EAGAIN)
		return libc.pselect(limit, in, out, except, timeout, mask);
	if (ready == -EXDEV)
		return DEAF(libc.pselect(limit, in, out, except, timeout, mask));
	return answer(ready);
}
