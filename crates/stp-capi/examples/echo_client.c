/*
 * echo_client: sends its standard input, writes what comes back.
 *
 *   STP_VOLUME=/dev/shared STP_SYSTEM=alpha echo_client beta:7000 < FILE
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <stp.h>

static void fail(const char *what)
{
    fprintf(stderr, "echo_client: %s: %s: %s\n", what, strerror(errno), STPstrerror(STPerror()));
    exit(1);
}

int main(int argc, char **argv)
{
    struct sockaddr_stp addr;
    char out[65536], in[65536];
    size_t filled = 0;
    int s, input = 1;

    if (argc != 2) {
        fprintf(stderr, "usage: echo_client SYSTEM:PORT < FILE\n");
        return 2;
    }
    if (STPaddr(&addr, argv[1]) < 0)
        fail("STPaddr");
    s = STPsocket(PF_STP, SOCK_STREAM, PF_STP);
    if (s < 0)
        fail("STPsocket");
    if (STPconnect(s, (struct sockaddr *)&addr, sizeof addr) < 0)
        fail("STPconnect");

    for (;;) {
        struct pollfd fds[2];
        fds[0].fd = s;
        fds[0].events = (short)(POLLIN | (filled > 0 ? POLLOUT : 0));
        fds[1].fd = input && filled == 0 ? 0 : -1;
        fds[1].events = POLLIN;
        if (STPpoll(fds, 2, -1) < 0)
            fail("STPpoll");
        if (fds[1].revents != 0) {
            ssize_t got = read(0, out, sizeof out);
            if (got < 0)
                fail("read");
            if (got == 0) {
                input = 0;
                if (STPshutdown(s, SHUT_WR) < 0)
                    fail("STPshutdown");
            }
            filled = (size_t)got;
        }
        if (fds[0].revents & POLLOUT) {
            ssize_t sent = STPsend(s, out, filled, MSG_DONTWAIT);
            if (sent < 0 && errno != EAGAIN)
                fail("STPsend");
            if (sent > 0) {
                filled -= (size_t)sent;
                memmove(out, out + sent, filled);
            }
        }
        if (fds[0].revents & (POLLIN | POLLHUP | POLLERR)) {
            ssize_t got = STPrecv(s, in, sizeof in, 0);
            if (got < 0)
                fail("STPrecv");
            if (got == 0)
                break;
            if (fwrite(in, 1, (size_t)got, stdout) != (size_t)got)
                fail("fwrite");
        }
    }
    if (fflush(stdout) != 0 || STPclose(s) < 0)
        fail("STPclose");
    return 0;
}
