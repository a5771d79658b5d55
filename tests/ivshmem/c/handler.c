/* SPDX-License-Identifier: Apache-2.0 */
/* A signal handler that sends on the socket on which the interrupted thread is sending: 0 if both make progress. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int left, right;
static volatile long handled;

static void handler(int number)
{
	int saved = errno;

	(void)number;
	if (send(left, "h", 1, MSG_DONTWAIT) == 1)
		handled++;
	errno = saved;
}

static void *drain(void *argument)
{
	static char buffer[1 << 20];

	while (read(right, buffer, sizeof(buffer)) > 0)
		;
	return argument;
}

static int connect_pair(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	socklen_t length = sizeof(address);

	if (bind(listener, (struct sockaddr *)&address, length) || listen(listener, 1) ||
	    getsockname(listener, (struct sockaddr *)&address, &length))
		return -1;
	left = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(left, (struct sockaddr *)&address, length))
		return -1;
	right = accept(listener, NULL, NULL);
	return right < 0 ? -1 : 0;
}

int main(void)
{
	struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
	struct itimerval every = {{0, 500}, {0, 500}};
	static char block[30000];
	time_t end;
	long sent = 0;
	sigset_t alarm_only;
	pthread_t thread;
	char byte[64] = {0};

	if (connect_pair())
		return 1;
	for (int i = 0; i < 60; i++) {
		if (send(left, byte, sizeof(byte), 0) < 0 || read(right, byte, sizeof(byte)) < 0 ||
		    send(right, byte, sizeof(byte), 0) < 0 || read(left, byte, sizeof(byte)) < 0)
			return 1;
		usleep(5000);
	}
	sigemptyset(&alarm_only);
	sigaddset(&alarm_only, SIGALRM);
	pthread_sigmask(SIG_BLOCK, &alarm_only, NULL);
	if (pthread_create(&thread, NULL, drain, NULL))
		return 1;
	pthread_sigmask(SIG_UNBLOCK, &alarm_only, NULL);
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &every, NULL);
	for (end = time(NULL) + 3; time(NULL) < end; sent++)
		(void)!send(left, block, sizeof(block), 0);
	fprintf(stderr, "%ld sent, %ld handled\n", sent, handled);
	return sent > 100 && handled > 10 ? 0 : 1;
}
