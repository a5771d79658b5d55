/* SPDX-License-Identifier: Apache-2.0 */
#include "epoll.h"

#include "agent.h"
#include "channel.h"
#include "libc.h"
#include "wait.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/single_threaded.h>

#define SPINS_PER_CLOCK 16
#define SPIN_MEMBERS 64 /* larger sets do not spin: a look at them takes too long */
#define INPUT (EPOLLIN | EPOLLRDNORM)
#define OUTPUT (EPOLLOUT | EPOLLWRNORM)
#define NEVER_SEEN UINT64_MAX

struct member {
	int fd;
	uint32_t serial; /* of the descriptor's entry: another one means that it was closed */
	uint32_t events; /* as the program gave them */
	bool masked;     /* EPOLLOUT is taken out of the kernel's registration */
	bool disarmed;   /* EPOLLONESHOT has fired */
	epoll_data_t data;
	uint64_t seen; /* head of the ring when input was last reported (edge-triggered) */
	struct channel *channel;
	struct epoll_set *nested; /* an epoll instance in this one, referenced */
};

struct epoll_set {
	uint32_t refs;
	int fd; /* the descriptor that was used last: they come and go, the open file stays */
	uint32_t bells_serial;
	pthread_mutex_t lock;
	struct member *members;
	int count, room;
	int channels; /* members with a channel */
	uint32_t offers;
	uint32_t waiters; /* threads in the kernel */
	uint32_t deaf;    /* threads in the kernel since before there was a bell to hear: the first stream wakes them */
	struct epoll_set *next; /* in the list of all that ever were: memory of sets is never given back */
};

static struct epoll_set *all_sets;

static const char bell_mark; /* its address marks the events of bells */

static uint64_t bell_data(void)
{
	return (uint64_t)(uintptr_t)&bell_mark;
}

struct epoll_set *epoll_set_get(struct epoll_set *set)
{
	uint32_t refs = set ? hh_load(&set->refs) : 0;

	while (refs) {
		if (__atomic_compare_exchange_n(&set->refs, &refs, refs + 1, true, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
			return set;
	}
	return NULL;
}

static void clear_member(struct epoll_set *set, struct member *member)
{
	if (member->channel) {
		channel_put(member->channel);
		set->channels--;
	}
	if (member->nested) {
		epoll_set_put(member->nested);
		set->channels--;
	}
}

void epoll_set_put(struct epoll_set *set)
{
	struct member *members;
	int count;

	if (hh_fetch_sub(&set->refs, 1) != 1)
		return;
	members = set->members;
	count = set->count;
	set->members = NULL;
	set->count = set->room = 0;
	for (int i = 0; i < count; i++)
		clear_member(set, &members[i]);
	free(members);
}

static struct epoll_set *new_set(int fd)
{
	struct epoll_set *set;
	sigset_t saved;

	process_lock(&saved);
	for (set = all_sets; set && set->refs; set = set->next)
		;
	if (!set && (set = calloc(1, sizeof(*set)))) {
		pthread_mutex_init(&set->lock, NULL);
		set->next = all_sets;
		all_sets = set;
	}
	if (set) {
		set->fd = fd;
		set->bells_serial = UINT32_MAX;
		set->channels = 0;
		set->offers = set->waiters = set->deaf = 0;
		hh_store_release(&set->refs, 1);
	}
	process_unlock(&saved);
	return set;
}

void epoll_after_fork(void)
{
	/* Whoever held a lock is not in this process. */
	for (struct epoll_set *set = all_sets; set; set = set->next) {
		pthread_mutex_init(&set->lock, NULL);
		set->waiters = set->deaf = 0;
	}
}

bool epoll_in_use(void)
{
	return hh_load(&all_sets) != NULL;
}

bool epoll_set_has_streams(const struct epoll_set *set)
{
	return set && hh_load(&set->count) > 0;
}

static int made(int fd)
{
	struct fd *entry = fd >= 0 ? fd_entry(fd) : NULL;
	struct epoll_set *set;

	if (!entry)
		return fd;
	if (!fd_table_is_ours())
		return fd;
	fd_reset(fd);
	set = new_set(fd);
	if (!set)
		return fd; /* its streams stay on TCP: see epoll_ctl */
	entry->set = set;
	hh_store_release(&entry->kind, FD_EPOLL);
	return fd;
}

SHIM_EXPORT int epoll_create(int size)
{
	return made(libc.epoll_create(size));
}

SHIM_EXPORT int epoll_create1(int flags)
{
	return made(libc.epoll_create1(flags));
}

/* ---- membership: all under set->lock --------------------------------------------------------------------------- */

static void remove_member(struct epoll_set *set, int index)
{
	clear_member(set, &set->members[index]);
	set->members[index] = set->members[--set->count];
}

static int find_member(const struct epoll_set *set, int fd)
{
	for (int i = 0; i < set->count; i++) {
		if (set->members[i].fd == fd)
			return i;
	}
	return -1;
}

static void note_member(struct epoll_set *set, int fd, const struct fd *entry, const struct epoll_event *event)
{
	int index = find_member(set, fd);
	struct member *member;

	if (index >= 0 && set->members[index].serial != entry->serial) {
		remove_member(set, index);
		index = -1;
	}
	if (index < 0) {
		if (set->count == set->room) {
			int room = set->room ? 2 * set->room : 16;
			struct member *members = realloc(set->members, (size_t)room * sizeof(*members));

			if (!members) {
				fd_pin(fd);
				return;
			}
			set->members = members;
			set->room = room;
		}
		index = set->count++;
		set->members[index] = (struct member){.fd = fd, .serial = entry->serial};
		set->offers = 0; /* look whether it has a channel */
	}
	member = &set->members[index];
	member->events = event->events;
	member->data = event->data;
	member->masked = false;
	member->disarmed = false;
	member->seen = NEVER_SEEN;
}

/* The bells of today are in the kernel's instance, edge-triggered and never read (see wait.h). */
static void register_bells(struct epoll_set *set)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u64 = bell_data()};
	uint32_t serial = agent_bells_serial();
	int bells[AGENT_BELLS], count;

