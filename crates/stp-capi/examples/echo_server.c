/*
 * echo_server: answers everything with itself, each connection in a process of its own.
 *
 *   STP_VOLUME=/dev/shared STP_SYSTEM=beta echo_server 7000 [CONNECTIONS]
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <arpa/inet.h>
#include <stp.h>

static void fail(const char *what)
{
    fprintf(stderr, "echo_server: %s: %s: %s\n", what, strerror(errno), STPstrerror(STPerror()));
    exit(1);
}

static void serve(int s)
{
    char buf[65536];
    for (;;) {
        ssize_t got = STPrecv(s, buf, sizeof buf, 0);
        if (got < 0)
            fail("STPrecv");
        if (got == 0)
            break;
        for (ssize_t sent = 0; sent < got;) {
            ssize_t n = STPsend(s, buf + sent, (size_t)(got - sent), MSG_NOSIGNAL);
            if (n < 0)
                fail("STPsend");
            sent += n;
        }
    }
    if (STPclose(s) < 0)
        fail("STPclose");
}

int main(int argc, char **argv)
{
    struct sockaddr_stp addr;
    long connections = argc > 2 ? atol(argv[2]) : -1;
    int listener;

    if (argc < 2) {
        fprintf(stderr, "usage: echo_server PORT [CONNECTIONS]\n");
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
    if (STPlisten(listener, 64) < 0)
        fail("STPlisten");
    socklen_t len = sizeof addr;
    if (STPgethostname(listener, (struct sockaddr *)&addr, &len) < 0)
        fail("STPgethostname");
    printf("listening on %s/%s:%u\n", addr.sstp_group, addr.sstp_system, ntohs(addr.sstp_port));
    fflush(stdout);

    while (connections != 0) {
        struct sockaddr_stp peer;
        socklen_t peer_len = sizeof peer;
        int s = STPaccept(listener, (struct sockaddr *)&peer, &peer_len);
        if (s < 0) {
            if (errno == EINTR)
                continue;
            fail("STPaccept");
        }
        printf("connection from %s:%u\n", peer.sstp_system, ntohs(peer.sstp_port));
        fflush(stdout);
        pid_t child = fork();
        if (child < 0)
            fail("fork");
        if (child == 0) {
            STPclose(listener);
            serve(s);
            _exit(0);
        }
        STPclose(s);
        if (connections > 0)
            connections--;
        while (waitpid(-1, NULL, WNOHANG) > 0)
            ;
    }
    while (waitpid(-1, NULL, 0) > 0)
        ;
    return 0;
}
