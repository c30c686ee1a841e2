/*
 * take: takes a connection that another program gave to NAME, and answers everything on it with itself.
 *
 *   STP_VOLUME=/dev/shared STP_SYSTEM=gamma take worker
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <arpa/inet.h>
#include <stp.h>

static void fail(const char *what)
{
    fprintf(stderr, "take: %s: %s: %s\n", what, strerror(errno), STPstrerror(STPerror()));
    exit(1);
}

int main(int argc, char **argv)
{
    static char buf[65536];
    struct sockaddr_stp peer;
    socklen_t len = sizeof peer;
    long total = 0;
    int s;

    if (argc != 2) {
        fprintf(stderr, "usage: take NAME\n");
        return 2;
    }
    s = STPtakesocket(argv[1], 60000);
    if (s < 0)
        fail("STPtakesocket");
    if (STPgetpeername(s, (struct sockaddr *)&peer, &len) < 0)
        fail("STPgetpeername");
    for (;;) {
        ssize_t got = STPrecv(s, buf, sizeof buf, 0), sent = 0;
        if (got < 0)
            fail("STPrecv");
        if (got == 0)
            break;
        total += got;
        while (sent < got) {
            ssize_t n = STPsend(s, buf + sent, (size_t)(got - sent), 0);
            if (n < 0)
                fail("STPsend");
            sent += n;
        }
    }
    printf("took the stream of %s:%u and %ld bytes of it\n", peer.sstp_system, ntohs(peer.sstp_port), total);
    if (STPclose(s) < 0)
        fail("STPclose");
    return 0;
}