	if (set->bells_serial == serial)
		return;
	set->bells_serial = serial;
	count = agent_bells(bells);
	for (int i = 0; i < count; i++)
		libc.epoll_ctl(set->fd, EPOLL_CTL_ADD, bells[i], &event); /* EEXIST: from before */
}

SHIM_EXPORT int epoll_ctl(int epfd, int operation, int fd, struct epoll_event *event)
{
	struct fd *owner = fd_entry(epfd), *entry = fd_entry(fd);
	int result = libc.epoll_ctl(epfd, operation, fd, event), index;
	struct epoll_set *set;

	if (result || !owner || !entry)
		return result;
	if (entry->kind == FD_UNKNOWN)
		fd_classify(fd, entry);
	if (entry->kind != FD_STREAM && entry->kind != FD_EPOLL)
		return result;
	set = owner->kind == FD_EPOLL ? epoll_set_get(owner->set) : NULL;
	if (!set) {
		/* An instance from before our time: we could not wake its waiters, so the stream stays where they look. */
		if (entry->kind == FD_STREAM && !entry->channel)
			fd_pin(fd);
		return result;
	}
	pthread_mutex_lock(&set->lock);
	set->fd = epfd;
	if (operation == EPOLL_CTL_DEL) {
		index = find_member(set, fd);
		if (index >= 0)
			remove_member(set, index);
	} else {
		note_member(set, fd, entry, event);
		if (set->deaf)
			register_bells(set);
		if (set->waiters || set->deaf)
			agent_kick(); /* they have not armed this member */
	}
	pthread_mutex_unlock(&set->lock);
	epoll_set_put(set);
	return result;
}

static void find_channels(struct epoll_set *set)
{
	struct hh_region *region = agent_region();
	uint32_t offers = region ? hh_load_acquire(&region->offers) + 1 : 1; /* A7 <-> R7; 0: a member is new */

	if (set->offers == offers)
		return;
	set->offers = offers;
	for (int i = 0; i < set->count; i++) {
		struct member *member = &set->members[i];
		struct fd *entry = fd_entry(member->fd);

		if (entry->serial != member->serial) {
			remove_member(set, i--);
			continue;
		}
		if (member->channel || member->nested)
			continue;
		if (entry->kind == FD_EPOLL && entry->set != set) {
			member->nested = epoll_set_get(entry->set);
			set->channels += member->nested != NULL;
			continue;
		}
		member->channel = channel_of(member->fd, entry);
		if (member->channel) {
			member->seen = NEVER_SEEN;
			set->channels++;
		}
	}
}

