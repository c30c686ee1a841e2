/* One program, two kinds of sockets: TCP on loopback, or STP with -DUSE_STP. */
#ifndef SOCKETS_H
#define SOCKETS_H

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef USE_STP
#include <stp.h>
#define CALL(name) STP##name
#define getsockname_ STPgethostname
#define FAMILY AF_STP
typedef struct sockaddr_stp address;
#else
#define CALL(name) name
#define getsockname_ getsockname
#define FAMILY AF_INET
typedef struct sockaddr_in address;
#endif

#define SA(a) ((struct sockaddr *)(a))

/* An address of this program's own system. */
static inline address here(int port)
{
    address a;
    memset(&a, 0, sizeof a);
#ifdef USE_STP
    a.sstp_family = AF_STP;
    a.sstp_port = htons((uint16_t)port);
#else
    a.sin_family = AF_INET;
    a.sin_port = htons((uint16_t)port);
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
#endif
    return a;
}

/* An address of the other program's system. */
static inline address there(int port)
{
    address a = here(port);
#ifdef USE_STP
    const char *system = getenv("PEER_SYSTEM");
    if (system != NULL)
        strncpy(a.sstp_system, system, sizeof a.sstp_system - 1);
#endif
    return a;
}

static inline int port_of(const address *a)
{
#ifdef USE_STP
    return ntohs(a->sstp_port);
#else
    return ntohs(a->sin_port);
#endif
}

static inline int stream(void)
{
#ifdef USE_STP
    int s = STPsocket(PF_STP, SOCK_STREAM, PF_STP);
#else
    int s = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
#endif
    if (s < 0) {
        perror("socket");
        exit(1);
    }
    return s;
}

static inline void nonblocking(int s, int on)
{
    int flags = fcntl(s, F_GETFL);
    fcntl(s, F_SETFL, on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK);
}

static inline int local_port(int s)
{
    address a;
    socklen_t len = sizeof a;
    memset(&a, 0, sizeof a);
    return getsockname_(s, SA(&a), &len) < 0 ? -1 : port_of(&a);
}

/* A listener on a free port. */
static inline int listener(int backlog)
{
    int s = stream();
    address a = here(0);
    if (CALL(bind)(s, SA(&a), sizeof a) < 0 || CALL(listen)(s, backlog) < 0) {
        perror("listener");
#ifdef USE_STP
        fprintf(stderr, "%s\n", STPstrerror(STPerror()));
#endif
        exit(1);
    }
    return s;
}

#endif
