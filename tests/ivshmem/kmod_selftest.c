/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Exercises the guest driver from user space, in the guest, as root. One line per check ("ok ..." or
 * "not ok ..."), exit 0 if all held. tests/e2e/kmod_smoke.py boots two guests and runs it there.
 *
 *   kmod_selftest solo DEVICE		one guest: rights, leases, fork, mappings
 *   kmod_selftest pair DEVICE 0|1	two guests at once, one says 0: data, doorbells, round trips
 *   kmod_selftest show FILE		maps the device (or a sysfs resource), says where, and keeps busy
 *					until a line comes, for a look at the page tables from outside
 *   kmod_selftest gone DEVICE		maps, binds, says "waiting", and expects the device to be unplugged
 *   kmod_selftest storm DEVICE		15 s of everything at once, while the driver is unbound and bound
 *   kmod_selftest hold DEVICE		leaves a process behind that has it open, and prints its pid
 *
 * Build: cc -static -O2 -Wall -Wextra -I ivshmem/include -o kmod_selftest tests/ivshmem/kmod_selftest.c
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <hyperheap/hyperheap_ioctl.h>

#define PAGE 4096UL
#define NOBODY 65534
#define PATIENCE_MS 20000

static int failures;

__attribute__((format(printf, 2, 3))) static bool check(bool held, const char *format, ...)
{
	int error = errno;
	va_list args;

	printf("%s ", held ? "ok" : "not ok");
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf(held ? "\n" : " (errno %d, %s)\n", error, strerror(error));
	fflush(stdout);
	failures += !held;
	return held;
}

static void die(const char *what)
{
	check(false, "%s", what);
	exit(1);
}

/* Both macros reset errno, so that a failing check shows the right one. */
#define succeeds(call, ...) check((errno = 0, (call) >= 0), __VA_ARGS__)
#define fails_with(expected, call, ...) check((errno = 0, (call) < 0) && errno == (expected), __VA_ARGS__)

static int open_device(const char *path)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		die(path);
	return fd;
}

static struct hh_info get_info(int fd)
{
	struct hh_info info;

	if (ioctl(fd, HH_IOC_INFO, &info))
		die("HH_IOC_INFO");
	return info;
}

static int grant_range(int fd, uint64_t offset, uint64_t length)
{
	return ioctl(fd, HH_IOC_GRANT, &(struct hh_range){ offset, length });
}

static int revoke_range(int fd, uint64_t offset, uint64_t length)
{
	return ioctl(fd, HH_IOC_REVOKE, &(struct hh_range){ offset, length });
}

/* The vector, or -1. */
static int bind_vector(int fd, int eventfd, uint32_t vector)
{
	struct hh_bind bind = { eventfd, vector };

	return ioctl(fd, HH_IOC_BIND, &bind) ? -1 : (int)bind.vector;
}

static int ring(int fd, uint32_t peer, uint32_t vector)
{
	return ioctl(fd, HH_IOC_RING, &(struct hh_ring_request){ peer, vector });
}

static void *map(int fd, uint64_t offset, size_t length)
{
	return mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)offset);
}

static int try_map(int fd, uint64_t offset, size_t length, int protection, int flags)
{
	void *at = mmap(NULL, length, protection, flags, fd, (off_t)offset);

	if (at == MAP_FAILED)
		return -1;
	munmap(at, length);
	return 0;
}

#define try_map_shared(fd, offset, length) try_map(fd, offset, length, PROT_READ | PROT_WRITE, MAP_SHARED)

static bool wait_eventfd(int fd, int milliseconds)
{
	struct pollfd poll_fd = { .fd = fd, .events = POLLIN };
	uint64_t count;

	return poll(&poll_fd, 1, milliseconds) == 1 && read(fd, &count, sizeof(count)) == sizeof(count);
}

