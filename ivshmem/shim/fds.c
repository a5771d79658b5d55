/* SPDX-License-Identifier: Apache-2.0 */
#include "fds.h"

#include "agent.h"
#include "channel.h"
#include "epoll.h"
#include "libc.h"

#include <hyperheap/agent_protocol.h>
#include <hyperheap/atomics.h>

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

struct fd fd_first_[FD_CHUNK];
struct fd *fd_chunks_[FD_CHUNKS] = {fd_first_};

struct fd *fd_slow_(int fd)
{
	unsigned int chunk = (unsigned int)fd / FD_CHUNK;
	struct fd *entries, *expected = NULL;

	if (fd < 0 || chunk >= FD_CHUNKS)
		return NULL;
	entries = hh_load_acquire(&fd_chunks_[chunk]);
	if (!entries) {
		entries = mmap(NULL, FD_CHUNK * sizeof(*entries), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (entries == MAP_FAILED)
			return NULL;
		if (!__atomic_compare_exchange_n(&fd_chunks_[chunk], &expected, entries, false, __ATOMIC_ACQ_REL,
						 __ATOMIC_ACQUIRE)) {
			munmap(entries, FD_CHUNK * sizeof(*entries));
			entries = expected;
		}
	}
	return &entries[(unsigned int)fd % FD_CHUNK];
}

static bool is_tcp(int fd)
{
	int protocol = 0, domain = 0;
	socklen_t length = sizeof(protocol);

	if (getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &length) || protocol != IPPROTO_TCP)
		return false;
	length = sizeof(domain);
	return !getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) && (domain == AF_INET || domain == AF_INET6);
}

void fd_classify(int fd, struct fd *entry)
{
	int saved = errno;

	if (!fd_table_is_ours() || hh_load(&agent_sandboxed_)) /* a sandbox may kill for asking */
		return;
	if (is_tcp(fd)) {
		fd_set_stream(fd, HH_SIDE_UNKNOWN);
	} else if (errno != EBADF) {
		hh_store_release(&entry->kind, FD_OTHER);
	}
	errno = saved;
}

void fd_set_stream(int fd, int side)
{
	struct fd *entry = fd_entry(fd);

	if (!entry || !fd_table_is_ours())
		return;
	fd_reset(fd);
	entry->side = (uint8_t)side;
	agent_look();
	hh_store_release(&entry->kind, FD_STREAM);
}

static pid_t owner;

__attribute__((constructor)) void fd_own_table(void)
{
	owner = getpid();
}

bool fd_table_is_ours(void)
{
	return !owner || owner == getpid();
}

void fd_reset(int fd)
{
	struct fd *entry = fd_entry(fd);
	struct channel *channel;
	struct epoll_set *set;

	if (!entry || entry->kind == FD_PRIVATE || (entry->kind != FD_UNKNOWN && !fd_table_is_ours()))
		return;
	hh_store_release(&entry->kind, FD_UNKNOWN);
	entry->serial++;
	entry->announced = 0;
	entry->listening = 0;
	entry->calls = 0;
	entry->offers = 0;
	entry->bytes = 0;
	entry->cookie = 0;
	channel = __atomic_exchange_n(&entry->channel, NULL, __ATOMIC_ACQ_REL);
	if (channel)
		channel_release(channel);
	set = __atomic_exchange_n(&entry->set, NULL, __ATOMIC_ACQ_REL);
	if (set)
		epoll_set_put(set);
}

void fd_copy(int from, int to)
{
	struct fd *old = fd_entry(from), *new = fd_entry(to);
	struct channel *channel;

	if (!old || !new || from == to || !fd_table_is_ours())
		return;
	fd_reset(to);
	if (old->kind != FD_STREAM && old->kind != FD_EPOLL && old->kind != FD_OTHER)
		return;
	new->side = old->side;
	new->announced = old->announced;
	new->listening = old->listening;
	new->calls = old->calls;
	new->bytes = old->bytes;
	new->cookie = old->cookie;
	channel = channel_get(old);
	if (channel) {
		channel_claim(channel);
		hh_store_release(&new->channel, channel);
		channel_put(channel);
	}
	if (old->set)
		new->set = epoll_set_get(old->set);
	hh_store_release(&new->kind, old->kind);
}

void fd_pin(int fd)
{
	struct fd *entry = fd_entry(fd);

	if (!entry || entry->kind == FD_PRIVATE || !fd_table_is_ours())
		return;
	fd_reset(fd);
	hh_store_release(&entry->kind, FD_OTHER);
}

int fd_hide(int fd)
{
	struct rlimit limit = {.rlim_cur = 1024};
	int base, hidden;

	if (fd < 0)
		return -errno;
	getrlimit(RLIMIT_NOFILE, &limit);
	base = limit.rlim_cur > 65536 ? 65000 : (int)(limit.rlim_cur - limit.rlim_cur / 16);
	hidden = libc.fcntl(fd, F_DUPFD_CLOEXEC, base);
	if (hidden < 0)
		hidden = libc.fcntl(fd, F_DUPFD_CLOEXEC, 3);
	libc.close(fd);
	if (hidden < 0)
		return -EMFILE;
	if (!fd_entry(hidden)) {
		libc.close(hidden);
		return -EMFILE;
	}
	fd_reset(hidden);
	hh_store_release(&fd_entry(hidden)->kind, FD_PRIVATE);
	return hidden;
}

void fd_close_private(int fd)
{
	uint8_t expected = FD_PRIVATE;

	if (fd >= 0 && __atomic_compare_exchange_n(&fd_entry(fd)->kind, &expected, FD_UNKNOWN, false, __ATOMIC_ACQ_REL,
						   __ATOMIC_ACQUIRE))
		libc.close(fd);
}

int fd_next_private(unsigned int first)
{
	for (unsigned int chunk = first / FD_CHUNK; chunk < FD_CHUNKS; chunk++) {
		struct fd *entries = hh_load_acquire(&fd_chunks_[chunk]);

		for (unsigned int i = chunk == first / FD_CHUNK ? first % FD_CHUNK : 0; entries && i < FD_CHUNK; i++) {
			if (hh_load(&entries[i].kind) == FD_PRIVATE)
				return (int)(chunk * FD_CHUNK + i);
		}
	}
	return -1;
}
