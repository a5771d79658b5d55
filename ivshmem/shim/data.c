/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The calls that move bytes. A stream without a channel goes to libc as it came; what has been announced, or has a channel,
 * goes through receive() and transmit(), which wait for the kernel and the bells together.
 */
#include "agent.h"
#include "channel.h"
#include "libc.h"
#include "wait.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct stream {
	struct fd *entry;
	struct channel *channel; /* referenced, or NULL */
};

/* True if the descriptor is a stream that the shim may serve. */
static inline bool find_stream(int fd, struct stream *stream)
{
	struct fd *entry = fd_entry(fd);
	uint8_t kind;

	if (unlikely(!entry))
		return false;
	kind = hh_load_acquire(&entry->kind);
	if (likely(kind == FD_OTHER))
		return false;
	if (unlikely(kind == FD_UNKNOWN)) {
		fd_classify(fd, entry);
		kind = entry->kind;
	}
	if (kind != FD_STREAM)
		return false;
	stream->entry = entry;
	stream->channel = channel_of(fd, entry);
	return true;
}

static inline void release_stream(struct stream *stream)
{
	if (stream->channel)
		channel_put(stream->channel);
}

static void account(int fd, struct fd *entry, ssize_t moved)
{
	struct hh_region *region = agent_region();
	uint32_t calls = region ? hh_load(&region->upgrade_calls) : UPGRADE_CALLS;
	uint64_t bytes = region ? hh_load(&region->upgrade_bytes) : UPGRADE_BYTES;

	/* Standard streams stay where they are: stdio reads and writes them behind our back. */
	if (moved <= 0 || fd <= STDERR_FILENO || hh_load(&entry->announced) || hh_load(&agent_sandboxed_))
		return;
	entry->calls++;
	entry->bytes += (uint64_t)moved;
	/* "At once" (0 and 0) is after the greetings; only an explicit number of bytes is sooner. */
	if ((entry->calls >= calls && entry->bytes >= UPGRADE_MIN_BYTES) || (bytes && entry->bytes >= bytes))
		agent_announce(fd, entry);
}

static bool nonblocking(int fd, int flags)
{
	return flags & MSG_DONTWAIT || libc.fcntl(fd, F_GETFL) & O_NONBLOCK;
}

static int64_t socket_deadline(int fd, int option)
{
	struct timeval limit = {0};
	socklen_t length = sizeof(limit);

	if (getsockopt(fd, SOL_SOCKET, option, &limit, &length) || (!limit.tv_sec && !limit.tv_usec))
		return NO_DEADLINE;
	return monotonic_ns() + limit.tv_sec * INT64_C(1000000000) + limit.tv_usec * INT64_C(1000);
}

static ssize_t failed(ssize_t error)
{
	errno = (int)-error;
	return -1;
}

/* After -EAGAIN: 0 to try again, else what the call fails with. */
static int wait_again(int fd, struct stream *stream, int flags, short events, int64_t *deadline)
{
	int result;

	if (*deadline == -1) {
		if (nonblocking(fd, flags))
			return -EAGAIN;
		*deadline = socket_deadline(fd, events == POLLIN ? SO_RCVTIMEO : SO_SNDTIMEO);
	}
	if (stream->channel)
		result = wait_channel(stream->channel, fd, events, *deadline);
	else
		result = wait_stream(fd, events, *deadline);
	if (result == -EINTR)
		return signals_restart() && *deadline == NO_DEADLINE ? 0 : -EINTR;
	return result == -ETIMEDOUT ? -EAGAIN : result;
}

static void look_for_channel(int fd, struct stream *stream)
{
	if (!stream->channel)
		stream->channel = channel_of(fd, stream->entry);
}

/* iov[] without its first `skip` bytes: the array from there on, its first element replaced by *head. */
static const struct iovec *iov_skip(const struct iovec *iov, int *count, size_t skip, struct iovec *head)
{
	while (*count && skip >= iov->iov_len) {
		skip -= iov->iov_len;
		iov++;
		(*count)--;
	}
	if (!skip || !*count)
		return iov;
	head->iov_base = (char *)iov->iov_base + skip;
	head->iov_len = iov->iov_len - skip;
	*count = 1; /* the rest follows in the next round */
	return head;
}

