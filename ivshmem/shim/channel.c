/* SPDX-License-Identifier: Apache-2.0 */
#include "channel.h"

#include "agent.h"
#include "doorbell.h"
#include "epoll.h"
#include "libc.h"

#include <hyperheap/core.h>
#include <hyperheap/ends_find.h>

#include <linux/sockios.h>
#include <errno.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define BUCKETS 1024
#define POOL 64
#define PASSES_MAX 8 /* epochs in one call: an honest peer publishes one at a time */

static struct channel *table[BUCKETS]; /* under the process lock */
static uint32_t channel_count;
static struct channel *pool;           /* memory of channels is never given back: a stale pointer stays a channel */

bool channel_any(void)
{
	return hh_load(&channel_count) != 0;
}

/* ---- the table ---------------------------------------------------------------------------------------------- */

uint64_t channel_cookie(int fd, struct fd *entry)
{
	uint64_t cookie = hh_load(&entry->cookie);
	socklen_t length = sizeof(cookie);

	if (cookie)
		return cookie;
	if (getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &length))
		return 0;
	hh_store(&entry->cookie, cookie);
	return cookie;
}

static bool hold(struct channel *channel)
{
	uint32_t refs = hh_load(&channel->refs);

	while (refs) {
		if (__atomic_compare_exchange_n(&channel->refs, &refs, refs + 1, true, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
			return true;
	}
	return false;
}

struct channel *channel_get(struct fd *entry)
{
	for (;;) {
		struct channel *channel = hh_load_acquire(&entry->channel);

		if (!channel)
			return NULL;
		if (hold(channel)) {
			if (likely(hh_load_acquire(&entry->channel) == channel))
				return channel;
			channel_put(channel);
		}
	}
}

/* Under the process lock. */
static void put_locked(struct channel *channel)
{
	if (hh_fetch_sub(&channel->refs, 1) != 1)
		return;
	munmap(channel->map, channel->map_length);
	hh_fetch_sub(&channel_count, 1);
	channel->next = pool;
	pool = channel;
}

void channel_put(struct channel *channel)
{
	uint32_t refs = hh_load(&channel->refs);
	sigset_t saved;

	while (refs > 1) {
		if (__atomic_compare_exchange_n(&channel->refs, &refs, refs - 1, true, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
			return;
	}
	process_lock(&saved);
	put_locked(channel);
	process_unlock(&saved);
}

void channel_claim(struct channel *channel)
{
	hh_fetch_add(&channel->refs, 1);
	hh_fetch_add(&channel->claims, 1);
}

/* Out of the table; under the process lock. True if it was there. */
static bool unlink_channel(struct channel *channel)
{
	struct channel **link = &table[hh_cookie_hash(channel->cookie) % BUCKETS];

	for (; *link; link = &(*link)->next) {
		if (*link == channel) {
			*link = channel->next;
			return true;
		}
	}
	return false;
}

void channel_release(struct channel *channel)
{
	if (hh_fetch_sub(&channel->claims, 1) == 1) {
		sigset_t saved;

		/* Perhaps nobody reads any more: TCP knows, and answers the next send with a reset, so the peer should ask it. If
		 * another process goes on reading, it says so again. */
		hh_store_release(&channel->rx.shared->want, HH_PATH_NETWORK); /* R5 <-> A5 */
		process_lock(&saved);
		if (hh_load(&channel->claims) == 0 && unlink_channel(channel))
			put_locked(channel);
		process_unlock(&saved);
	}
	channel_put(channel);
}

/* Under the process lock; the table's own reference keeps it alive. */
static struct channel *find_channel(uint64_t cookie)
{
	struct channel *channel = table[hh_cookie_hash(cookie) % BUCKETS];

	while (channel && channel->cookie != cookie)
		channel = channel->next;
	return channel;
}

/* Grants whose descriptor was closed before anybody picked them up. Under the process lock. */
static void sweep_bucket(uint64_t cookie)
{
	struct channel **link = &table[hh_cookie_hash(cookie) % BUCKETS];

	while (*link) {
		struct channel *channel = *link;

		if (channel->claims || hh_load(&channel->end->cookie) == channel->cookie) {
			link = &channel->next;
		} else {
			*link = channel->next;
			put_locked(channel);
		}
	}
}

static struct channel *new_channel(void)
{
	struct channel *channel = pool;

	if (!channel) {
		channel = mmap(NULL, POOL * sizeof(*channel), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (channel == MAP_FAILED)
			return NULL;
		for (int i = 0; i < POOL; i++) {
			channel[i].next = pool;
			pool = &channel[i];
		}
		channel = pool;
	}
	pool = channel->next;
	memset((char *)channel + sizeof(channel->refs), 0, sizeof(*channel) - sizeof(channel->refs));
	return channel;
}

void channel_grant(const struct hh_message *message, int memory)
{
	struct hh_region *region = agent_region();
	struct hh_channel *control;
	struct channel *channel = NULL;
	struct hh_end *end;
	void *map = MAP_FAILED;
	uint64_t length = message->length;

	if (!region || message->end >= region->end_count || message->side > 1 || message->slot >= HH_SLOTS)
		goto out;
	end = hh_region_ends(region) + message->end;
	sweep_bucket(message->cookie);
	if (hh_load_acquire(&end->cookie) != message->cookie || find_channel(message->cookie) || /* A6 <-> R6 */
	    length != HH_CONTROL_SIZE + 2 * (uint64_t)end->ring_size)
		goto out;
	map = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, memory, (off_t)message->offset);
	if (map == MAP_FAILED || !(channel = new_channel()))
		goto out;
	control = map;
	channel->cookie = message->cookie;
	channel->end = end;
	channel->map = map;
	channel->map_length = length;
	channel->tx = (struct hh_ring){&control->direction[message->side],
				       (uint8_t *)map + HH_CONTROL_SIZE + message->side * (uint64_t)end->ring_size,
				       end->ring_size};
	channel->rx = (struct hh_ring){&control->direction[!message->side],
				       (uint8_t *)map + HH_CONTROL_SIZE + !message->side * (uint64_t)end->ring_size,
				       end->ring_size};
	channel->heap = message->heap;
	channel->slot = message->slot;
	channel->peer_id = message->peer_id;
	channel->generation = message->generation;
	hh_fetch_add(&end->attached, 1);
	hh_fetch_add(&channel_count, 1);
	channel->next = table[hh_cookie_hash(channel->cookie) % BUCKETS];
	table[hh_cookie_hash(channel->cookie) % BUCKETS] = channel;
	hh_store_release(&channel->refs, 1); /* the table's */
	if (message->heap && doorbell_add_heap(message->heap, memory))
		return; /* keeps the descriptor */
out:
	if (!channel && map != MAP_FAILED)
		munmap(map, length);
	libc.close(memory);
}

struct channel *channel_of(int fd, struct fd *entry)
{
	struct channel *channel = channel_get(entry);
	struct hh_region *region;
	uint32_t offers;
	uint64_t cookie;
	sigset_t saved;

	if (likely(channel))
		return channel;
	region = agent_region();
	if (!region || unlikely(hh_load(&agent_sandboxed_)))
		return NULL;
	offers = hh_load_acquire(&region->offers); /* A7 <-> R7 */
	if (likely(hh_load(&entry->offers) == offers + 1))
		return NULL;
	hh_store(&entry->offers, offers + 1); /* never 0, the value of "not checked" */
	agent_poll();
	cookie = channel_cookie(fd, entry);
	if (!cookie || hh_end_lookup(region, cookie) < 0) {
		if (cookie && agent_refused(cookie))
			hh_store_release(&entry->kind, FD_OTHER); /* for ever */
		return NULL;
	}
	process_lock(&saved);
	channel = find_channel(cookie);
	process_unlock(&saved);
	if (!channel && !agent_refused(cookie) && !agent_attach(cookie))
		hh_store(&entry->offers, 0); /* no answer: ask again */
	process_lock(&saved);
	channel = find_channel(cookie);
	if (channel) {
		struct channel *expected = NULL;

		channel_claim(channel);
		if (!__atomic_compare_exchange_n(&entry->channel, &expected, channel, false, __ATOMIC_ACQ_REL,
						 __ATOMIC_ACQUIRE)) {
			hh_fetch_sub(&channel->claims, 1);
			hh_fetch_sub(&channel->refs, 1);
		}
	}
	process_unlock(&saved);
	return channel_get(entry);
}

/* ---- TCP's own counters: positions in the stream that no interposition can miss -------------------------------- */

static bool get_tcp_info(int fd, struct tcp_info *info)
{
	socklen_t length = sizeof(*info);

	memset(info, 0, sizeof(*info));
	return !getsockopt(fd, IPPROTO_TCP, TCP_INFO, info, &length) && length >= offsetof(struct tcp_info, tcpi_bytes_retrans) + 8;
}

/* Bytes that programs have given to this socket so far, sent or queued. Two independent accounts must agree (the
 * acknowledged SYN may count as one byte); if they do not, because something moves between the calls, false. */
static bool tcp_sent(int fd, uint64_t *position)
{
	struct tcp_info before, after;
	uint64_t by_ack, by_sent;
	int queued = 0;

	if (!get_tcp_info(fd, &before) || libc.ioctl(fd, SIOCOUTQ, &queued) || !get_tcp_info(fd, &after))
		return false;
	if (before.tcpi_bytes_acked != after.tcpi_bytes_acked || before.tcpi_bytes_sent != after.tcpi_bytes_sent ||
	    before.tcpi_notsent_bytes != after.tcpi_notsent_bytes)
		return false;
	by_ack = after.tcpi_bytes_acked + (uint64_t)queued;
	by_sent = after.tcpi_bytes_sent - after.tcpi_bytes_retrans + after.tcpi_notsent_bytes;
	if (by_ack != by_sent && by_ack != by_sent + 1)
		return false;
	*position = by_sent;
	return true;
}

/* Whether all bytes before `position` have been received and read. */
static bool tcp_drained(int fd, uint64_t position)
{
	struct tcp_info info;
	int unread = 0, at_mark = 0;
	char probe;

	if (!get_tcp_info(fd, &info) || info.tcpi_bytes_received < position)
		return false;
	/* A FIN counts as one byte received, an unread byte keeps unread above zero: both only make this later. */
	if (libc.ioctl(fd, SIOCINQ, &unread) || unread)
		return false;
	/* SIOCINQ counts up to the urgent mark only. */
	if (libc.ioctl(fd, SIOCATMARK, &at_mark) || !at_mark)
		return true;
	return libc.recv(fd, &probe, 1, MSG_PEEK | MSG_DONTWAIT) <= 0;
}

/* ---- signal handlers -------------------------------------------------------------------------------------------- */

/* The channel in which this thread is. A signal handler that meets the same one cannot wait for the lock of its own thread. */
static __thread struct channel *inside __attribute__((tls_model("initial-exec")));

static bool enter(struct channel *channel, struct channel **outer)
{
	*outer = inside;
	if (inside == channel)
		return false;
	inside = channel;
	return true;
}

static void leave(struct channel *outer)
{
	inside = outer;
}

static size_t iov_bytes(const struct iovec *iov, int count)
{
	size_t bytes = 0;

	for (int i = 0; i < count; i++)
		bytes += iov[i].iov_len;
	return bytes;
}

/* ---- receiving ----------------------------------------------------------------------------------------------- */

static ssize_t broken(struct channel *channel)
{
	hh_store(&channel->end->error, EPROTO);
	return -ECONNRESET;
}

static void wake_senders(struct channel *channel)
{
	uint64_t sleepers = hh_rx_sleepers(&channel->end->rx, &channel->rx);

	if (unlikely(sleepers))
		doorbell_ring(channel, &channel->rx.shared->space_waiters, sleepers);
}

static void pass_epoch(struct channel *channel)
{
	hh_rx_pass(&channel->end->rx, &channel->rx);
	wake_senders(channel);
}

static ssize_t receive_tcp(int fd, const struct iovec *iov, int count, int flags)
{
	struct msghdr message = {.msg_iov = (struct iovec *)iov, .msg_iovlen = (size_t)count};
	ssize_t got = libc.recvmsg(fd, &message, (flags & ~MSG_WAITALL) | MSG_DONTWAIT);

	return got < 0 ? -errno : got;
}

static ssize_t discard_ring(struct channel *channel, const struct iovec *iov, int count)
{
	ssize_t available = hh_rx_available(&channel->end->rx, &channel->rx);
	size_t wanted = iov_bytes(iov, count);

	return available > 0 && (size_t)available > wanted ? (ssize_t)wanted : available;
}

/* From the network path; *again if the path has changed and the caller should look anew. */
static ssize_t receive_network(struct channel *channel, int fd, const struct iovec *iov, int count, int flags, bool *again)
{
	struct hh_rx *rx = &channel->end->rx;
	uint64_t position;
	ssize_t got;
	int pending = hh_rx_pending(rx, &channel->rx, &position);

	if (pending < 0)
		return broken(channel);
	if (pending && tcp_drained(fd, position)) {
		pass_epoch(channel);
		*again = true;
		return 0;
	}
	got = receive_tcp(fd, iov, count, flags);
	if (got > 0 || got == -EAGAIN || got == -EINTR)
		return got;
	/* End-of-file or an error: what the peer had put on the ring before it comes first. */
	if (hh_rx_pending(rx, &channel->rx, &position) > 0) {
		pass_epoch(channel);
		*again = true;
		return 0;
	}
	return got;
}

/* From the ring; *again as above. */
static ssize_t receive_shared(struct channel *channel, int fd, const struct iovec *iov, int count, int flags, bool *again)
{
	struct hh_rx *rx = &channel->end->rx;
	uint64_t position;
	ssize_t got;
	char probe;

	got = flags & MSG_TRUNC ? discard_ring(channel, iov, count) : hh_rx_peek(rx, &channel->rx, iov, count);
	if (unlikely(got < 0))
		return broken(channel);
	if (got > 0) {
		if (!(flags & MSG_PEEK)) {
			hh_rx_consume(rx, &channel->rx, (uint64_t)got);
			wake_senders(channel);
		}
		return got;
	}
	if (hh_rx_pending(rx, &channel->rx, &position) > 0) {
		*again = true;
		/* The pending epoch may have come after the ring was found empty: then there is more first. */
		if (hh_rx_available(rx, &channel->rx) == 0)
			pass_epoch(channel);
		return 0;
	}
	got = channel->tcp_error ? -channel->tcp_error : libc.recv(fd, &probe, 1, MSG_PEEK | MSG_DONTWAIT);
	if (got < 0 && !channel->tcp_error)
		got = -errno;
	if (got == -EAGAIN || got == -EINTR)
		return got;
	/* TCP has something to say: end-of-file, an error, or bytes. The peer wrote to the ring, and published epochs, before
	 * that. So look again, and believe TCP only if there is still nothing. */
	if (hh_rx_available(rx, &channel->rx) != 0 || hh_rx_pending(rx, &channel->rx, &position) != 0) {
		channel->tcp_error = got < 0 ? (int)-got : 0; /* the kernel says an error once */
		*again = true;
		return 0;
	}
	channel->tcp_error = 0;
	/* Bytes without an epoch: a plain send that overtook the switch; its sender repairs that before it goes on. */
	return got > 0 ? receive_tcp(fd, iov, count, flags) : got;
}

/* One piece from whatever path is next; 0 at end-of-file. */
static ssize_t receive_piece(struct channel *channel, int fd, const struct iovec *iov, int count, int flags)
{
	struct hh_rx *rx = &channel->end->rx;
	int passes = 0;
	bool again;
	ssize_t got;

	do {
		again = false;
		if (channel->end->error || ++passes > PASSES_MAX)
			got = broken(channel);
		else if (rx->path == HH_PATH_SHARED)
			got = receive_shared(channel, fd, iov, count, flags, &again);
		else
			got = receive_network(channel, fd, iov, count, flags, &again);
	} while (again);
	return got;
}

/* What lies behind a switch, after `got` bytes before it were peeked at but not taken. */
static ssize_t peek_behind(struct channel *channel, int fd, ssize_t got, const struct iovec *rest)
{
	struct hh_rx *rx = &channel->end->rx;
	uint64_t position;
	int unread = 0;
	struct tcp_info info;

	if (rx->path == HH_PATH_SHARED)
		return hh_rx_available(rx, &channel->rx) == got ? receive_tcp(fd, rest, 1, MSG_PEEK) : 0;
	if (hh_rx_pending(rx, &channel->rx, &position) <= 0 || !get_tcp_info(fd, &info) ||
	    info.tcpi_bytes_received < position || libc.ioctl(fd, SIOCINQ, &unread) || unread != got)
		return 0;
	return hh_rx_peek(rx, &channel->rx, rest, 1);
}

/* A switch does not end a receive early: readers take a short one for "there is no more now". */
static ssize_t receive_on(struct channel *channel, int fd, const struct iovec *iov, int count, int flags, ssize_t got)
{
	struct hh_rx *rx = &channel->end->rx;
	size_t skip = (size_t)got;
	uint64_t position;

	for (int i = 0; i < count; i++) {
		struct iovec rest = {(char *)iov[i].iov_base + skip, iov[i].iov_len - skip};
		ssize_t more;

		if (skip >= iov[i].iov_len) {
			skip -= iov[i].iov_len;
			continue;
		}
		if (hh_rx_pending(rx, &channel->rx, &position) <= 0)
			break;
		more = flags & MSG_PEEK ? peek_behind(channel, fd, got, &rest) : receive_piece(channel, fd, &rest, 1, flags);
		if (more <= 0)
			break;
		got += more;
		if (flags & MSG_PEEK || (size_t)more < rest.iov_len)
			break;
		skip = 0;
	}
	return got;
}

ssize_t channel_receive(struct channel *channel, int fd, const struct iovec *iov, int count, int flags)
{
	struct hh_rx *rx = &channel->end->rx;
	uint32_t gone = hh_load_acquire(&channel->end->gone); /* before the look at what it left */
	struct channel *outer;
	ssize_t got;

	if (!enter(channel, &outer))
		return -EINTR;
	hh_rx_lock(rx, &channel->rx);
	if (unlikely(hh_load(&channel->rx.shared->want) != HH_PATH_SHARED))
		hh_store_release(&channel->rx.shared->want, HH_PATH_SHARED); /* R5 <-> A5 */
	if (unlikely(hh_load(&channel->end->cookie) != channel->cookie))
		got = -ECONNRESET; /* the agent has given the end away */
	else
		got = receive_piece(channel, fd, iov, count, flags);
	if (got > 0 && unlikely(hh_load(&channel->rx.shared->epochs) != rx->epochs) && !(flags & MSG_TRUNC))
		got = receive_on(channel, fd, iov, count, flags, got);
	hh_rx_unlock(rx);
	leave(outer);
	/* Of a guest that is gone neither FIN nor RST will ever come. */
	return got == -EAGAIN && gone == HH_GONE_VANISHED ? -ECONNRESET : got;
}

int channel_readable_bytes(struct channel *channel)
{
	struct hh_rx *rx = &channel->end->rx;
	ssize_t available = 0;

	hh_rx_lock(rx, &channel->rx);
	if (rx->path == HH_PATH_SHARED)
		available = hh_rx_available(rx, &channel->rx);
	hh_rx_unlock(rx);
	return available > 0 ? (int)available : 0;
}

/* ---- sending ------------------------------------------------------------------------------------------------- */

static ssize_t send_tcp(int fd, const struct iovec *iov, int count, int flags)
{
	struct msghdr message = {.msg_iov = (struct iovec *)iov, .msg_iovlen = (size_t)count};
	ssize_t sent = libc.sendmsg(fd, &message, flags | MSG_DONTWAIT);

	return sent < 0 ? -errno : sent;
}

static bool wants_shared(const struct channel *channel)
{
	return hh_load_acquire(&channel->tx.shared->want) == HH_PATH_SHARED && /* A5 <-> R5 */
	       hh_load(&channel->end->want) == HH_PATH_SHARED && !hh_load(&channel->end->gone) && !channel->end->tx.shut &&
	       !channel->end->error;
}

/* A plain send may have put bytes on TCP behind the last switch: go back to the network, where they are in order. */
static int repair(struct channel *channel, int fd)
{
	struct hh_tx *tx = &channel->end->tx;
	uint64_t position;

	if (!tcp_sent(fd, &position))
		return -EAGAIN;
	if (position != tx->tcp_at && hh_tx_switch(tx, &channel->tx, HH_PATH_NETWORK, 0))
		return -EAGAIN;
	tx->repair = 0;
	return 0;
}

/* After SHUT_WR: an empty send says, and signals, what TCP has to say about this socket. */
static ssize_t send_error(int fd, int flags)
{
	ssize_t sent = libc.send(fd, "", 0, flags | MSG_DONTWAIT);

	return sent < 0 ? -errno : -EPIPE;
}

/* Which path the next byte takes; -EAGAIN if that cannot be said yet. Under the lock. */
static int choose_path(struct channel *channel, int fd, int flags)
{
	struct hh_tx *tx = &channel->end->tx;
	uint64_t position;

	if (unlikely(tx->repair) && tx->path == HH_PATH_SHARED && repair(channel, fd))
		return -EAGAIN;
	if (tx->path == HH_PATH_NETWORK) {
		if (wants_shared(channel) && !(flags & MSG_OOB) && tcp_sent(fd, &position))
			hh_tx_switch(tx, &channel->tx, HH_PATH_SHARED, position);
		return 0;
	}
	if (likely(hh_load(&channel->end->want) == HH_PATH_SHARED && !(flags & MSG_OOB) &&
		   hh_load_acquire(&channel->tx.shared->want) == HH_PATH_SHARED))
		return 0;
	return hh_tx_switch(tx, &channel->tx, HH_PATH_NETWORK, 0) && flags & MSG_OOB ? -EAGAIN : 0;
}

/* Whether TCP has a FIN from the peer. It may still read, or be gone with nobody left to say so: TCP will tell. */
static bool peer_finished(int fd)
{
	struct pollfd wait = {.fd = fd, .events = POLLRDHUP};

	return libc.poll(&wait, 1, 0) > 0;
}

static ssize_t send_shared(struct channel *channel, int fd, const struct iovec *iov, int count, int flags)
{
	struct hh_tx *tx = &channel->end->tx;
	ssize_t sent = hh_tx_write(tx, &channel->tx, iov, count);
	uint64_t sleepers;

	if (unlikely(sent == -EPROTO))
		return broken(channel);
	sleepers = hh_tx_sleepers(&channel->tx);
	if (unlikely(sleepers))
		doorbell_ring(channel, &channel->tx.shared->data_waiters, sleepers);
	if (likely(sent == (ssize_t)iov_bytes(iov, count)))
		return sent;
	/* The program sees a short send, or none: epoll owes it an edge. One that came before it was owed comes again. */
	if (!hh_exchange(&channel->full, true) && epoll_in_use() &&
	    hh_tx_space(tx, &channel->tx) >= (ssize_t)hh_ring_low_space(&channel->tx))
		agent_kick();
	if (sent == -EAGAIN && peer_finished(fd) && !hh_tx_switch(tx, &channel->tx, HH_PATH_NETWORK, 0))
		return send_tcp(fd, iov, count, flags);
	return sent;
}

ssize_t channel_send(struct channel *channel, int fd, const struct iovec *iov, int count, int flags)
{
	struct hh_tx *tx = &channel->end->tx;
	struct channel *outer;
	bool refused = false;
	uint32_t gone;
	ssize_t sent;

	if (!enter(channel, &outer))
		return -EINTR;
	hh_tx_lock(tx, &channel->tx);
	gone = hh_load(&channel->end->gone);
	if (unlikely(hh_load(&channel->end->cookie) != channel->cookie || gone == HH_GONE_VANISHED || channel->end->error))
		sent = -ECONNRESET;
	else if (unlikely(choose_path(channel, fd, flags)))
		sent = -EAGAIN;
	else if (tx->path == HH_PATH_NETWORK || (unlikely(gone) && !tx->shut))
		sent = send_tcp(fd, iov, count, flags); /* gone: nobody reads the ring; TCP says what a send means */
	else if (unlikely(tx->shut))
		refused = true;
	else
		sent = send_shared(channel, fd, iov, count, flags);
	hh_tx_unlock(tx);
	leave(outer);
	return refused ? send_error(fd, flags) : sent;
}

void channel_plain_sent(struct channel *channel, int fd)
{
	struct hh_tx *tx = &channel->end->tx;

	hh_tx_lock(tx, &channel->tx);
	if (tx->path == HH_PATH_SHARED) {
		tx->repair = 1;
		repair(channel, fd);
	}
	hh_tx_unlock(tx);
}

void channel_shutdown(struct channel *channel)
{
	hh_tx_lock(&channel->end->tx, &channel->tx);
	channel->end->tx.shut = 1;
	hh_tx_unlock(&channel->end->tx);
}

/* ---- readiness ----------------------------------------------------------------------------------------------- */

/* Whether the ring has bytes that the next receive would return. May pass an epoch that is due. */
static bool ring_readable(struct channel *channel, int fd)
{
	struct hh_rx *rx = &channel->end->rx;
	uint64_t position;
	bool readable;

	if (likely(rx->path == HH_PATH_SHARED && hh_load(&channel->rx.shared->head) != hh_load(&rx->tail)))
		return true;
	if (hh_load(&channel->rx.shared->epochs) == hh_load(&rx->epochs) &&
	    hh_load(&channel->rx.shared->want) == HH_PATH_SHARED)
		return channel->end->error || hh_load(&channel->end->gone) == HH_GONE_VANISHED;
	hh_rx_lock(rx, &channel->rx);
	if (hh_load(&channel->rx.shared->want) != HH_PATH_SHARED)
		hh_store_release(&channel->rx.shared->want, HH_PATH_SHARED); /* R5 <-> A5 */
	for (int passes = 0; passes < PASSES_MAX && hh_rx_pending(rx, &channel->rx, &position) > 0; passes++) {
		if (rx->path == HH_PATH_NETWORK ? !tcp_drained(fd, position) : hh_rx_available(rx, &channel->rx) != 0)
			break;
		pass_epoch(channel);
	}
	readable = rx->path == HH_PATH_SHARED && hh_rx_available(rx, &channel->rx) != 0;
	hh_rx_unlock(rx);
	return readable;
}

static bool ring_writable(struct channel *channel)
{
	struct hh_tx *tx = &channel->end->tx;
	uint64_t used = hh_load(&tx->head) - hh_load(&channel->tx.shared->tail);

	if (used > channel->tx.size || hh_load(&channel->end->gone) || channel->end->error)
		return true; /* the send says what is wrong */
	return channel->tx.size - used >= hh_ring_low_space(&channel->tx);
}

short channel_ready(struct channel *channel, int fd, short events)
{
	short ready = 0;

	if (events & (POLLIN | POLLRDNORM) && ring_readable(channel, fd))
		ready |= events & (POLLIN | POLLRDNORM);
	if (events & (POLLOUT | POLLWRNORM) && ring_writable(channel) &&
	    (hh_load(&channel->end->tx.path) == HH_PATH_SHARED || hh_load(&channel->end->gone) == HH_GONE_VANISHED))
		ready |= events & (POLLOUT | POLLWRNORM);
	return ready;
}

void channel_arm(struct channel *channel, short events)
{
	uint64_t slot = UINT64_C(1) << channel->slot;

	if (events & (POLLIN | POLLRDNORM))
		hh_fetch_or(&channel->rx.shared->data_waiters, slot); /* B1 */
	if (events & (POLLOUT | POLLWRNORM))
		hh_fetch_or(&channel->tx.shared->space_waiters, slot); /* B2 */
	hh_full_barrier();
}

short channel_kernel_events(const struct channel *channel, short events)
{
	if (hh_load(&channel->end->tx.path) == HH_PATH_SHARED)
		events &= ~(POLLOUT | POLLWRNORM); /* TCP would always say yes */
	return events;
}
