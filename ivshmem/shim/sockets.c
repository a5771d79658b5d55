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
#include <sys/prctl.h>
#include <sys/syscall.h>
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

	result = libc.connect(fd, address, length);
	if ((!result || errno == EINPROGRESS) && is_stream(fd)) {
		if (address->sa_family == AF_UNSPEC)
			fd_pin(fd); /* the next association would be taken for this one: the cookie stays */
		else
			fd_entry(fd)->side = HH_SIDE_CONNECTED; /* still the same open file: epoll sets keep it */
	}
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
	if (!(flags & CLOSE_RANGE_CLOEXEC) && fd_table_is_ours()) {
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
	/* The kernel will change the bytes of this stream, or its counters, or promises what a ring does not keep: TCP. */
	if (((level == IPPROTO_TCP && (option == TCP_ULP || option == TCP_REPAIR)) ||
	     (level == SOL_SOCKET && option == SO_ZEROCOPY)) &&
	    is_stream(fd)) {
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

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
SHIM_EXPORT int siginterrupt(int number, int flag)
{
	if (flag)
		signals_interrupt();
	return libc.siginterrupt(number, flag);
}
#pragma GCC diagnostic pop

SHIM_EXPORT int vdprintf(int fd, const char *format, va_list arguments)
{
	char *text = NULL;
	int length = vasprintf(&text, format, arguments), done = 0;

	while (done < length) {
		ssize_t put = write(fd, text + done, (size_t)(length - done));

		if (put < 0) {
			length = -1;
			break;
		}
		done += (int)put;
	}
	free(text);
	return length;
}

SHIM_EXPORT int dprintf(int fd, const char *format, ...)
{
	va_list arguments;
	int length;

	va_start(arguments, format);
	length = vdprintf(fd, format, arguments);
	va_end(arguments);
	return length;
}

SHIM_EXPORT int __vdprintf_chk(int fd, int flag, const char *format, va_list arguments)
{
	(void)flag;
	return vdprintf(fd, format, arguments);
}

SHIM_EXPORT int __dprintf_chk(int fd, int flag, const char *format, ...)
{
	va_list arguments;
	int length;

	(void)flag;
	va_start(arguments, format);
	length = vdprintf(fd, format, arguments);
	va_end(arguments);
	return length;
}

/* ---- sandboxes --------------------------------------------------------------------------------------------------- */

SHIM_EXPORT int prctl(int option, ...)
{
	unsigned long words[4];
	va_list arguments;

	va_start(arguments, option);
	for (int i = 0; i < 4; i++)
		words[i] = va_arg(arguments, unsigned long);
	va_end(arguments);
	if (option == PR_SET_SECCOMP)
		hh_store(&agent_sandboxed_, true);
	return libc.prctl(option, words[0], words[1], words[2], words[3]);
}

SHIM_EXPORT long syscall(long number, ...)
{
	long words[6];
	va_list arguments;

	va_start(arguments, number);
	for (int i = 0; i < 6; i++)
		words[i] = va_arg(arguments, long);
	va_end(arguments);
	if (number == SYS_seccomp)
		hh_store(&agent_sandboxed_, true);
	return libc.syscall(number, words[0], words[1], words[2], words[3], words[4], words[5]);
}