static size_t iov_length(const struct iovec *iov, int count)
{
	size_t length = 0;

	for (int i = 0; i < count; i++)
		length += iov[i].iov_len;
	return length;
}

static ssize_t plain_recvmsg(int fd, const struct iovec *iov, int count, int flags)
{
	struct msghdr message = {.msg_iov = (struct iovec *)iov, .msg_iovlen = (size_t)count};
	ssize_t got = libc.recvmsg(fd, &message, flags);

	return got < 0 ? -errno : got;
}

static ssize_t plain_sendmsg(int fd, const struct iovec *iov, int count, int flags)
{
	struct msghdr message = {.msg_iov = (struct iovec *)iov, .msg_iovlen = (size_t)count};
	ssize_t sent = libc.sendmsg(fd, &message, flags);

	return sent < 0 ? -errno : sent;
}

static ssize_t receive(int fd, struct stream *stream, const struct iovec *iov, int count, int flags)
{
	size_t length = iov_length(iov, count), done = 0;
	int64_t deadline = -1;
	ssize_t got;

	if (length == 0)
		return 0;
	for (;;) {
		struct iovec head;
		int left = count;
		const struct iovec *rest = iov_skip(iov, &left, done, &head);

		if (stream->channel)
			got = channel_receive(stream->channel, fd, rest, left, flags & ~MSG_WAITALL);
		else
			got = plain_recvmsg(fd, rest, left, (flags & ~MSG_WAITALL) | MSG_DONTWAIT);
		if (got > 0) {
			if (!stream->channel)
				account(fd, stream->entry, got);
			done += (size_t)got;
			if (!(flags & MSG_WAITALL) || flags & MSG_PEEK || done == length)
				return (ssize_t)done;
			look_for_channel(fd, stream);
			continue;
		}
		if (got == -EAGAIN) {
			got = wait_again(fd, stream, flags, POLLIN, &deadline);
			if (!got) {
				look_for_channel(fd, stream);
				continue;
			}
		}
		if (got == 0)
			return (ssize_t)done;
		return done ? (ssize_t)done : failed(got);
	}
}

static ssize_t transmit(int fd, struct stream *stream, const struct iovec *iov, int count, int flags)
{
	size_t length = iov_length(iov, count), done = 0;
	int64_t deadline = -1;
	ssize_t sent;

	for (;;) {
		struct iovec head;
		int left = count;
		const struct iovec *rest = iov_skip(iov, &left, done, &head);

		if (stream->channel)
			sent = channel_send(stream->channel, fd, rest, left, flags);
		else
			sent = plain_sendmsg(fd, rest, left, flags | MSG_DONTWAIT);
		look_for_channel(fd, stream);
		if (sent >= 0) {
			if (!stream->channel)
				account(fd, stream->entry, sent);
			done += (size_t)sent;
			if (done == length)
				return (ssize_t)done;
			sent = -EAGAIN;
		}
		if (sent == -EAGAIN) {
			sent = wait_again(fd, stream, flags, POLLOUT, &deadline);
			if (!sent)
				continue;
		}
		return done ? (ssize_t)done : failed(sent);
	}
}

/*
 * Whether the call may go to libc as it is: no channel, not announced. A thread that may block there says so first, so that
 * the connection is not announced, and moved to a place where it would not hear of it, meanwhile.
 */
static bool begin_plain(struct stream *stream)
{
	if (stream->channel || (hh_load(&stream->entry->announced) && !hh_load(&agent_sandboxed_)))
		return false;
	hh_fetch_add(&stream->entry->blocked, 1);
	hh_full_barrier();
	if (likely(!hh_load(&stream->entry->announced)) || hh_load(&agent_sandboxed_))
		return true;
	hh_fetch_sub(&stream->entry->blocked, 1);
	return false;
}

static void end_plain(int fd, struct stream *stream, ssize_t moved, bool sent)
{
	int saved = errno;

	hh_fetch_sub(&stream->entry->blocked, 1);
	account(fd, stream->entry, moved);
	if (sent && unlikely(moved > 0)) {
		look_for_channel(fd, stream);
		if (stream->channel)
			channel_plain_sent(stream->channel, fd);
	}
	release_stream(stream);
	errno = saved;
}

