/* SPDX-License-Identifier: Apache-2.0 */
#include "agent.h"

#include "channel.h"
#include "epoll.h"
#include "libc.h"

#include <hyperheap/agent_protocol.h>
#include <hyperheap/core.h>
#include <hyperheap/ends_find.h>

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/single_threaded.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define RUN_DIRECTORY "/run/hyperheap"
#define WAIT_MS 2000
#define RETRY_NS INT64_C(1000000000)
#define REFUSED 1024 /* remembered verdicts; forgetting one costs one more announcement */

struct hh_region *agent_region_;
uint32_t agent_deaf_;
bool agent_sandboxed_;

static struct {
	pthread_mutex_t lock;
	int fd; /* private descriptor of the agent socket, or -1 */
	bool welcomed;
	int bells[AGENT_BELLS];
	int bell_count;
	uint32_t bells_serial;
	uint32_t offers; /* region.offers when the socket was last read */
	int64_t next_look, next_connect;
	uint64_t refused[REFUSED];
} agent = {.lock = PTHREAD_MUTEX_INITIALIZER, .fd = -1};

void process_lock(sigset_t *saved)
{
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, saved);
	pthread_mutex_lock(&agent.lock);
}

void process_unlock(const sigset_t *saved)
{
	pthread_mutex_unlock(&agent.lock);
	pthread_sigmask(SIG_SETMASK, saved, NULL);
}

static sigset_t fork_mask;

static void before_fork(void)
{
	sigset_t saved;

	process_lock(&saved);
	fork_mask = saved;
}

static void after_fork_parent(void)
{
	sigset_t saved = fork_mask;

	process_unlock(&saved);
}

static void after_fork_child(void)
{
	sigset_t saved = fork_mask;

	fd_own_table();
	epoll_after_fork();
	/* The agent socket speaks for the parent. Bells, device files and mappings go on working in both. */
	if (agent.fd >= 0)
		fd_close_private(agent.fd);
	agent.fd = -1;
	agent.welcomed = false;
	agent.next_connect = 0;
	agent.bells_serial++;
	process_unlock(&saved);
}

static char run_directory[96] = RUN_DIRECTORY; /* as the environment said at the start: servers clear it */

__attribute__((constructor)) static void agent_init(void)
{
	const char *directory = secure_getenv("HYPERHEAP_RUN");

	if (directory)
		snprintf(run_directory, sizeof(run_directory), "%s", directory);
	pthread_atfork(before_fork, after_fork_parent, after_fork_child);
}

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static void run_path(char *path, size_t size, const char *name)
{
	snprintf(path, size, "%s/%s", run_directory, name);
}

void agent_look(void)
{
	struct hh_region *region;
	struct stat status;
	char path[108];
	int64_t now;
	int fd;

	if (agent_region())
		return;
	now = now_ns();
	if (now < hh_load(&agent.next_look))
		return;
	hh_store(&agent.next_look, now + RETRY_NS);
	run_path(path, sizeof(path), "ends");
	fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0)
		return;
	if (!fstat(fd, &status) && status.st_size >= HH_REGION_HEADER) {
		region = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (region != MAP_FAILED) {
			struct hh_region *expected = NULL;

			if (hh_load_acquire(&region->magic) != HH_REGION_MAGIC || region->version != HH_LAYOUT_VERSION ||
			    HH_REGION_HEADER + (uint64_t)region->end_count * sizeof(struct hh_end) > (uint64_t)status.st_size ||
			    !__atomic_compare_exchange_n(&agent_region_, &expected, region, false, __ATOMIC_ACQ_REL,
							 __ATOMIC_ACQUIRE))
				munmap(region, (size_t)status.st_size);
		}
	}
	libc.close(fd);
}

static void fill_program(struct hh_message *message)
{
	const char *name = program_invocation_short_name;

	if (name)
		strncpy(message->program, name, sizeof(message->program) - 1);
}

static int send_message(struct hh_message *message)
{
	message->version = HH_AGENT_VERSION;
	message->pid = (uint32_t)getpid();
	fill_program(message);
	if (libc.send(agent.fd, message, sizeof(*message), MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)sizeof(*message))
		return 0;
	if (errno != EAGAIN) {
		fd_close_private(agent.fd);
		agent.fd = -1;
		agent.welcomed = false;
	}
	return -1;
}

