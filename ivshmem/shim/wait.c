/* SPDX-License-Identifier: Apache-2.0 */
#include "wait.h"

#include "agent.h"
#include "libc.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#define LOOK_AGAIN_NS INT64_C(2000000) /* without a bell: how long a sleep may last before looking again */
#define LOCAL_LOOK_NS INT64_C(1000000000)
#define SPINS_PER_CLOCK 32
#define TRUST 8
#define PAUSE_MIN 3
#define PAUSE_MAX 255

static __thread struct {
	int epoll;       /* private descriptor + 1; 0: none */
	uint32_t serial; /* of the bells in it */
	bool works;
} waiter __attribute__((tls_model("initial-exec")));

static pthread_key_t waiter_key;
static bool no_restart; /* some handler interrupts calls */
static long cores;

int64_t monotonic_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

int64_t deadline_from_ms(int timeout)
{
	return timeout < 0 ? NO_DEADLINE : monotonic_ns() + timeout * INT64_C(1000000);
}

int64_t deadline_from_timespec(const struct timespec *timeout)
{
	int64_t now = monotonic_ns();

	if (!timeout || timeout->tv_sec > (NO_DEADLINE - now) / INT64_C(1000000000) - 2)
		return NO_DEADLINE;
	return now + timeout->tv_sec * INT64_C(1000000000) + timeout->tv_nsec;
}

bool signals_restart(void)
{
	return !hh_load(&no_restart);
}

void signals_interrupt(void)
{
	hh_store(&no_restart, true);
}

void signals_note(const struct sigaction *action)
{
	if (action && action->sa_handler != SIG_DFL && action->sa_handler != SIG_IGN && !(action->sa_flags & SA_RESTART))
		hh_store(&no_restart, true);
}

static void close_waiter(void *descriptor)
{
	fd_close_private((int)(intptr_t)descriptor - 1);
}

__attribute__((constructor)) static void wait_init(void)
{
	pthread_key_create(&waiter_key, close_waiter);
	cores = sysconf(_SC_NPROCESSORS_ONLN);
}

/* This thread's epoll instance over the bells of today, or -1 without any. */
static int waiter_fd(void)
{
	uint32_t serial = agent_bells_serial();
	int bells[AGENT_BELLS], count;

	if (likely(waiter.serial == serial && waiter.works))
		return waiter.epoll - 1;
	if (waiter.epoll)
		fd_close_private(waiter.epoll - 1);
	waiter.epoll = 0;
	waiter.works = false;
	waiter.serial = serial;
	count = agent_bells(bells);
	if (!count)
		return -1;
	waiter.epoll = fd_hide(libc.epoll_create1(EPOLL_CLOEXEC)) + 1;
	if (waiter.epoll <= 0) {
		waiter.epoll = 0;
		return -1;
	}
	pthread_setspecific(waiter_key, (void *)(intptr_t)waiter.epoll);
	for (int i = 0; i < count; i++) {
		struct epoll_event event = {.events = EPOLLIN | EPOLLET};

		libc.epoll_ctl(waiter.epoll - 1, EPOLL_CTL_ADD, bells[i], &event);
	}
	waiter.works = true;
	return waiter.epoll - 1;
}

int wait_any(struct pollfd *fds, nfds_t count, int64_t deadline, const sigset_t *mask)
{
	struct epoll_event edges[AGENT_BELLS];
	struct timespec timeout, *limit = NULL;
	int bell = waiter_fd(), ready;

	fds[count] = (struct pollfd){.fd = bell, .events = POLLIN};
	if (bell < 0) {
		int64_t again = monotonic_ns() + LOOK_AGAIN_NS;

		deadline = deadline < again ? deadline : again;
	}
	if (deadline != NO_DEADLINE) {
		int64_t left = deadline - monotonic_ns();

		left = left < 0 ? 0 : left;
		timeout = (struct timespec){.tv_sec = left / INT64_C(1000000000), .tv_nsec = left % INT64_C(1000000000)};
		limit = &timeout;
	}
	ready = libc.ppoll(fds, count + 1, limit, mask);
	if (ready < 0)
		return -errno;
	if (fds[count].revents) {
		libc.epoll_wait(bell, edges, AGENT_BELLS, 0);
		ready--;
	}
	return ready;
}

int wait_stream(int fd, short events, int64_t deadline)
{
	struct pollfd fds[2] = {{.fd = fd, .events = events}};
	int ready = wait_any(fds, 1, deadline, NULL);

	if (ready < 0)
		return ready;
	return ready == 0 && deadline != NO_DEADLINE && monotonic_ns() >= deadline ? -ETIMEDOUT : 0;
}

/*
 * A spin is as long as a sleep and its wake-up cost, so at worst it doubles the price of a wait. It is tried while the last
 * ones found something, or sleeps turned out to be shorter than that; after failures ever more rarely.
 */
bool wait_may_spin(struct channel *channel, int64_t *limit)
{
	struct hh_region *region = agent_region();

	*limit = region ? hh_load(&region->spin_ns) : 0;
	if (!*limit || (channel->heap == 0 && cores < 2))
		return false;
	return channel->trust || ++channel->waits > channel->pause;
}

void wait_spun(struct channel *channel, bool found)
{
	channel->waits = 0;
	if (found) {
		channel->trust = TRUST;
		channel->pause = PAUSE_MIN;
		return;
	}
	channel->trust /= 2;
	if (!channel->trust)
		channel->pause = channel->pause < PAUSE_MAX / 2 ? 2 * channel->pause + 1 : PAUSE_MAX;
}

void wait_slept(struct channel *channel, int64_t waited)
{
	struct hh_region *region = agent_region();

	if (region && waited < hh_load(&region->spin_ns) && !channel->trust)
		channel->trust = 1;
}

static bool spin(struct channel *channel, int fd, short events, int64_t start)
{
	int64_t limit;

	if (!wait_may_spin(channel, &limit))
		return false;
	do {
		for (int i = 0; i < SPINS_PER_CLOCK; i++) {
			if (channel_ready(channel, fd, events)) {
				wait_spun(channel, true);
				return true;
			}
			hh_cpu_relax();
		}
	} while (monotonic_ns() - start < limit);
	wait_spun(channel, false);
	return false;
}

int64_t wait_limit(const struct channel *channel, int64_t deadline)
{
	int64_t look;

	if (!channel || channel->heap)
		return deadline;
	look = monotonic_ns() + LOCAL_LOOK_NS;
	return look < deadline ? look : deadline;
}

int wait_channel(struct channel *channel, int fd, short events, int64_t deadline)
{
	struct pollfd fds[2] = {{.fd = fd}};
	int64_t start = monotonic_ns(), end;
	int ready;

	if (spin(channel, fd, events, start))
		return 0;
	fds[0].events = channel_kernel_events(channel, events);
	channel_arm(channel, events);
	if (channel_ready(channel, fd, events))
		return 0;
	/* A full ring with nobody left to empty it: the peer's FIN is all that will come. */
	if (events & POLLOUT && !fds[0].events && !channel->finished)
		fds[0].events = POLLRDHUP;
	ready = wait_any(fds, 1, wait_limit(channel, channel->finished ? start + LOOK_AGAIN_NS * 10 : deadline), NULL);
	if (fds[0].revents & POLLRDHUP)
		channel->finished = true;
	end = monotonic_ns();
	wait_slept(channel, end - start);
	if (ready < 0)
		return ready;
	if (ready == 0 && end >= deadline && !channel_ready(channel, fd, events))
		return -ETIMEDOUT;
	return 0;
}