/* Runs a function in a child; true if it exited with 0. The child's checks count through its exit status. */
static bool in_child(int (*run)(void *), void *argument)
{
	int status;
	pid_t child;

	fflush(stdout);
	child = fork();
	if (child < 0)
		die("fork");
	if (!child) {
		failures = 0;
		exit(run(argument) || failures);
	}
	if (waitpid(child, &status, 0) != child)
		die("waitpid");
	return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static void drop_rights(void)
{
	if (setgid(NOBODY) || setuid(NOBODY))
		die("setuid");
}

/* solo */

static int run_unprivileged(void *argument)
{
	int fd = *(int *)argument, bell = eventfd(0, 0);
	struct hh_info info = get_info(fd);
	volatile uint32_t *word;

	drop_rights();
	fails_with(EPERM, grant_range(fd, 0, PAGE), "nobody cannot grant");
	fails_with(EPERM, revoke_range(fd, 0, PAGE), "nobody cannot revoke");
	fails_with(EPERM, bind_vector(fd, bell, HH_VECTOR_ANY), "nobody cannot bind");
	fails_with(EACCES, try_map_shared(fd, 0, PAGE), "nobody cannot map what was not granted");
	fails_with(EACCES, try_map_shared(fd, 15 * PAGE, PAGE), "nor the page before the grant");
	fails_with(EACCES, try_map_shared(fd, 15 * PAGE, 2 * PAGE), "nor across its start");
	fails_with(EACCES, try_map_shared(fd, 19 * PAGE, 2 * PAGE), "nor across its end");
	fails_with(EACCES, try_map_shared(fd, 20 * PAGE, PAGE), "nor the page after it");
	succeeds(try_map_shared(fd, 16 * PAGE, 4 * PAGE), "nobody maps the grant");
	succeeds(try_map_shared(fd, 18 * PAGE, PAGE), "or a part of it");
	succeeds(ring(fd, info.peer_id, 0), "nobody rings through a file with a grant");

	word = map(fd, 16 * PAGE, 4 * PAGE);
	if (word == MAP_FAILED)
		die("map the grant");
	word[0] = 0x600d;
	return 0;
}

static int run_ungranted(void *argument)
{
	int fd = *(int *)argument;

	drop_rights();
	fails_with(EACCES, try_map_shared(fd, 0, PAGE), "nobody maps nothing through a fresh file");
	fails_with(EACCES, try_map_shared(fd, HH_MMAP_DOORBELL, PAGE), "nor the registers");
	fails_with(EPERM, ring(fd, 1, 0), "nor rings");
	return 0;
}

static void test_map_arguments(const char *path)
{
	int fd = open_device(path);
	uint64_t size = get_info(fd).heap_size;

	succeeds(try_map_shared(fd, 0, size), "root maps the whole heap through a fresh file");
	succeeds(try_map(fd, 0, PAGE, PROT_READ, MAP_SHARED), "and read-only");
	fails_with(EINVAL, try_map(fd, 0, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE), "never private");
	fails_with(EINVAL, try_map(fd, 0, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED), "never executable");
	fails_with(EINVAL, try_map_shared(fd, size, PAGE), "not behind the heap");
	fails_with(EINVAL, try_map_shared(fd, size - PAGE, 2 * PAGE), "not across its end");
	fails_with(EINVAL, try_map_shared(fd, 0, size + PAGE), "not more than there is");
	fails_with(EINVAL, try_map_shared(fd, HH_MMAP_DOORBELL - PAGE, PAGE), "not before the registers");
	fails_with(EINVAL, try_map_shared(fd, HH_MMAP_DOORBELL + PAGE, PAGE), "not after them");
	fails_with(EINVAL, try_map_shared(fd, 0x7ffffffffffff000, PAGE), "not at the end of all offsets");
	fails_with(EINVAL, grant_range(fd, 1, PAGE), "no unaligned grant");
	fails_with(EINVAL, grant_range(fd, 0, PAGE - 1), "no unaligned length");
	fails_with(EINVAL, grant_range(fd, 0, 0), "no empty grant");
	fails_with(EINVAL, grant_range(fd, size, PAGE), "no grant behind the heap");
	fails_with(EINVAL, grant_range(fd, PAGE, size), "no grant across its end");
	fails_with(EINVAL, grant_range(fd, PAGE, ~0UL - PAGE + 1), "no grant that wraps");
	fails_with(EINVAL, grant_range(fd, ~0UL - PAGE + 1, 2 * PAGE), "not even from the other side");
	fails_with(ENOTTY, ioctl(fd, _IO(HH_IOC_MAGIC, 0x7f)), "unknown ioctls are refused");
	fails_with(EFAULT, ioctl(fd, HH_IOC_INFO, NULL), "a null pointer is refused");
	succeeds(grant_range(fd, 0, PAGE), "a grant");
	fails_with(EACCES, try_map_shared(fd, 0, size), "confines even root to it");
	succeeds(revoke_range(fd, 0, size), "revoked");
	fails_with(EACCES, try_map_shared(fd, 0, PAGE), "it stays confined");
	close(fd);
}

static void test_grant_arithmetic(const char *path)
{
	int fd = open_device(path);

	succeeds(grant_range(fd, 8 * PAGE, 2 * PAGE), "grant [8,10)");
	succeeds(grant_range(fd, 12 * PAGE, 2 * PAGE), "grant [12,14)");
	fails_with(EACCES, try_map_shared(fd, 8 * PAGE, 6 * PAGE), "[8,14) has a hole");
	succeeds(grant_range(fd, 10 * PAGE, 2 * PAGE), "grant [10,12)");
	succeeds(try_map_shared(fd, 8 * PAGE, 6 * PAGE), "touching grants are one range");
	succeeds(grant_range(fd, 9 * PAGE, PAGE), "granting again is fine");
	succeeds(try_map_shared(fd, 8 * PAGE, 6 * PAGE), "and takes nothing away");
	succeeds(revoke_range(fd, 10 * PAGE, PAGE), "revoke [10,11), in the middle");
	fails_with(EACCES, try_map_shared(fd, 10 * PAGE, PAGE), "it is gone");
	succeeds(try_map_shared(fd, 8 * PAGE, 2 * PAGE), "what is before it stays");
	succeeds(try_map_shared(fd, 11 * PAGE, 3 * PAGE), "what is after it stays");
	succeeds(revoke_range(fd, 9 * PAGE, 3 * PAGE), "revoke [9,12), over the hole");
	succeeds(try_map_shared(fd, 8 * PAGE, PAGE), "[8,9) stays");
	succeeds(try_map_shared(fd, 12 * PAGE, 2 * PAGE), "[12,14) stays");
	fails_with(EACCES, try_map_shared(fd, 11 * PAGE, PAGE), "[11,12) is gone");
	close(fd);
}

static void test_rights(const char *path)
{
	int fd = open_device(path), whole = open_device(path);
	volatile uint32_t *heap;

	check(in_child(run_ungranted, &fd), "a fresh file gives nobody nothing");
	heap = map(whole, 0, 32 * PAGE);
	if (heap == MAP_FAILED)
		die("map the heap");
	heap[16 * PAGE / 4] = 0;
	succeeds(grant_range(fd, 16 * PAGE, 4 * PAGE), "grant [16,20)");
	check(in_child(run_unprivileged, &fd), "an unprivileged process and its grant");
	check(heap[16 * PAGE / 4] == 0x600d, "what it wrote is in the heap");
	munmap((void *)heap, 32 * PAGE);
	close(whole);
	close(fd);
}

static int run_hold_vector(void *argument)
{
	return bind_vector(*(int *)argument, eventfd(0, 0), HH_VECTOR_ANY) > 0 ? 0 : 1;
}

static void test_leases(const char *path)
{
	int fd = open_device(path), bell = eventfd(0, 0), other, bound = 0, report[2], status;
	uint32_t vectors = get_info(fd).vectors;
	void *at;
	pid_t child;
	char byte;

	fails_with(EINVAL, bind_vector(fd, bell, vectors), "no vector beyond the last");
	fails_with(EBADF, bind_vector(fd, -1, HH_VECTOR_ANY), "no bad descriptor");
	fails_with(EINVAL, bind_vector(fd, fd, HH_VECTOR_ANY), "nothing but an eventfd");
	if (pipe(report))
		die("pipe");
	child = fork();
	if (!child) {
		other = open_device(path);
		while (bind_vector(other, bell, HH_VECTOR_ANY) > 0)
			bound++;
		byte = errno == ENOSPC ? bound : -1;
		if (write(report[1], &byte, 1) != 1)
			exit(1);
		pause();
	}
	close(report[1]);
	if (read(report[0], &byte, 1) != 1)
		die("child");
	check(byte == (char)(vectors - 1), "a process leases all %u vectors but 0", vectors);
	fails_with(ENOSPC, bind_vector(fd, bell, HH_VECTOR_ANY), "then none is left");
	check(bind_vector(fd, bell, 0) == 0, "vector 0 by number is there");
	check(bind_vector(fd, bell, 5) == 5, "a taken vector by number is shared");
	kill(child, SIGKILL);
	waitpid(child, &status, 0);
	check(bind_vector(fd, bell, HH_VECTOR_ANY) == 1, "its death by SIGKILL gives them back");
	close(fd);

	fd = open_device(path);
	check(bind_vector(fd, bell, HH_VECTOR_ANY) == 1, "the last close gave back the rest");
	at = map(fd, 0, PAGE);
	check(in_child(run_hold_vector, &fd), "a child binds on the inherited file");
	close(fd);
	fd = open_device(path);
	check(bind_vector(fd, bell, HH_VECTOR_ANY) == 3, "a mapping alone keeps the file and its two leases");
	munmap(at, PAGE);
	close(fd);
	fd = open_device(path);
	check(bind_vector(fd, bell, HH_VECTOR_ANY) == 1, "and munmap ends them");
	close(fd);
	close(bell);
	close(report[0]);
}

static void test_own_doorbell(const char *path)
{
	int fd = open_device(path), granted = open_device(path), first = eventfd(0, 0), second = eventfd(0, 0);
	struct hh_info info = get_info(fd);
	volatile uint32_t *registers;
	int vector = bind_vector(fd, first, HH_VECTOR_ANY);

	succeeds(ring(fd, info.peer_id, vector), "ring ourselves");
	check(wait_eventfd(first, PATIENCE_MS), "the eventfd of vector %d is signalled", vector);
	check(bind_vector(granted, second, vector) == vector, "a second file binds the same vector");
	succeeds(ring(fd, info.peer_id, vector), "ring");
	check(wait_eventfd(first, PATIENCE_MS) && wait_eventfd(second, PATIENCE_MS), "both are signalled");
	succeeds(ring(fd, info.peer_id, vector == 1 ? 2 : 1), "ring another vector");
	check(!wait_eventfd(first, 100), "which wakes nobody here");
	succeeds(ring(fd, 0xffff, 0), "a peer that is not there is no error");
	fails_with(EINVAL, ring(fd, 0x10000, 0), "a peer that cannot be is");
	fails_with(EINVAL, ring(fd, info.peer_id, info.vectors), "and so is a vector");

	if (!(info.flags & HH_INFO_DOORBELL_PAGE)) {
		fails_with(EOPNOTSUPP, try_map_shared(fd, HH_MMAP_DOORBELL, PAGE), "no doorbell page here");
		goto out;
	}
	fails_with(EINVAL, try_map_shared(fd, HH_MMAP_DOORBELL, 2 * PAGE), "the doorbell page is one page");
	succeeds(grant_range(granted, 0, PAGE), "grant");
	registers = map(granted, HH_MMAP_DOORBELL, PAGE);
	if (check(registers != MAP_FAILED, "map the doorbell page")) {
		check(registers[2] == info.peer_id, "it shows our peer id");
		registers[HH_DOORBELL_REGISTER / 4] = info.peer_id << 16 | vector;
		check(wait_eventfd(first, PATIENCE_MS), "a store to it rings");
		munmap((void *)registers, PAGE);
	}
out:
	close(first);
	close(second);
	close(granted);
	close(fd);
}

struct forked {
	volatile uint32_t *heap;
	volatile uint32_t *registers;
	uint32_t knock;
};

static int run_forked(void *argument)
{
	struct forked *forked = argument;

	if (forked->heap[0] != 1 || forked->heap[3 * 512 * 1024 / 4] != 2)
		return 1;
	forked->heap[1] = 3;
	if (forked->registers)
		forked->registers[HH_DOORBELL_REGISTER / 4] = forked->knock;
	return 0;
}

static void test_fork(const char *path)
{
	int fd = open_device(path), bell = eventfd(0, 0);
	struct hh_info info = get_info(fd);
	int vector = bind_vector(fd, bell, HH_VECTOR_ANY);
	struct forked forked = { map(fd, 0, 4 << 20), NULL, info.peer_id << 16 | vector };
	volatile uint32_t *heap = forked.heap;
	void *moved;

	if (forked.heap == MAP_FAILED)
		die("map 4 MiB");
	if (info.flags & HH_INFO_DOORBELL_PAGE)
		forked.registers = map(fd, HH_MMAP_DOORBELL, PAGE);
	close(fd);
	heap[0] = 1;
	heap[1] = 0;
	heap[3 * 512 * 1024 / 4] = 2;
	check(in_child(run_forked, &forked), "a child has the mappings");
	check(heap[1] == 3, "and its stores reach us");
	if (forked.registers)
		check(wait_eventfd(bell, PATIENCE_MS), "and its doorbell rings");

	/* Half of it goes, the rest moves, and pages are dropped: all are ways to get the offsets wrong. */
	munmap((void *)heap, 1 << 20);
	moved = mremap((char *)heap + (1 << 20), 3 << 20, 3 << 20, MREMAP_MAYMOVE);
	check(moved != MAP_FAILED, "the rest of a split mapping moves");
	check(*(uint32_t *)((char *)moved + (1 << 19)) == 2, "and still shows the same bytes");
	errno = 0;
	check(mremap(moved, 3 << 20, 4 << 20, MREMAP_MAYMOVE) == MAP_FAILED, "but never grows");
	fails_with(EINVAL, madvise(moved, PAGE, MADV_DONTNEED), "MADV_DONTNEED is refused");
	munmap(moved, 3 << 20);
	if (forked.registers)
		munmap((void *)forked.registers, PAGE);
	close(bell);
}

static void test_system_calls(const char *path)
{
	int fd = open_device(path), ends[2];
	char *heap = map(fd, 0, PAGE);
	int word = 1;

	if (heap == MAP_FAILED || pipe(ends))
		die("map and pipe");
	memcpy(heap, "from the heap", 14);
	check(write(ends[1], heap, 14) == 14 && read(ends[0], heap + 100, 14) == 14, "system calls read and write it");
	check(!memcmp(heap + 100, "from the heap", 14), "and copy the right bytes");
	fails_with(EFAULT, syscall(SYS_futex, heap, FUTEX_WAIT, word, NULL, NULL, 0), "no futex in the heap");
	fails_with(EFAULT, vmsplice(ends[1], &(struct iovec){ heap, 14 }, 1, 0), "no page of it in a pipe");
	munmap(heap, PAGE);
	close(ends[0]);
	close(ends[1]);
	close(fd);
}

static void test_many(const char *path)
{
	int fds[64], i;

	for (i = 0; i < 64; i++) {
		fds[i] = open_device(path);
		if (grant_range(fds[i], i * PAGE, PAGE) || bind_vector(fds[i], eventfd(0, 0), i % 7 + 1) < 0)
			die("bind in many files");
		if (map(fds[i], i * PAGE, PAGE) == MAP_FAILED)
			die("map in many files");
	}
	check(true, "64 files with grant, vector and mapping");
}

static int run_many(void *argument)
{
	test_many(argument);
	return 0;
}

static int test_solo(const char *path)
{
	int fd = open_device(path);
	struct hh_info info = get_info(fd);

	check(info.heap_size && !(info.heap_size & (info.heap_size - 1)), "heap of %llu bytes",
	      (unsigned long long)info.heap_size);
	check(info.peer_id && info.peer_id < 0x10000, "peer id %u", info.peer_id);
	check(info.vectors > 1, "%u vectors, %s doorbell page", info.vectors,
	      info.flags & HH_INFO_DOORBELL_PAGE ? "with" : "without");
	close(fd);
	test_map_arguments(path);
	test_grant_arithmetic(path);
	test_rights(path);
	test_leases(path);
	test_own_doorbell(path);
	test_fork(path);
	test_system_calls(path);
	check(in_child(run_many, (void *)path), "many files at once, ended by exit");
	return failures != 0;
}

/* pair: the first page of the heap holds the meeting point, the second the ball of the round trips */

struct meeting {
	_Atomic uint32_t side[2];	/* phase << 16 | peer id, written by that side, like the rest */
	_Atomic uint32_t vector[2];
	_Atomic uint32_t has_page[2];
};

struct ball {
	_Alignas(64) _Atomic uint32_t to_far;
	_Alignas(64) _Atomic uint32_t to_near;
};

struct pair {
	int fd;
	int bell;
	int side;
	struct hh_info info;
	volatile uint32_t *registers;
	uint8_t *heap;
	struct meeting *meeting;
	struct ball *ball;
	uint32_t peer;
	uint32_t peer_vector;
};

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ULL + now.tv_nsec;
}