/* Connects and says hello; 0 if there is a connection now. */
static int connect_agent(void)
{
	struct hh_message hello = {.type = HH_HELLO};
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int64_t now;
	int fd;

	if (agent.fd >= 0)
		return 0;
	now = now_ns();
	if (now < agent.next_connect)
		return -1;
	agent.next_connect = now + RETRY_NS;
	run_path(address.sun_path, sizeof(address.sun_path), "agent.sock");
	fd = libc.socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -1;
	if (libc.connect(fd, (struct sockaddr *)&address, sizeof(address))) {
		libc.close(fd);
		return -1;
	}
	agent.fd = fd_hide(fd);
	if (agent.fd < 0)
		return -1;
	return send_message(&hello);
}

static void add_own_bell(void)
{
	int own;

	if (agent.bell_count)
		return;
	own = fd_hide(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
	if (own >= 0)
		agent.bells[agent.bell_count++] = own;
}

static void add_bell(int fd)
{
	const uint64_t one = 1;
	int hidden = fd_hide(fd);

	if (hidden < 0)
		return;
	add_own_bell();
	if (agent.bell_count == AGENT_BELLS) {
		fd_close_private(agent.bells[1]);
		memmove(agent.bells + 1, agent.bells + 2, sizeof(agent.bells) - 2 * sizeof(agent.bells[0]));
		agent.bell_count--;
	}
	agent.bells[agent.bell_count++] = hidden;
	hh_fetch_add(&agent.bells_serial, 1);
	(void)!libc.write(agent.bells[0], &one, sizeof(one));
}

/* Reads one packet. 1: it is in *message, with a descriptor or -1 in *fd; 0: none; -1: the agent is gone. */
static int receive_message(struct hh_message *message, int *fd)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec iov = {message, sizeof(*message)};
	struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
	struct cmsghdr *cmsg;
	ssize_t got;

	*fd = -1;
	got = libc.recvmsg(agent.fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (got != (ssize_t)sizeof(*message) || message->version != HH_AGENT_VERSION) {
		fd_close_private(agent.fd);
		agent.fd = -1;
		agent.welcomed = false;
		return -1;
	}
	cmsg = CMSG_FIRSTHDR(&header);
	if (cmsg && cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SCM_RIGHTS)
		memcpy(fd, CMSG_DATA(cmsg), sizeof(*fd));
	return 1;
}

static void handle_message(const struct hh_message *message, int fd)
{
	switch (message->type) {
	case HH_WELCOME:
		agent.welcomed = true;
		if (fd >= 0)
			add_bell(fd);
		return;
	case HH_GRANT:
		/* Without a bell nobody could wake this process: then the connection stays where it is. */
		if (fd >= 0 && agent.bell_count > 1) {
			channel_grant(message, fd);
			return;
		}
		/* fall through */
	case HH_VERDICT:
		agent.refused[hh_cookie_hash(message->cookie) % REFUSED] = message->cookie;
		break;
	default:
		break;
	}
	if (fd >= 0)
		libc.close(fd);
}

static void drain_messages(void)
{
	struct hh_message message;
	int fd;

	while (agent.fd >= 0 && receive_message(&message, &fd) > 0)
		handle_message(&message, fd);
}

void agent_poll(void)
{
	struct hh_region *region = agent_region();
	uint32_t offers = region ? hh_load_acquire(&region->offers) : 0; /* A7 <-> R7 */
	sigset_t saved;

	if (offers == hh_load(&agent.offers))
		return;
	process_lock(&saved);
	drain_messages();
	hh_store(&agent.offers, offers);
	process_unlock(&saved);
}

/* Waits for a message of this type about this cookie or slot while handling all others. */
static bool wait_for(uint16_t type, uint64_t key, int *descriptor)
{
	int64_t deadline = now_ns() + WAIT_MS * INT64_C(1000000);

	for (;;) {
		struct hh_message message;
		int fd, got = receive_message(&message, &fd);

		if (got < 0)
			return false;
		if (got > 0) {
			if (type == HH_BELL && message.type == HH_BELL && message.slot == key) {
				*descriptor = fd;
				return true;
			}
			handle_message(&message, fd);
			if (type != HH_BELL && message.type >= HH_GRANT && message.cookie == key)
				return true;
			continue;
		}
		int64_t left = deadline - now_ns();
		struct pollfd wait = {.fd = agent.fd, .events = POLLIN};

		if (left <= 0)
			return false;
		libc.poll(&wait, 1, (int)(left / 1000000) + 1);
	}
}

bool agent_attach(uint64_t cookie)
{
	struct hh_message message = {.type = HH_ATTACH, .cookie = cookie};
	bool found = false;
	sigset_t saved;

	process_lock(&saved);
	if (!connect_agent() && !send_message(&message) && wait_for(HH_GRANT, cookie, NULL))
		found = true;
	process_unlock(&saved);
	return found;
}

int agent_bell(uint32_t slot)
{
	struct hh_message message = {.type = HH_BELL, .slot = slot};
	int fd = -1;
	sigset_t saved;

	process_lock(&saved);
	for (int attempt = 0; attempt < 2; attempt++) { /* the connection may be that of an agent of before */
		if (!connect_agent() && !send_message(&message) && wait_for(HH_BELL, slot, &fd))
			break;
		if (agent.fd < 0)
			agent.next_connect = 0;
	}
	if (fd >= 0)
		fd = fd_hide(fd);
	process_unlock(&saved);
	return fd;
}

bool agent_refused(uint64_t cookie)
{
	return hh_load(&agent.refused[hh_cookie_hash(cookie) % REFUSED]) == cookie;
}

int agent_bells(int bells[AGENT_BELLS])
{
	sigset_t saved;
	int count;

	process_lock(&saved);
	add_own_bell();
	count = agent.bell_count;
	memcpy(bells, agent.bells, (size_t)count * sizeof(*bells));
	process_unlock(&saved);
	return count;
}

bool agent_is_quiet(void)
{
	return !agent_region() || (hh_load(&agent_sandboxed_) && !channel_any()) || (__libc_single_threaded && hh_load(&agent.bell_count) == 0);
}

void agent_kick(void)
{
	const uint64_t one = 1;

	if (hh_load(&agent.bell_count))
		(void)!libc.write(agent.bells[0], &one, sizeof(one));
}

uint32_t agent_bells_serial(void)
{
	return hh_load(&agent.bells_serial);
}

static bool fill_address(struct hh_address *address, int fd, int (*get)(int, struct sockaddr *, socklen_t *))
{
	union {
		struct sockaddr any;
		struct sockaddr_in v4;
		struct sockaddr_in6 v6;
	} name;
	socklen_t length = sizeof(name);

	if (get(fd, &name.any, &length))
		return false;
	if (name.any.sa_family == AF_INET) {
		address->family = AF_INET;
		address->port = ntohs(name.v4.sin_port);
		memcpy(address->addr, &name.v4.sin_addr, 4);
		return true;
	}
	if (name.any.sa_family != AF_INET6)
		return false;
	address->port = ntohs(name.v6.sin6_port);
	if (IN6_IS_ADDR_V4MAPPED(&name.v6.sin6_addr)) {
		address->family = AF_INET;
		memcpy(address->addr, name.v6.sin6_addr.s6_addr + 12, 4);
		return true;
	}
	address->family = AF_INET6;
	address->scope = name.v6.sin6_scope_id;
	memcpy(address->addr, &name.v6.sin6_addr, 16);
	return true;
}

/* glibc declares these with a transparent union for the address; plain functions take their place. */
static int get_local(int fd, struct sockaddr *address, socklen_t *length)
{
	return getsockname(fd, address, length);
}

static int get_remote(int fd, struct sockaddr *address, socklen_t *length)
{
	return getpeername(fd, address, length);
}

static void tell(struct hh_message *message)
{
	sigset_t saved;

	process_lock(&saved);
	if (!connect_agent()) {
		drain_messages();
		send_message(message);
	}
	process_unlock(&saved);
}

void agent_announce(int fd, struct fd *entry)
{
	struct hh_message message = {.type = HH_ANNOUNCE, .side = entry->side};
	int saved = errno;

	agent_look();
	if (hh_load(&agent_deaf_)) {
		entry->calls = 0;
		return;
	}
	/* Announced first, then a look at who is blocked; the blocking side does it the other way round. */
	hh_store(&entry->announced, 1);
	hh_full_barrier();
	if (hh_load(&entry->blocked) || agent_sandboxed_) {
		hh_store(&entry->announced, 0);
		entry->calls = 0;
		return;
	}
	if (agent_region() && fill_address(&message.remote, fd, get_remote) && fill_address(&message.local, fd, get_local)) {
		message.cookie = channel_cookie(fd, entry);
		if (message.cookie)
			tell(&message);
	} else {
		hh_store(&entry->announced, 0);
		entry->calls = 0; /* not connected, or no agent yet: look again after as many calls */
		entry->bytes = 0;
	}
	errno = saved;
}

void agent_listen(int fd, struct fd *entry)
{
	struct hh_message message = {.type = HH_LISTEN};
	int saved = errno;

	agent_look();
	if (agent_region() && fill_address(&message.local, fd, get_local)) {
		message.cookie = channel_cookie(fd, entry);
		tell(&message);
	}
	errno = saved;
}
