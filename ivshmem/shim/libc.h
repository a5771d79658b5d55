/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The functions of libc that the shim stands in front of. `libc.read(...)` is the next definition in the link order:
 * glibc's, or that of another preloaded library.
 */
#ifndef SHIM_LIBC_H
#define SHIM_LIBC_H

#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>

#define SHIM_EXPORT __attribute__((visibility("default")))
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* clang-format off */
#define LIBC_FUNCTIONS(F) \
	F(ssize_t, read, (int, void *, size_t)) \
	F(ssize_t, readv, (int, const struct iovec *, int)) \
	F(ssize_t, recv, (int, void *, size_t, int)) \
	F(ssize_t, recvfrom, (int, void *, size_t, int, struct sockaddr *, socklen_t *)) \
	F(ssize_t, recvmsg, (int, struct msghdr *, int)) \
	F(int, recvmmsg, (int, struct mmsghdr *, unsigned int, int, struct timespec *)) \
	F(ssize_t, write, (int, const void *, size_t)) \
	F(ssize_t, writev, (int, const struct iovec *, int)) \
	F(ssize_t, send, (int, const void *, size_t, int)) \
	F(ssize_t, sendto, (int, const void *, size_t, int, const struct sockaddr *, socklen_t)) \
	F(ssize_t, sendmsg, (int, const struct msghdr *, int)) \
	F(int, sendmmsg, (int, struct mmsghdr *, unsigned int, int)) \
	F(ssize_t, sendfile, (int, int, off_t *, size_t)) \
	F(ssize_t, splice, (int, off_t *, int, off_t *, size_t, unsigned int)) \
	F(int, poll, (struct pollfd *, nfds_t, int)) \
	F(int, ppoll, (struct pollfd *, nfds_t, const struct timespec *, const sigset_t *)) \
	F(int, select, (int, fd_set *, fd_set *, fd_set *, struct timeval *)) \
	F(int, pselect, (int, fd_set *, fd_set *, fd_set *, const struct timespec *, const sigset_t *)) \
	F(int, epoll_create, (int)) \
	F(int, epoll_create1, (int)) \
	F(int, epoll_ctl, (int, int, int, struct epoll_event *)) \
	F(int, epoll_wait, (int, struct epoll_event *, int, int)) \
	F(int, epoll_pwait, (int, struct epoll_event *, int, int, const sigset_t *)) \
	F(int, epoll_pwait2, (int, struct epoll_event *, int, const struct timespec *, const sigset_t *)) \
	F(int, socket, (int, int, int)) \
	F(int, listen, (int, int)) \
	F(int, connect, (int, const struct sockaddr *, socklen_t)) \
	F(int, accept, (int, struct sockaddr *, socklen_t *)) \
	F(int, accept4, (int, struct sockaddr *, socklen_t *, int)) \
	F(int, shutdown, (int, int)) \
	F(int, close, (int)) \
	F(int, close_range, (unsigned int, unsigned int, int)) \
	F(int, dup, (int)) \
	F(int, dup2, (int, int)) \
	F(int, dup3, (int, int, int)) \
	F(int, fcntl, (int, int, ...)) \
	F(int, fcntl64, (int, int, ...)) \
	F(int, ioctl, (int, unsigned long, ...)) \
	F(int, setsockopt, (int, int, int, const void *, socklen_t)) \
	F(FILE *, fdopen, (int, const char *)) \
	F(int, sigaction, (int, const struct sigaction *, struct sigaction *)) \
	F(ssize_t, preadv2, (int, const struct iovec *, int, off_t, int)) \
	F(ssize_t, pwritev2, (int, const struct iovec *, int, off_t, int)) \
	F(int, prctl, (int, ...)) \
	F(long, syscall, (long, ...)) \
	F(int, siginterrupt, (int, int))
/* clang-format on */

struct libc_table {
#define DECLARE(result, name, arguments) result(*name) arguments;
	LIBC_FUNCTIONS(DECLARE)
#undef DECLARE
	bool ready;
};

extern struct libc_table libc_;
void libc_resolve(void);

/* Usable before any constructor has run: other libraries' constructors may call us first. */
static inline struct libc_table *libc_table(void)
{
	if (unlikely(!libc_.ready))
		libc_resolve();
	return &libc_;
}
#define libc (*libc_table())

#endif