/* Waits until the other side is in this phase as well. */
static void meet(struct pair *pair, uint32_t phase)
{
	uint64_t end = now_ns() + 120 * 1000000000ULL;
	uint32_t seen;

	atomic_store(&pair->meeting->side[pair->side], phase << 16 | pair->info.peer_id);
	do {
		if (now_ns() > end)
			die("the other guest did not come");
		usleep(2000);
		seen = atomic_load(&pair->meeting->side[!pair->side]);
	} while (seen >> 16 != phase && seen >> 16 != phase + 1);
	pair->peer = seen & 0xffff;
}

static int compare_u64(const void *left, const void *right)
{
	uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;

	return (a > b) - (a < b);
}

enum way { SPIN, RING_IOCTL, RING_STORE };

static void knock(struct pair *pair, enum way way)
{
	if (way == RING_IOCTL && ring(pair->fd, pair->peer, pair->peer_vector))
		die("ring");
	if (way == RING_STORE)
		pair->registers[HH_DOORBELL_REGISTER / 4] = pair->peer << 16 | pair->peer_vector;
}

static void await_ball(struct pair *pair, _Atomic uint32_t *word, uint32_t value, enum way way)
{
	uint64_t end = 0;
	uint32_t spins = 0;

	while (atomic_load_explicit(word, memory_order_acquire) != value) {
		if (way != SPIN) {
			if (!wait_eventfd(pair->bell, PATIENCE_MS))
				die("no doorbell in time");
		} else if (!(++spins & 0xfffff)) {
			if (!end)
				end = now_ns() + PATIENCE_MS * 1000000ULL;
			else if (now_ns() > end)
				die("no answer in time");
		}
		__builtin_ia32_pause();
	}
}