#define PLAIN(stream, fd, sent, call)                                                                                          \
	({                                                                                                                     \
		ssize_t moved_ = (call);                                                                                       \
		end_plain(fd, stream, moved_, sent);                                                                           \
		moved_;                                                                                                        \
	})

static ssize_t serve(int fd, struct stream *stream, const struct iovec *iov, int count, int flags, bool sending)
{
	int saved = errno;
	ssize_t moved = sending ? transmit(fd, stream, iov, count, flags) : receive(fd, stream, iov, count, flags);

	release_stream(stream);
	if (moved >= 0)
		errno = saved;
	return moved;
}

#define ELSEWHERE (MSG_OOB | MSG_ERRQUEUE)

SHIM_EXPORT ssize_t read(int fd, void *buffer, size_t size)
{
	struct iovec iov = {buffer, size};
	struct stream stream;

	if (!find_stream(fd, &stream))
		return libc.read(fd, buffer, size);
	if (begin_plain(&stream))
		return PLAIN(&stream, fd, false, libc.read(fd, buffer, size));
	return serve(fd, &stream, &iov, 1, 0, false);
}

SHIM_EXPORT ssize_t __read_chk(int fd, void *buffer, size_t size, size_t room)
{
	if (size > room)
		abort();
	return read(fd, buffer, size);
}

SHIM_EXPORT ssize_t readv(int fd, const struct iovec *iov, int count)
{
	struct stream stream;

	if (count <= 0 || count > IOV_MAX || !find_stream(fd, &stream))
		return libc.readv(fd, iov, count);
	if (begin_plain(&stream))
		return PLAIN(&stream, fd, false, libc.readv(fd, iov, count));
	return serve(fd, &stream, iov, count, 0, false);
}

SHIM_EXPORT ssize_t preadv2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
	struct stream stream;

	if (offset != -1 || count <= 0 || count > IOV_MAX || !find_stream(fd, &stream))
		return libc.preadv2(fd, iov, count, offset, flags);
	if (begin_plain(&stream))
		return PLAIN(&stream, fd, false, libc.preadv2(fd, iov, count, offset, flags));
	return serve(fd, &stream, iov, count, flags & RWF_NOWAIT ? MSG_DONTWAIT : 0, false);
}

SHIM_EXPORT ssize_t preadv64v2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
	return preadv2(fd, iov, count, offset, flags);
}

SHIM_EXPORT ssize_t recvfrom(int fd, void *buffer, size_t size, int flags, struct sockaddr *address, socklen_t *length)
{
	struct iovec iov = {buffer, size};
	struct stream stream;
	ssize_t got;

	if (flags & ELSEWHERE || !find_stream(fd, &stream))
		return libc.recvfrom(fd, buffer, size, flags, address, length);
	if (begin_plain(&stream))
		return PLAIN(&stream, fd, false, libc.recvfrom(fd, buffer, size, flags, address, length));
	got = serve(fd, &stream, &iov, 1, flags, false);
	if (got >= 0 && address && length)
		*length = 0; /* as TCP does */
	return got;
}

SHIM_EXPORT ssize_t recv(int fd, void *buffer, size_t size, int flags)
{
	return recvfrom(fd, buffer, size, flags, NULL, NULL);
}

SHIM_EXPORT ssize_t __recv_chk(int fd, void *buffer, size_t size, size_t room, int flags)
{
	if (size > room)
		abort();
	return recvfrom(fd, buffer, size, flags, NULL, NULL);
}

SHIM_EXPORT ssize_t __recvfrom_chk(int fd, void *buffer, size_t size, size_t room, int flags, struct sockaddr *address,
				   socklen_t *length)
{
	if (size > room)
		abort();
	return recvfrom(fd, buffer, size, flags, address, length);
}

SHIM_EXPORT ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
	struct stream stream;
	ssize_t got;

	if (flags & ELSEWHERE || message->msg_iovlen > IOV_MAX || !find_stream(fd, &stream))
		return libc.recvmsg(fd, message, flags);
	if (begin_plain(&stream))
		return PLAIN(&stream, fd, false, libc.recvmsg(fd, message, flags));
	got = serve(fd, &stream, message->msg_iov, (int)message->msg_iovlen, flags, false);
	if (got >= 0) {
		message->msg_namelen = 0;
		message->msg_controllen = 0;
		message->msg_flags = 0;
	}
	return got;
}

