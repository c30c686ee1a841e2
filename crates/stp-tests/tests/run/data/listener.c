/* Listens on a port and does what each connection's first byte asks for, one connection after the other, and says what it
 * sees: over plain TCP, or by the library with -DUSE_STP. `listener PORT`.
 *
 *   e   sends back what comes until the end of file
 *   u   sends "ab", an urgent '!', "cd"; reads the same from the peer
 *   r   says how the connection ends
 *   d   ends without having read all: a crash
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>
#ifdef USE_STP
#include <stp.h>
#define CALL(name) STP##name
#define FAMILY AF_STP
#define PROTOCOL PF_STP
typedef struct sockaddr_stp address;
#else
#define CALL(name) name
#define FAMILY AF_INET6
#define PROTOCOL 0
typedef struct sockaddr_in6 address;
#endif

static void fatal(const char *what) {
    printf("FATAL %s: %s\n", what, strerror(errno));
    exit(3);
}

static void serve(int fd) {
    char buffer[65536];
    ssize_t count = CALL(recv)(fd, buffer, 1, 0);
    if (count != 1) {
        printf("nothing: %s\n", count ? strerrorname_np(errno) : "end of file");
        return;
    }
    long total = 0;
    int on = 1;
    switch (buffer[0]) {
    case 'e':
        while ((count = CALL(recv)(fd, buffer, sizeof buffer, 0)) > 0) {
            total += count;
            for (ssize_t at = 0, sent; at < count; at += sent)
                if ((sent = CALL(send)(fd, buffer + at, count - at, MSG_NOSIGNAL)) < 0)
                    fatal("send");
        }
        printf("echoed %ld, then %s\n", total, count ? strerrorname_np(errno) : "end of file");
        break;
    case 'u':
        if (CALL(setsockopt)(fd, SOL_SOCKET, SO_OOBINLINE, &on, sizeof on))
            fatal("SO_OOBINLINE");
        if (CALL(send)(fd, "ab", 2, 0) != 2 || CALL(send)(fd, "!", 1, MSG_OOB) != 1 || CALL(send)(fd, "cd", 2, 0) != 2)
            fatal("urgent send");
        printf("urgent:");
        for (;;) {
            struct pollfd wait = {.fd = fd, .events = POLLIN};
            int mark = 0;
            poll(&wait, 1, -1);
            ioctl(fd, SIOCATMARK, &mark);
            if ((count = CALL(recv)(fd, buffer, 1, 0)) != 1)
                break;
            printf(mark ? " <%c>" : " %c", buffer[0]);
        }
        printf(" %s\n", count ? strerrorname_np(errno) : "end of file");
        break;
    case 'r':
        count = CALL(recv)(fd, buffer, sizeof buffer, 0);
        printf("ended by %s\n", count ? strerrorname_np(errno) : "end of file");
        break;
    case 'd':
        /* Until what is left unread is there. */
        while (CALL(recv)(fd, buffer, 4, MSG_PEEK) < 4)
            usleep(1000);
        printf("dies\n");
        fflush(stdout);
        _exit(7);
    }
}

int main(int count, char **arguments) {
    int port = count > 1 ? atoi(arguments[1]) : 0, on = 1;
    address at;
    memset(&at, 0, sizeof at);
#ifdef USE_STP
    at.sstp_family = AF_STP;
    at.sstp_port = htons(port);
#else
    at.sin6_family = AF_INET6;
    at.sin6_port = htons(port);
#endif
    int fd = CALL(socket)(FAMILY, SOCK_STREAM, PROTOCOL);
    CALL(setsockopt)(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (fd < 0 || CALL(bind)(fd, (struct sockaddr *)&at, sizeof at) || CALL(listen)(fd, 16))
        fatal("listen");
    printf("ready\n");
    for (;;) {
        fflush(stdout);
        int peer = CALL(accept)(fd, NULL, NULL);
        if (peer < 0)
            fatal("accept");
        serve(peer);
        CALL(close)(peer);
    }
}