static void round_trips(struct pair *pair, const char *name, enum way way, uint32_t count)
{
	uint64_t *times = calloc(count, sizeof(*times)), start;
	uint32_t i;

	if (!times)
		die("calloc");
	for (i = 1; i <= count; i++) {
		start = now_ns();
		if (pair->side) {
			await_ball(pair, &pair->ball->to_far, i, way);
			atomic_store_explicit(&pair->ball->to_near, i, memory_order_release);
			knock(pair, way);
		} else {
			atomic_store_explicit(&pair->ball->to_far, i, memory_order_release);
			knock(pair, way);
			await_ball(pair, &pair->ball->to_near, i, way);
		}
		times[i - 1] = now_ns() - start;
	}
	qsort(times, count, sizeof(*times), compare_u64);
	check(true, "%s: %u round trips, p50 %.1f us, p99 %.1f us", name, count, times[count / 2] / 1e3,
	      times[count - count / 100 - 1] / 1e3);
	free(times);
}

static void reset_ball(struct pair *pair, uint32_t phase)
{
	uint64_t count;

	meet(pair, phase);
	if (!pair->side) {
		atomic_store(&pair->ball->to_far, 0);
		atomic_store(&pair->ball->to_near, 0);
	}
	fcntl(pair->bell, F_SETFL, O_NONBLOCK);
	(void)!read(pair->bell, &count, sizeof(count));
	meet(pair, phase + 1);
}

