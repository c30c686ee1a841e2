/*
 * give: accepts one connection, reads a line from it, and gives the rest to another program, perhaps on another system.
 *
 *   STP_VOLUME=/dev/shared STP_SYSTEM=beta give 7000 gamma/worker
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <arpa/inet.h>
#include <stp.h>

static void fail(const char *what)
{
    fprintf(stderr, "give: %s: %s: %s\n", what, strerror(errno), STPstrerror(STPerror()));
    exit(1);
}

int main(int argc, char **argv)
{
    struct sockaddr_stp addr;
    socklen_t len = sizeof addr;
    char byte;
    size_t count = 0;
    int listener, s;

    if (argc != 3) {
        fprintf(stderr, "usage: give PORT [SYSTEM/]NAME\n");
        return 2;
    }
    memset(&addr, 0, sizeof addr);
    addr.sstp_family = AF_STP;
    addr.sstp_port = htons((uint16_t)atoi(argv[1]));
    listener = STPsocket(PF_STP, SOCK_STREAM, PF_STP);
    if (listener < 0)
        fail("STPsocket");
    if (STPbind(listener, (struct sockaddr *)&addr, sizeof addr) < 0)
        fail("STPbind");
    if (STPlisten(listener, 5) < 0)
        fail("STPlisten");
    if (STPgethostname(listener, (struct sockaddr *)&addr, &len) < 0)
        fail("STPgethostname");
    printf("listening on %s:%u\n", addr.sstp_system, ntohs(addr.sstp_port));
    fflush(stdout);
    s = STPaccept(listener, NULL, NULL);
    if (s < 0)
        fail("STPaccept");

    /* The first line is ours. */
    do {
        ssize_t got = STPrecv(s, &byte, 1, 0);
        if (got < 0)
            fail("STPrecv");
        if (got == 0)
            break;
        count++;
    } while (byte != '\n');
    if (STPsend(s, "hello\n", 6, 0) != 6)
        fail("STPsend");

    /* The rest is another's: from here on this program may only close the socket. */
    if (STPgivesocket(s, argv[2], 60000) < 0)
        fail("STPgivesocket");
    fd_set settled;
    FD_ZERO(&settled);
    FD_SET(s, &settled);
    if (STPselect(s + 1, NULL, NULL, &settled, NULL) < 0)
        fail("STPselect");
    if (STPgiven(s, 0) < 0)
        fail("STPgiven");
    printf("given to %s after %zu bytes\n", argv[2], count);
    if (STPclose(s) < 0 || STPclose(listener) < 0)
        fail("STPclose");
    return 0;
}
