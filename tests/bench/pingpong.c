/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ping-pong over an ordinary TCP socket: `pingpong PORT` answers, `pingpong PORT HOST ROUNDS PAUSE_US` asks with 14-byte
 * messages, PAUSE_US apart, and prints {"p50_us": ..., "p99_us": ...} of the round trip. With a pause that is longer than any
 * spin, both ends are asleep when a message comes.
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BYTES 14

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static double now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static void receive(int fd, char *message)
{
	if (recv(fd, message, BYTES, MSG_WAITALL) != BYTES)
		exit(0);
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void answer(struct sockaddr_in *address)
{
	int on = 1, listener = socket(AF_INET, SOCK_STREAM, 0), fd;
	char message[BYTES];

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(listener, (struct sockaddr *)address, sizeof(*address)) || listen(listener, 1))
		die("listen");
	fd = accept(listener, NULL, NULL);
	if (fd < 0)
		die("accept");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	for (;;) {
		receive(fd, message);
		if (send(fd, message, BYTES, 0) != BYTES)
			die("send");
	}
}

static void ask(const struct sockaddr_in *address, int rounds, int pause_us)
{
	double *times = calloc((size_t)rounds, sizeof(*times));
	int on = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
	char message[BYTES] = "hello, world!";

	if (!times || connect(fd, (const struct sockaddr *)address, sizeof(*address)))
		die("connect");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	for (int i = -100; i < rounds; i++) { /* the first hundred warm up and do not count */
		double start;

		if (pause_us)
			usleep((useconds_t)pause_us);
		start = now_us();
		if (send(fd, message, BYTES, 0) != BYTES)
			die("send");
		receive(fd, message);
		if (i >= 0)
			times[i] = now_us() - start;
	}
	qsort(times, (size_t)rounds, sizeof(*times), compare);
	printf("{\"p50_us\": %.2f, \"p99_us\": %.2f}\n", times[rounds / 2], times[rounds - 1 - rounds / 100]);
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = {.sin_family = AF_INET};

	if (argc != 2 && argc != 5) {
		fprintf(stderr, "usage: pingpong PORT [HOST ROUNDS PAUSE_US]\n");
		return 2;
	}
	address.sin_port = htons((uint16_t)atoi(argv[1]));
	if (argc == 2)
		answer(&address);
	if (inet_pton(AF_INET, argv[2], &address.sin_addr) != 1)
		die(argv[2]);
	ask(&address, atoi(argv[3]), atoi(argv[4]));
	return 0;
}
