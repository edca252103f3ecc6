// SPDX-License-Identifier: Apache-2.0
/*
 * A pod that sends all it can as its first act, without waiting for anything, and goes on above any
 * small limit: burst ADDRESS PORT SECONDS. Then it waits until it is told to end.
 */
#include <arpa/inet.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define FIRST 300	/* packets: more than any bucket of a small limit has */
#define LATER 4		/* packets each 10 ms: 4.6 Mbit/s */

static char data[1400];

static void end(int number)
{
	(void)number;
	_exit(0);
}

static void send_all(int fd, int count)
{
	while (count--)
		send(fd, data, sizeof(data), MSG_DONTWAIT);
}

int main(int argc, char **argv)
{
	struct sockaddr_in to = { .sin_family = AF_INET };
	const struct timespec pause_for = { .tv_nsec = 10000000 };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	int turns;

	if (argc != 4 || fd < 0 || inet_pton(AF_INET, argv[1], &to.sin_addr) != 1)
		return 2;
	to.sin_port = htons(atoi(argv[2]));
	if (connect(fd, (struct sockaddr *)&to, sizeof(to)))
		return 1;
	send_all(fd, FIRST);
	signal(SIGTERM, end);
	for (turns = atoi(argv[3]) * 100; turns > 0; turns--) {
		nanosleep(&pause_for, NULL);
		send_all(fd, LATER);
	}
	for (;;)
		pause();
}
