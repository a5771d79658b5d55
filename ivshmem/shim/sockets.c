/* SPDX-License-Identifier: Apache-2.0 */
/* The calls that make, name, copy and end descriptors, and those that ask about streams. */
#include "agent.h"
#include "channel.h"
#include "libc.h"
#include "wait.h"

#include <hyperheap/agent_protocol.h>

#include <linux/sockios.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static bool is_stream(int fd)
{
	struct fd *entry = fd_entry(fd);

	if (!entry)
		return false;
	if (entry->kind == FD_UNKNOWN)
		fd_classify(fd, entry);
	return entry->kind == FD_STREAM;
}

static int not_yours(void)
{
	errno = EBADF;
	return -1;
}

SHIM_EXPORT int socket(int domain, int type, int protocol)
{
	int fd = libc.socket(domain, type, protocol);

	if (fd < 0)
		return fd;
	if ((domain == AF_INET || domain == AF_INET6) && (type & ~(SOCK_CLOEXEC | SOCK_NONBLOCK)) == SOCK_STREAM &&
	    (protocol == 0 || protocol == IPPROTO_TCP))
		fd_set_stream(fd, HH_SIDE_UNKNOWN);
	else
		fd_reset(fd);
	return fd;
}

SHIM_EXPORT int connect(int fd, const struct sockaddr *address, socklen_t length)
{
	int result;

	if (is_stream(fd)) /* a new association: whatever was known belongs to an older one */
		fd_set_stream(fd, HH_SIDE_CONNECTED);
	result = libc.connect(fd, address, length);
	return result;
}

SHIM_EXPORT int listen(int fd, int backlog)
{
	int result = libc.listen(fd, backlog);

	if (!result && is_stream(fd)) {
		struct fd *entry = fd_entry(fd);

		entry->listening = 1;
		agent_listen(fd, entry);
	}
	return result;
}

static int accepted(int fd)
{
	if (fd >= 0) {
		fd_reset(fd);
		if (is_stream(fd))
			fd_entry(fd)->side = HH_SIDE_ACCEPTED;
	}
	return fd;
}

SHIM_EXPORT int accept(int fd, struct sockaddr *address, socklen_t *length)
{
	return accepted(libc.accept(fd, address, length));
}

SHIM_EXPORT int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags)
{
	return accepted(libc.accept4(fd, address, length, flags));
}

SHIM_EXPORT int shutdown(int fd, int how)
{
	struct fd *entry = fd_entry(fd);
	struct channel *channel = NULL;

	if (how != SHUT_RD && is_stream(fd))
		channel = channel_of(fd, entry);
	if (channel) {
		channel_shutdown(channel);
		channel_put(channel);
	}
	return libc.shutdown(fd, how);
}

SHIM_EXPORT int close(int fd)
{
	if (fd_is_private(fd))
		return not_yours();
	fd_reset(fd);
	return libc.close(fd);
}

SHIM_EXPORT int close_range(unsigned int first, unsigned int last, int flags)
{
	int private, result = 0;

	if (first > last)
		return libc.close_range(first, last, flags);
	if (!(flags & CLOSE_RANGE_CLOEXEC)) {
		for (unsigned int chunk = first / FD_CHUNK; chunk <= last / FD_CHUNK && chunk < FD_CHUNKS; chunk++) {
			unsigned int start = chunk * FD_CHUNK;

			for (unsigned int i = 0; fd_chunks_[chunk] && i < FD_CHUNK; i++) {
				if (start + i >= first && start + i <= last && fd_chunks_[chunk][i].kind != FD_UNKNOWN)
					fd_reset((int)(start + i));
			}
		}
	}
	/* Around the shim's own descriptors, which are close-on-exec anyway. */
	while (!result && (private = fd_next_private(first)) >= 0 && (unsigned int)private <= last) {
		if ((unsigned int)private > first)
			result = libc.close_range(first, (unsigned int)private - 1, flags);
		if ((unsigned int)private == last)
			return result;
		first = (unsigned int)private + 1;
	}
	return result ? result : libc.close_range(first, last, flags);
}

SHIM_EXPORT void closefrom(int low)
{
	close_range(low < 0 ? 0 : (unsigned int)low, UINT_MAX, 0);
}