static void exchange_data(struct pair *pair)
{
	size_t half = pair->info.heap_size / 2, i, wrong = 0;
	uint64_t *mine = (uint64_t *)(pair->heap + (pair->side ? half : 2 * PAGE));
	uint64_t *other = (uint64_t *)(pair->heap + (pair->side ? 2 * PAGE : half));
	size_t mine_words = (pair->side ? half : half - 2 * PAGE) / 8;
	size_t other_words = (pair->side ? half - 2 * PAGE : half) / 8;
	uint64_t seed = 0x9e3779b97f4a7c15;

	for (i = 0; i < mine_words; i++)
		mine[i] = (i + pair->info.peer_id) * seed;
	meet(pair, 3);
	for (i = 0; i < other_words; i++)
		wrong += other[i] != (i + pair->peer) * seed;
	check(!wrong, "all %zu bytes of the other side are as it wrote them", other_words * 8);
	meet(pair, 4);
}

static int test_pair(const char *path, int side)
{
	struct pair pair = { .fd = open_device(path), .bell = eventfd(0, 0), .side = side };
	int vector;

	pair.info = get_info(pair.fd);
	pair.heap = map(pair.fd, 0, pair.info.heap_size);
	if (pair.heap == MAP_FAILED)
		die("map the heap");
	if (pair.info.flags & HH_INFO_DOORBELL_PAGE)
		pair.registers = map(pair.fd, HH_MMAP_DOORBELL, PAGE);
	pair.meeting = (struct meeting *)pair.heap;
	pair.ball = (struct ball *)(pair.heap + PAGE);
	vector = bind_vector(pair.fd, pair.bell, HH_VECTOR_ANY);
	if (vector < 0)
		die("bind");
	atomic_store(&pair.meeting->vector[side], vector);
	atomic_store(&pair.meeting->has_page[side], pair.registers != NULL);
	meet(&pair, 1);
	meet(&pair, 2);
	pair.peer_vector = atomic_load(&pair.meeting->vector[!side]);
	check(pair.peer != pair.info.peer_id, "we are %u, they are %u on vector %u", pair.info.peer_id,
	      pair.peer, pair.peer_vector);
	exchange_data(&pair);

	reset_ball(&pair, 5);
	round_trips(&pair, "asleep, ring by ioctl", RING_IOCTL, 2000);
	if (atomic_load(&pair.meeting->has_page[0]) && atomic_load(&pair.meeting->has_page[1])) {
		reset_ball(&pair, 7);
		round_trips(&pair, "asleep, ring by store", RING_STORE, 2000);
	}
	reset_ball(&pair, 9);
	round_trips(&pair, "spinning", SPIN, 20000);
	meet(&pair, 11);
	return failures != 0;
}

