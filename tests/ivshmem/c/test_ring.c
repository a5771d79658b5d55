/* SPDX-License-Identifier: Apache-2.0 */
/* The ring, its epochs, its locks, and what it does when the other side lies. */
#include "check.h"

#include <hyperheap/atomics.h>

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static uint8_t pattern(uint64_t position)
{
	return (uint8_t)((position * UINT64_C(0x9e3779b97f4a7c15)) >> 56);
}

#define STREAM (UINT64_C(32) << 20)

static void *produce(void *argument)
{
	struct fixture *f = argument;
	unsigned int seed = 1;
	uint8_t block[20000];

	for (uint64_t at = 0; at < STREAM;) {
		size_t n = (size_t)rand_r(&seed) % sizeof(block) + 1, half;
		struct iovec iov[2];
		ssize_t put;

		n = at + n > STREAM ? STREAM - at : n;
		half = n / 3;
		for (size_t i = 0; i < n; i++)
			block[i] = pattern(at + i);
		iov[0] = (struct iovec){block, half};
		iov[1] = (struct iovec){block + half, n - half};
		hh_tx_lock(&f->left->tx, &f->ring);
		put = hh_tx_write(&f->left->tx, &f->ring, iov, 2);
		hh_tx_unlock(&f->left->tx);
		CHECK(put > 0 || put == -EAGAIN);
		if (put > 0)
			at += (uint64_t)put;
		else
			sched_yield();
	}
	return NULL;
}

static void bytes_arrive_in_order(void)
{
	struct fixture f = make_channel(65536);
	unsigned int seed = 2;
	uint8_t block[30000];
	pthread_t producer;

	f.right->rx.path = HH_PATH_SHARED;
	CHECK(!pthread_create(&producer, NULL, produce, &f));
	for (uint64_t at = 0; at < STREAM;) {
		struct iovec iov = {block, (size_t)rand_r(&seed) % sizeof(block) + 1};
		ssize_t got;

		hh_rx_lock(&f.right->rx, &f.ring);
		got = hh_rx_peek(&f.right->rx, &f.ring, &iov, 1);
		CHECK(got >= 0);
		for (ssize_t i = 0; i < got; i++)
			CHECK(block[i] == pattern(at + (uint64_t)i));
		hh_rx_consume(&f.right->rx, &f.ring, (uint64_t)got);
		hh_rx_unlock(&f.right->rx);
		at += (uint64_t)got;
		if (!got)
			sched_yield();
	}
	pthread_join(producer, NULL);
	drop_channel(&f);
}

static void epochs_take_turns(void)
{
	struct fixture f = make_channel(4096);
	struct iovec iov = {"abcdef", 6};
	struct hh_tx *tx = &f.left->tx;
	struct hh_rx *rx = &f.right->rx;
	uint64_t position;

	CHECK(hh_rx_pending(rx, &f.ring, &position) == 0);
	CHECK(hh_tx_switch(tx, &f.ring, HH_PATH_SHARED, 77) == 0);
	CHECK(hh_tx_write(tx, &f.ring, &iov, 1) == 6);
	/* The consumer has not passed the first one: the second must wait. */
	CHECK(hh_tx_switch(tx, &f.ring, HH_PATH_NETWORK, 0) == -EAGAIN);
	CHECK(tx->path == HH_PATH_SHARED);
	CHECK(hh_rx_pending(rx, &f.ring, &position) == 1 && position == 77);
	hh_rx_pass(rx, &f.ring);
	CHECK(rx->path == HH_PATH_SHARED && hh_rx_available(rx, &f.ring) == 6);
	CHECK(hh_tx_switch(tx, &f.ring, HH_PATH_NETWORK, 0) == 0);
	CHECK(hh_rx_pending(rx, &f.ring, &position) == 1 && position == 6);
	hh_rx_consume(rx, &f.ring, 6);
	hh_rx_pass(rx, &f.ring);
	CHECK(rx->path == HH_PATH_NETWORK);
	CHECK(hh_tx_switch(tx, &f.ring, HH_PATH_SHARED, 1000) == 0);
	drop_channel(&f);
}

static void sleepers_are_told_once(void)
{
	struct fixture f = make_channel(4096);
	char block[4096] = {0};
	struct iovec iov = {block, sizeof(block)};
	struct hh_rx *rx = &f.right->rx;

	rx->path = HH_PATH_SHARED;
	CHECK(hh_tx_sleepers(&f.ring) == 0);
	hh_fetch_or(&f.ring.shared->data_waiters, UINT64_C(0x82));
	CHECK(hh_tx_sleepers(&f.ring) == 0x82);
	CHECK(hh_tx_sleepers(&f.ring) == 0);
	/* A sleeping writer is told only when half of the ring is free. */
	CHECK(hh_tx_write(&f.left->tx, &f.ring, &iov, 1) == 4096);
	CHECK(hh_tx_write(&f.left->tx, &f.ring, &iov, 1) == -EAGAIN);
	hh_fetch_or(&f.ring.shared->space_waiters, UINT64_C(1));
	CHECK(hh_rx_available(rx, &f.ring) == 4096);
	hh_rx_consume(rx, &f.ring, 2000);
	CHECK(hh_rx_sleepers(rx, &f.ring) == 0);
	hh_rx_consume(rx, &f.ring, 48);
	CHECK(hh_rx_sleepers(rx, &f.ring) == 1);
	drop_channel(&f);
}