/* ---- what the rings know --------------------------------------------------------------------------------------- */

static void kernel_registration(struct epoll_set *set, struct member *member, uint32_t events)
{
	struct epoll_event event = {.events = events, .data = member->data};

	libc.epoll_ctl(set->fd, EPOLL_CTL_MOD, member->fd, &event);
}

/* The events of one member that its rings bring about; 0: none. */
static uint32_t ring_events(struct epoll_set *set, struct member *member)
{
	struct channel *channel = member->channel;
	uint32_t ready;
	uint64_t head;

	if (member->disarmed)
		return 0;
	if (member->nested)
		return epoll_set_ready(member->nested) ? member->events & INPUT : 0;
	if (member->masked && hh_load(&channel->end->tx.path) == HH_PATH_NETWORK) {
		member->masked = false;
		kernel_registration(set, member, member->events);
	}
	head = hh_load(&channel->rx.shared->head);
	/* The EPOLL and POLL constants are the same numbers. */
	ready = (uint32_t)channel_ready(channel, member->fd, (short)(member->events & (INPUT | OUTPUT)));
	if (member->events & EPOLLET) {
		if (ready & INPUT && member->seen == head)
			ready &= ~(uint32_t)INPUT;
		if (ready & OUTPUT && !hh_load(&channel->full))
			ready &= ~(uint32_t)OUTPUT;
	}
	return ready;
}

static void reported(struct epoll_set *set, struct member *member, uint32_t events, uint64_t head)
{
	if (events & INPUT)
		member->seen = head;
	if (member->channel && events & OUTPUT)
		hh_store(&member->channel->full, false);
	if (member->events & EPOLLONESHOT) {
		member->disarmed = true;
		kernel_registration(set, member, EPOLLET);
	}
}

static struct member *find_by_data(struct epoll_set *set, uint64_t data)
{
	for (int i = 0; i < set->count; i++) {
		if (set->members[i].channel && set->members[i].data.u64 == data)
			return &set->members[i];
	}
	return NULL;
}

/* Takes bells out of what the kernel reported, and corrects what it cannot know. */
static int filter(struct epoll_set *set, struct epoll_event *events, int count)
{
	int kept = 0;

	for (int i = 0; i < count; i++) {
		struct epoll_event event = events[i];
		struct member *member;

		if (event.data.u64 == bell_data())
			continue;
		member = set->channels ? find_by_data(set, event.data.u64) : NULL;
		if (member && member->disarmed)
			continue;
		if (member && event.events & OUTPUT && hh_load(&member->channel->end->tx.path) == HH_PATH_SHARED &&
		    !(channel_ready(member->channel, member->fd, POLLOUT))) {
			event.events &= ~(uint32_t)OUTPUT;
			hh_store(&member->channel->full, true); /* this edge is owed */
			if (!event.events) {
				member->masked = true;
				kernel_registration(set, member, member->events & ~(uint32_t)OUTPUT);
				continue;
			}
		}
		if (member && member->events & EPOLLONESHOT)
			member->disarmed = true;
		events[kept++] = event;
	}
	return kept;
}