SHIM_EXPORT int recvmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags, struct timespec *timeout)
{
	struct stream stream;
	unsigned int done;

	if (flags & ELSEWHERE || !find_stream(fd, &stream))
		return libc.recvmmsg(fd, messages, count, flags, timeout);
	release_stream(&stream);
	for (done = 0; done < count; done++) {
		int later = done && flags & MSG_WAITFORONE ? MSG_DONTWAIT : 0;
		ssize_t got = recvmsg(fd, &messages[done].msg_hdr, (flags & ~MSG_WAITFORONE) | later);

		if (got < 0)
			break;
		messages[done].msg_len = (unsigned int)got;
		if (got == 0) {
			done++;
			break;
		}
	}
	return done || !count ? (int)done : -1;
}

SHIM_EXPORT ssize_t write(int fd, const void *buffer, size_t size)
{
	struct iovec iov = {(void *)buffer, size};
	struct stream stream;

	if (!find_stream(fd, &stream))
		return libc.write(fd, buffer, size);
	if (begin_plain(&stream))
		return PLAIN(&stream, fd, true, libc.write(fd, buffer, size));
	return serve(fd, &stream, &iov, 1, 0, true);
}

SHIM_EXPORT ssize_t writev(int fd, const struct iovec *iov, int count)
{
	struct stream stream;

	if (count <= 0 || count > IOV_MAX || !find_stream(fd, &stream))
		return libc.writev(fd, iov, count);
	if (begin_plain(&stream))
		return PLAIN(&stream, fd, true, libc.writev(fd, iov, count));
	return serve(fd, &stream, iov, count, 0, true);
}

SHIM_EXPORT ssize_t pwritev2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
	struct stream stream;

	if (offset != -1 || count <= 0 || count > IOV_MAX || !find_stream(fd, &stream))
		return libc.pwritev2(fd, iov, count, offset, flags);
	if (begin_plain(&stream))
		return PLAIN(&stream, fd, true, libc.pwritev2(fd, iov, count, offset, flags));
	return serve(fd, &stream, iov, count, flags & RWF_NOWAIT ? MSG_DONTWAIT : 0, true);
}

SHIM_EXPORT ssize_t pwritev64v2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
	return pwritev2(fd, iov, count, offset, flags);
}

SHIM_EXPORT ssize_t sendto(int fd, const void *buffer, size_t size, int flags, const struct sockaddr *address, socklen_t length)
{
	struct iovec iov = {(void *)buffer, size};
	struct stream stream;

	if (!find_stream(fd, &stream))
		return libc.sendto(fd, buffer, size, flags, address, length);
	if (flags & MSG_FASTOPEN) {
		release_stream(&stream);
		fd_pin(fd);
		return libc.sendto(fd, buffer, size, flags, address, length);
	}
	if (begin_plain(&stream))
		return PLAIN(&stream, fd, true, libc.sendto(fd, buffer, size, flags, address, length));
	return serve(fd, &stream, &iov, 1, flags, true);
}

SHIM_EXPORT ssize_t send(int fd, const void *buffer, size_t size, int flags)
{
	return sendto(fd, buffer, size, flags, NULL, 0);
}

SHIM_EXPORT ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
	struct stream stream;

	if (message->msg_iovlen > IOV_MAX || !find_stream(fd, &stream))
		return libc.sendmsg(fd, message, flags);
	if (flags & MSG_FASTOPEN) {
		release_stream(&stream);
		fd_pin(fd);
		return libc.sendmsg(fd, message, flags);
	}
	if (begin_plain(&stream))
		return PLAIN(&stream, fd, true, libc.sendmsg(fd, message, flags));
	return serve(fd, &stream, message->msg_iov, (int)message->msg_iovlen, flags, true);
}