SHIM_EXPORT int dup(int fd)
{
	int copy;

	if (fd_is_private(fd))
		return not_yours();
	copy = libc.dup(fd);
	if (copy >= 0)
		fd_copy(fd, copy);
	return copy;
}

SHIM_EXPORT int dup2(int from, int to)
{
	int result;

	if (fd_is_private(from) || fd_is_private(to))
		return not_yours();
	if (from != to && libc.fcntl(from, F_GETFD) >= 0)
		fd_reset(to);
	result = libc.dup2(from, to);
	if (result >= 0)
		fd_copy(from, to);
	return result;
}

SHIM_EXPORT int dup3(int from, int to, int flags)
{
	int result;

	if (fd_is_private(from) || fd_is_private(to))
		return not_yours();
	if (from != to && libc.fcntl(from, F_GETFD) >= 0)
		fd_reset(to);
	result = libc.dup3(from, to, flags);
	if (result >= 0)
		fd_copy(from, to);
	return result;
}

static int do_fcntl(int fd, int command, void *argument)
{
	int result;

	if (fd_is_private(fd))
		return not_yours();
	result = libc.fcntl(fd, command, argument);
	if (result >= 0 && (command == F_DUPFD || command == F_DUPFD_CLOEXEC))
		fd_copy(fd, result);
	return result;
}

SHIM_EXPORT int fcntl(int fd, int command, ...)
{
	va_list arguments;
	void *argument;

	va_start(arguments, command);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	return do_fcntl(fd, command, argument);
}

SHIM_EXPORT int fcntl64(int fd, int command, ...)
{
	va_list arguments;
	void *argument;

	va_start(arguments, command);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	return do_fcntl(fd, command, argument);
}

SHIM_EXPORT int ioctl(int fd, unsigned long request, ...)
{
	struct channel *channel;
	va_list arguments;
	void *argument;
	int result;

	va_start(arguments, request);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	result = libc.ioctl(fd, request, argument);
	if (result || (request != SIOCINQ && request != SIOCOUTQ) || !is_stream(fd))
		return result;
	channel = channel_of(fd, fd_entry(fd));
	if (!channel)
		return result;
	if (request == SIOCINQ) {
		int bytes = channel_readable_bytes(channel);

		if (bytes)
			*(int *)argument = bytes;
	} else {
		*(int *)argument += (int)(channel->end->tx.head - hh_load(&channel->tx.shared->tail));
	}
	channel_put(channel);
	return result;
}

SHIM_EXPORT int setsockopt(int fd, int level, int option, const void *value, socklen_t length)
{
	/* The kernel will change the bytes of this stream, or its counters: it stays on TCP. */
	if (level == IPPROTO_TCP && (option == TCP_ULP || option == TCP_REPAIR) && is_stream(fd)) {
		struct channel *channel = channel_of(fd, fd_entry(fd));

		if (channel) {
			channel_put(channel);
			errno = ENOPROTOOPT; /* as a kernel without it says; programs have a way without */
			return -1;
		}
		fd_pin(fd);
	}
	return libc.setsockopt(fd, level, option, value, length);
}

/* ---- stdio: glibc reads and writes behind a FILE without passing by here -------------------------------------------- */

static ssize_t file_read(void *cookie, char *buffer, size_t size)
{
	return read((int)(intptr_t)cookie, buffer, size);
}

static ssize_t file_write(void *cookie, const char *buffer, size_t size)
{
	ssize_t written = write((int)(intptr_t)cookie, buffer, size);

	return written < 0 ? 0 : written; /* fopencookie's way to say error */
}

static int file_close(void *cookie)
{
	return close((int)(intptr_t)cookie);
}

SHIM_EXPORT FILE *fdopen(int fd, const char *mode)
{
	const cookie_io_functions_t functions = {.read = file_read, .write = file_write, .close = file_close};
	struct fd *entry = fd_entry(fd);

	if (!entry || !is_stream(fd))
		return libc.fdopen(fd, mode);
	if (!entry->announced && !entry->channel) {
		fd_pin(fd);
		return libc.fdopen(fd, mode);
	}
	return fopencookie((void *)(intptr_t)fd, mode, functions);
}

SHIM_EXPORT int sigaction(int number, const struct sigaction *action, struct sigaction *old)
{
	signals_note(action);
	return libc.sigaction(number, action, old);
}