static void lies_are_found(void)
{
	struct fixture f = make_channel(4096);
	struct hh_rx *rx = &f.right->rx;
	struct hh_tx *tx = &f.left->tx;
	char block[64] = {0};
	struct iovec iov = {block, sizeof(block)};
	uint64_t position;

	rx->path = HH_PATH_SHARED;
	CHECK(hh_tx_write(tx, &f.ring, &iov, 1) == 64);
	CHECK(hh_rx_available(rx, &f.ring) == 64);
	hh_store(&f.ring.shared->head, UINT64_C(63)); /* back */
	CHECK(hh_rx_available(rx, &f.ring) == -EPROTO);
	hh_store(&f.ring.shared->head, UINT64_C(4097)); /* more than the ring holds */
	CHECK(hh_rx_available(rx, &f.ring) == -EPROTO);
	hh_store(&f.ring.shared->head, UINT64_C(64));
	hh_store(&f.ring.shared->epochs, 2U); /* two switches at once */
	CHECK(hh_rx_pending(rx, &f.ring, &position) == -EPROTO);
	hh_store(&f.ring.shared->epochs, 1U);
	hh_store(&f.ring.shared->epoch_at[0], UINT64_C(1) << 40);
	CHECK(hh_rx_available(rx, &f.ring) == -EPROTO);
	hh_store(&f.ring.shared->tail, UINT64_C(65)); /* read what was never written */
	CHECK(hh_tx_space(tx, &f.ring) == -EPROTO);
	drop_channel(&f);
}

/* A hostile peer writes random words everywhere while both halves run: only errors may come of it. */
static void *scribble(void *argument)
{
	struct fixture *f = argument;
	unsigned int seed = 3;

	for (int i = 0; i < 3000000; i++) {
		uint64_t *words = f->memory;
		uint64_t value = ((uint64_t)rand_r(&seed) << 33) ^ (uint64_t)rand_r(&seed);

		hh_store(&words[(unsigned int)rand_r(&seed) % (f->length / 8)], i & 1 ? value : value & 8191);
	}
	return NULL;
}

static void nonsense_stays_inside(void)
{
	struct fixture f = make_channel(4096);
	uint8_t block[9000];
	pthread_t peer;
	long errors = 0;

	f.right->rx.path = HH_PATH_SHARED;
	CHECK(!pthread_create(&peer, NULL, scribble, &f));
	for (int i = 0; i < 300000; i++) {
		struct iovec iov = {block, sizeof(block)};
		uint64_t position;

		errors += hh_tx_write(&f.left->tx, &f.ring, &iov, 1) == -EPROTO;
		if (hh_rx_peek(&f.right->rx, &f.ring, &iov, 1) > 0)
			hh_rx_consume(&f.right->rx, &f.ring, 1);
		else
			errors++;
		if (hh_rx_pending(&f.right->rx, &f.ring, &position) > 0)
			hh_rx_pass(&f.right->rx, &f.ring);
		hh_tx_sleepers(&f.ring);
		hh_rx_sleepers(&f.right->rx, &f.ring);
		hh_tx_switch(&f.left->tx, &f.ring, i & 1 ? HH_PATH_SHARED : HH_PATH_NETWORK, 5);
	}
	pthread_join(peer, NULL);
	CHECK(errors > 0);
	drop_channel(&f);
}

/* The owner of a half is killed between its private and the public step: the next owner finishes it. */
static void killed_owners_are_finished(void)
{
	struct fixture f = make_channel(4096);
	struct hh_tx *tx = &f.left->tx;
	struct hh_rx *rx = &f.right->rx;
	pid_t child = fork();
	int status;

	CHECK(child >= 0);
	if (!child) {
		hh_tx_lock(tx, &f.ring);
		hh_rx_lock(rx, &f.ring);
		memcpy(f.ring.data, "hello", 5);
		hh_store(&tx->head, UINT64_C(5));
		tx->epoch_at = 9;
		hh_store(&tx->epochs, 1U);
		kill(getpid(), SIGKILL);
	}
	CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status));
	CHECK(hh_tx_lock(tx, &f.ring) == 1);
	CHECK(tx->path == HH_PATH_SHARED && hh_load(&f.ring.shared->epochs) == 1 && f.ring.shared->epoch_at[0] == 9);
	CHECK(hh_load(&f.ring.shared->head) == 5);
	hh_tx_unlock(tx);
	CHECK(hh_tx_lock(tx, &f.ring) == 0);
	hh_tx_unlock(tx);
	CHECK(hh_rx_lock(rx, &f.ring) == 1);
	hh_rx_unlock(rx);
	drop_channel(&f);
}

int main(int argc, char **argv)
{
	bytes_arrive_in_order();
	epochs_take_turns();
	sleepers_are_told_once();
	lies_are_found();
	if (argc < 2 || strcmp(argv[1], "--no-races") != 0)
		nonsense_stays_inside(); /* races on purpose: not for TSan */
	killed_owners_are_finished();
	puts("passed");
	return 0;
}