/* Adds what the rings have to `count` events already there; the new count. */
static int collect(struct epoll_set *set, struct epoll_event *events, int count, int max)
{
	int from_kernel = count;

	for (int i = 0; i < set->count && set->channels; i++) {
		struct member *member = &set->members[i];
		uint32_t ready;
		uint64_t head;
		int same;

		if (!member->channel && !member->nested)
			continue;
		if (fd_entry(member->fd)->serial != member->serial) {
			remove_member(set, i--);
			continue;
		}
		head = member->channel ? hh_load(&member->channel->rx.shared->head) : 0;
		ready = ring_events(set, member);
		if (!ready)
			continue;
		for (same = 0; same < from_kernel && events[same].data.u64 != member->data.u64; same++)
			;
		if (same < from_kernel) {
			events[same].events |= ready;
		} else if (count < max) {
			events[count].events = ready;
			events[count++].data = member->data;
		} else {
			break;
		}
		reported(set, member, ready, head);
	}
	/* Whoever is not first in the list is first next time. */
	if (count > from_kernel && set->count > 1) {
		struct member first = set->members[0];

		memmove(set->members, set->members + 1, (size_t)(set->count - 1) * sizeof(first));
		set->members[set->count - 1] = first;
	}
	return count;
}

static int any_ready(struct epoll_set *set)
{
	for (int i = 0; i < set->count && set->channels; i++) {
		if ((set->members[i].channel || set->members[i].nested) && ring_events(set, &set->members[i]))
			return 1;
	}
	return 0;
}

int epoll_set_ready(struct epoll_set *set)
{
	int ready;

	pthread_mutex_lock(&set->lock);
	find_channels(set);
	ready = any_ready(set);
	pthread_mutex_unlock(&set->lock);
	return ready;
}

static void arm_members(struct epoll_set *set)
{
	for (int i = 0; i < set->count && set->channels; i++) {
		if (set->members[i].nested)
			epoll_set_arm(set->members[i].nested);
		else if (set->members[i].channel && !set->members[i].disarmed)
			channel_arm(set->members[i].channel, (short)(set->members[i].events & (INPUT | OUTPUT)));
	}
}

void epoll_set_arm(struct epoll_set *set)
{
	pthread_mutex_lock(&set->lock);
	arm_members(set);
	pthread_mutex_unlock(&set->lock);
}

/* ---- waiting --------------------------------------------------------------------------------------------------- */

/* Some channel of the set: it stands for all when it comes to spinning. */
static struct channel *first_channel(struct epoll_set *set)
{
	for (int i = 0; i < set->count && set->channels; i++) {
		if (set->members[i].channel)
			return set->members[i].channel;
	}
	return NULL;
}

static bool spin(struct epoll_set *set, int64_t start)
{
	struct channel *channel = set->count <= SPIN_MEMBERS ? first_channel(set) : NULL;
	int64_t limit;

	if (!channel || !wait_may_spin(channel, &limit))
		return false;
	do {
		for (int i = 0; i < SPINS_PER_CLOCK; i++) {
			if (any_ready(set)) {
				wait_spun(channel, true);
				return true;
			}
			hh_cpu_relax();
		}
		pthread_mutex_unlock(&set->lock); /* let others in */
		pthread_mutex_lock(&set->lock);
		channel = first_channel(set);
		if (!channel)
			return false;
	} while (monotonic_ns() - start < limit);
	wait_spun(channel, false);
	return false;
}

static int kernel_wait(int epfd, struct epoll_event *events, int max, int64_t deadline, const sigset_t *mask)
{
	int64_t left = deadline == NO_DEADLINE ? -1 : deadline - monotonic_ns();
	int timeout = deadline == NO_DEADLINE ? -1 : left <= 0 ? 0 : left > INT64_C(2000000000000) ? 2000000 : (int)((left + 999999) / 1000000);
	int count = libc.epoll_pwait(epfd, events, max, timeout, mask);

	return count < 0 ? -errno : count;
}

static int set_wait(struct epoll_set *set, int epfd, struct epoll_event *events, int max, int64_t deadline, const sigset_t *mask)
{
	for (;;) {
		int64_t start = monotonic_ns(), limit;
		bool now;
		int count;

		pthread_mutex_lock(&set->lock);
		set->fd = epfd;
		register_bells(set);
		find_channels(set);
		now = deadline <= start || any_ready(set) || spin(set, start);
		if (!now) {
			arm_members(set);
			now = any_ready(set);
		}
		limit = wait_limit(first_channel(set), deadline);
		set->waiters++;
		pthread_mutex_unlock(&set->lock);
		count = kernel_wait(epfd, events, max, now ? 0 : limit, mask);
		pthread_mutex_lock(&set->lock);
		set->waiters--;
		if (count < 0) {
			pthread_mutex_unlock(&set->lock);
			return count;
		}
		if (!now && first_channel(set))
			wait_slept(first_channel(set), monotonic_ns() - start);
		find_channels(set);
		count = filter(set, events, count);
		count = collect(set, events, count, max);
		if (count && set->waiters) /* the others heard nothing: one of them must arm what this one leaves */
			agent_kick();
		pthread_mutex_unlock(&set->lock);
		if (count || monotonic_ns() >= deadline)
			return count;
	}
}