/* show, gone, hold */

static int show(const char *path)
{
	int fd = open_device(path);
	volatile uint32_t *heap = map(fd, 2 * PAGE, PAGE), *registers = map(fd, HH_MMAP_DOORBELL, PAGE);
	struct pollfd input = { .fd = STDIN_FILENO, .events = POLLIN };
	cpu_set_t first;

	/* QEMU's monitor looks at the first CPU. */
	CPU_ZERO(&first);
	CPU_SET(0, &first);
	if (heap == MAP_FAILED || sched_setaffinity(0, sizeof(first), &first))
		die("map on the first CPU");
	printf("showing heap=%016lx registers=%016lx\n", (unsigned long)heap,
	       registers == MAP_FAILED ? 0UL : (unsigned long)registers);
	fflush(stdout);
	while (poll(&input, 1, 0) == 0) {
		for (int i = 0; i < 1000; i++)
			heap[0] = i;
		if (registers != MAP_FAILED)
			(void)registers[2];
	}
	while (getchar() != '\n')
		continue;
	return 0;
}

static int run_gone(void *argument)
{
	volatile uint32_t *heap = argument;

	heap[5] = 7;
	return heap[5] == 7 ? 0 : 1;
}

static int test_gone(const char *path)
{
	int fd = open_device(path), confined = open_device(path), bell = eventfd(0, 0);
	struct hh_info info = get_info(fd);
	volatile uint32_t *heap = map(fd, 0, info.heap_size), *registers = MAP_FAILED, *narrow;
	struct pollfd hangup = { .fd = fd };

	if (grant_range(confined, 4 * PAGE, PAGE) || bind_vector(confined, bell, HH_VECTOR_ANY) < 0)
		die("grant and bind");
	narrow = map(confined, 4 * PAGE, PAGE);
	if (info.flags & HH_INFO_DOORBELL_PAGE)
		registers = map(fd, HH_MMAP_DOORBELL, PAGE);
	if (heap == MAP_FAILED || narrow == MAP_FAILED)
		die("map");
	heap[0] = 0xa11f;
	narrow[0] = 0xa11f;
	if (registers != MAP_FAILED)
		check(registers[2] == info.peer_id, "the registers are there");
	check(poll(&hangup, 1, 0) == 0, "no hangup yet");
	printf("waiting\n");
	fflush(stdout);

	/* Keeps faulting in and writing while the device goes. */
	while (poll(&hangup, 1, 0) == 0)
		for (uint64_t at = 0; at < info.heap_size; at += 64 * PAGE)
			heap[at / 4 + 3] = at;
	check(hangup.revents & POLLHUP, "poll says that the device is gone");
	check(wait_eventfd(bell, PATIENCE_MS), "the bound eventfd is signalled");
	fails_with(ENODEV, ioctl(fd, HH_IOC_INFO, &info), "INFO: no device");
	fails_with(ENODEV, ring(fd, 1, 0), "RING: no device");
	fails_with(ENODEV, grant_range(fd, 0, PAGE), "GRANT: no device");
	fails_with(ENODEV, bind_vector(fd, bell, HH_VECTOR_ANY), "BIND: no device");
	fails_with(ENODEV, try_map_shared(fd, 0, PAGE), "mmap: no device");
	check(heap[0] != 0xa11f && narrow[0] == 0, "mappings show the heap no more");
	narrow[1] = 1;
	check(narrow[1] == 1 && heap[1] == 0, "but a blank page of the open file's own");
	if (registers != MAP_FAILED) {
		registers[HH_DOORBELL_REGISTER / 4] = 1 << 16;
		check(true, "a store to the doorbell page does no harm");
	}
	check(in_child(run_gone, (void *)heap), "a child forked now lives with it too");
	munmap((void *)heap, 2 * PAGE);
	return failures != 0;
}

