/*
 * lined NAME PORT: a server that answers each line with its name, a count for
 * the connection and the line. "cat FILE" and "env VARIABLE" are answered with
 * the first line of a file and the value of a variable. It needs nothing of the
 * image it runs in; each connection has a process of its own.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const char *answer(char *line)
{
	static char text[4096];
	if (strncmp(line, "env ", 4) == 0) {
		const char *value = getenv(line + 4);
		return value ? value : "(unset)";
	}
	if (strncmp(line, "cat ", 4) != 0)
		return line;
	FILE *f = fopen(line + 4, "r");
	if (!f)
		return strerror(errno);
	if (!fgets(text, sizeof text, f))
		text[0] = 0;
	fclose(f);
	text[strcspn(text, "\n")] = 0;
	return text;
}

static void serve(int fd, const char *name)
{
	char line[4096];
	FILE *in = fdopen(fd, "r"), *out = fdopen(dup(fd), "w");
	if (!in || !out)
		_exit(1);
	for (int count = 1; fgets(line, sizeof line, in); count++) {
		line[strcspn(line, "\n")] = 0;
		if (fprintf(out, "%s %d %s\n", name, count, answer(line)) < 0 || fflush(out) != 0)
			break;
	}
	_exit(0);
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	int on = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
	if (argc != 3 || fd < 0)
		return 2;
	address.sin_port = htons(atoi(argv[2]));
	signal(SIGCHLD, SIG_IGN);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	if (bind(fd, (struct sockaddr *)&address, sizeof address) != 0 || listen(fd, 64) != 0) {
		perror("lined");
		return 1;
	}
	for (;;) {
		int conn = accept(fd, NULL, NULL);
		if (conn < 0)
			continue;
		if (fork() == 0) {
			close(fd);
			serve(conn, argv[1]);
		}
		close(conn);
	}
}