SHIM_EXPORT int sendmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags)
{
	struct stream stream;
	unsigned int done;

	if (!find_stream(fd, &stream))
		return libc.sendmmsg(fd, messages, count, flags);
	release_stream(&stream);
	for (done = 0; done < count; done++) {
		ssize_t sent = sendmsg(fd, &messages[done].msg_hdr, flags);

		if (sent < 0)
			break;
		messages[done].msg_len = (unsigned int)sent;
	}
	return done || !count ? (int)done : -1;
}

/* sendfile to a stream with a channel: through a buffer, as the ring has no pages to give away. */
static ssize_t copy_file(int out, int in, off_t *offset, size_t size)
{
	char buffer[65536];
	size_t done = 0;

	while (done < size) {
		size_t want = size - done < sizeof(buffer) ? size - done : sizeof(buffer);
		off_t at = offset ? *offset : lseek(in, 0, SEEK_CUR);
		ssize_t got, sent;

		if (at < 0)
			return -1;
		got = pread(in, buffer, want, at);
		if (got <= 0)
			return done ? (ssize_t)done : got;
		sent = send(out, buffer, (size_t)got, 0);
		if (sent < 0)
			return done ? (ssize_t)done : -1;
		done += (size_t)sent;
		if (offset)
			*offset = at + sent;
		else
			lseek(in, at + sent, SEEK_SET);
		if (sent < got)
			break;
	}
	return (ssize_t)done;
}

SHIM_EXPORT ssize_t sendfile(int out, int in, off_t *offset, size_t size)
{
	struct stream stream;

	if (!find_stream(out, &stream))
		return libc.sendfile(out, in, offset, size);
	if (begin_plain(&stream))
		return PLAIN(&stream, out, true, libc.sendfile(out, in, offset, size));
	release_stream(&stream);
	return copy_file(out, in, offset, size);
}

SHIM_EXPORT ssize_t sendfile64(int out, int in, off_t *offset, size_t size)
{
	return sendfile(out, in, offset, size);
}

/* Into a pipe: what the pipe does not take stays in the stream, so peek, write, then take. */
static ssize_t splice_out(int in, int out, size_t size, unsigned int flags)
{
	int wait = flags & SPLICE_F_NONBLOCK ? MSG_DONTWAIT : 0;
	char buffer[4096]; /* PIPE_BUF: written whole or not at all */
	ssize_t got = recv(in, buffer, size < sizeof(buffer) ? size : sizeof(buffer), MSG_PEEK | wait), put;

	if (got <= 0)
		return got;
	put = libc.write(out, buffer, (size_t)got);
	return put <= 0 ? put : recv(in, buffer, (size_t)put, 0);
}

/* Out of a pipe: only as much as the stream surely takes, since a pipe takes nothing back. */
static ssize_t splice_in(int in, int out, size_t size, unsigned int flags)
{
	struct pollfd room = {.fd = out, .events = POLLOUT};
	char buffer[4096];
	ssize_t got;
	size_t done = 0;

	if (flags & SPLICE_F_NONBLOCK && poll(&room, 1, 0) == 0) {
		errno = EAGAIN;
		return -1;
	}
	got = libc.read(in, buffer, size < sizeof(buffer) ? size : sizeof(buffer));
	while (got > 0 && done < (size_t)got) {
		ssize_t put = send(out, buffer + done, (size_t)got - done, 0);

		if (put < 0 && errno != EAGAIN)
			return -1;
		if (put < 0)
			poll(&room, 1, -1);
		else
			done += (size_t)put;
	}
	return got;
}

SHIM_EXPORT ssize_t splice(int in, off_t *in_offset, int out, off_t *out_offset, size_t size, unsigned int flags)
{
	struct stream stream;
	bool incoming = find_stream(in, &stream);

	if (!incoming && !find_stream(out, &stream))
		return libc.splice(in, in_offset, out, out_offset, size, flags);
	if (begin_plain(&stream))
		return PLAIN(&stream, incoming ? in : out, !incoming, libc.splice(in, in_offset, out, out_offset, size, flags));
	release_stream(&stream);
	if ((incoming ? in_offset : out_offset) || !size) {
		errno = size ? ESPIPE : 0;
		return size ? -1 : 0;
	}
	return incoming ? splice_out(in, out, size, flags) : splice_in(in, out, size, flags);
}