static int hold(const char *path)
{
	pid_t child;

	open_device(path);
	child = fork();
	if (!child) {
		close(STDOUT_FILENO);
		pause();
	}
	printf("%d\n", child);
	exit(child < 0);
}

/* storm: everything at once, while somebody else unbinds and binds the driver again and again */

static void storm_once(const char *path)
{
	int fd = open(path, O_RDWR | O_CLOEXEC), bell = eventfd(0, 0);
	size_t length = 4 << 20;
	struct hh_info info;
	volatile uint32_t *heap;
	void *moved;
	pid_t child;

	if (fd < 0 || ioctl(fd, HH_IOC_INFO, &info))
		goto out;
	grant_range(fd, 0, length);
	bind_vector(fd, bell, HH_VECTOR_ANY);
	heap = map(fd, 0, length);
	if (heap == MAP_FAILED)
		goto out;
	heap[0]++;
	child = fork();
	if (!child) {
		for (size_t at = 0; at < length; at += 16 * PAGE)
			heap[at / 4] = at;
		ring(fd, info.peer_id, 1);
		_exit(0);
	}
	moved = mremap((void *)(heap + length / 8), length / 2, length / 2, MREMAP_MAYMOVE);
	for (size_t at = 0; at < length / 2 && moved != MAP_FAILED; at += 16 * PAGE)
		((volatile uint32_t *)moved)[at / 4]++;
	ring(fd, info.peer_id, 1);
	revoke_range(fd, PAGE, PAGE);
	wait_eventfd(bell, 1);
	if (child > 0)
		waitpid(child, NULL, 0);
	if (moved != MAP_FAILED)
		munmap(moved, length / 2);
	munmap((void *)heap, length);
out:
	close(bell);
	if (fd >= 0)
		close(fd);
}