/* The set of an epoll descriptor, referenced; NULL: the kernel alone serves it. Another thread may add the first stream while
 * this one sleeps, so with threads an empty set is watched too. */
static struct epoll_set *concerned_set(int epfd, int max)
{
	struct fd *entry = fd_entry(epfd);

	if (max <= 0 || !entry || entry->kind != FD_EPOLL || hh_load(&agent_sandboxed_))
		return NULL;
	if (__libc_single_threaded && !epoll_set_has_streams(entry->set) && hh_load(&entry->set->bells_serial) == UINT32_MAX)
		return NULL;
	return epoll_set_get(entry->set);
}

/*
 * A wait on a set without streams, in a process that has no bells yet: it sleeps in the kernel alone, and must not keep the
 * streams of other threads from being announced, as DEAF would. The first stream that enters the set ends it. -EAGAIN: streams
 * are in the set now, watch it. The event of a bell is the only one that may be swallowed: it is edge-triggered.
 */
static int deaf_wait(struct epoll_set *set, int epfd, struct epoll_event *events, int max, int64_t deadline, const sigset_t *mask)
{
	int count = 0, kept = 0;

	pthread_mutex_lock(&set->lock);
	if (set->count) {
		pthread_mutex_unlock(&set->lock);
		return -EAGAIN;
	}
	set->deaf++;
	pthread_mutex_unlock(&set->lock);
	count = kernel_wait(epfd, events, max, deadline, mask);
	pthread_mutex_lock(&set->lock);
	set->deaf--;
	pthread_mutex_unlock(&set->lock);
	for (int i = 0; i < count; i++) {
		if (events[i].data.u64 != bell_data())
			events[kept++] = events[i];
	}
	return count < 0 ? count : kept || monotonic_ns() >= deadline ? kept : -EAGAIN;
}

static int wait_set(struct epoll_set *set, int epfd, struct epoll_event *events, int max, int64_t deadline, const sigset_t *mask)
{
	int saved = errno, count = -EAGAIN;

	if (agent_is_quiet())
		count = deaf_wait(set, epfd, events, max, deadline, mask);
	if (count == -EAGAIN && agent_is_quiet())
		count = DEAF(kernel_wait(epfd, events, max, deadline, mask));
	else if (count == -EAGAIN)
		count = set_wait(set, epfd, events, max, deadline, mask);
	epoll_set_put(set);
	errno = count < 0 ? -count : saved;
	return count < 0 ? -1 : count;
}

SHIM_EXPORT int epoll_wait(int epfd, struct epoll_event *events, int max, int timeout)
{
	struct epoll_set *set = concerned_set(epfd, max);

	if (!set)
		return libc.epoll_wait(epfd, events, max, timeout);
	return wait_set(set, epfd, events, max, deadline_from_ms(timeout), NULL);
}

SHIM_EXPORT int epoll_pwait(int epfd, struct epoll_event *events, int max, int timeout, const sigset_t *mask)
{
	struct epoll_set *set = concerned_set(epfd, max);

	if (!set)
		return libc.epoll_pwait(epfd, events, max, timeout, mask);
	return wait_set(set, epfd, events, max, deadline_from_ms(timeout), mask);
}

SHIM_EXPORT int epoll_pwait2(int epfd, struct epoll_event *events, int max, const struct timespec *timeout, const sigset_t *mask)
{
	struct epoll_set *set = concerned_set(epfd, max);

	if (!set)
		return libc.epoll_pwait2(epfd, events, max, timeout, mask);
	return wait_set(set, epfd, events, max, deadline_from_timespec(timeout), mask);
}