static int run_storm(void *argument)
{
	uint64_t end = now_ns() + 15 * 1000000000ULL;

	while (now_ns() < end)
		storm_once(argument);
	return 0;
}

static int test_storm(const char *path)
{
	pid_t children[4];
	int status;

	for (int i = 0; i < 4; i++) {
		children[i] = fork();
		if (!children[i])
			exit(run_storm((void *)path));
	}
	for (int i = 0; i < 4; i++)
		check(waitpid(children[i], &status, 0) == children[i] && status == 0,
		      "process %d lived through it (status %#x)", i, status);
	return failures != 0;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	int ret;

	if (argc == 3 && !strcmp(what, "solo"))
		ret = test_solo(argv[2]);
	else if (argc == 4 && !strcmp(what, "pair"))
		ret = test_pair(argv[2], atoi(argv[3]) != 0);
	else if (argc == 3 && !strcmp(what, "show"))
		ret = show(argv[2]);
	else if (argc == 3 && !strcmp(what, "gone"))
		ret = test_gone(argv[2]);
	else if (argc == 3 && !strcmp(what, "storm"))
		ret = test_storm(argv[2]);
	else if (argc == 3 && !strcmp(what, "hold"))
		ret = hold(argv[2]);
	else {
		fprintf(stderr, "usage: %s solo|gone|storm|hold DEVICE | pair DEVICE 0|1 | show FILE\n", argv[0]);
		return 2;
	}
	printf("%s: %d failed\n", what, failures);
	return ret;
}
