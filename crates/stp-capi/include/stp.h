/*
 * stp.h: stream sockets whose bytes travel through shared storage.
 *
 * The calls are those of Berkeley sockets with STP before their names; what they return and the errno they set are
 * those of a TCP socket, and where they are not, docs/SOCKETS.md says so. stp(7) is the overview, every call has a
 * page in section 3. Link with -lstp, or with the static library: pkg-config --libs --static stp.
 */
#ifndef STP_H
#define STP_H

#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

#define STP_VERSION_MAJOR 0
#define STP_VERSION_MINOR 1

/* Numbers of our own: the kernel's address families end below 64, its option levels below 1024. */
#define AF_STP  0x5354
#define PF_STP  AF_STP
#define SOL_STP 0x535450

/*
 * An address: a port of a system of a group. An empty system is this one, an empty group the one that the volume
 * (STP_VOLUME, STP_OPT_VOLUME) holds; port 0 in STPbind is any free one.
 */
struct sockaddr_stp {
    sa_family_t sstp_family;  /* AF_STP */
    uint16_t sstp_port;       /* network byte order */
    char sstp_system[64];     /* ends with a zero */
    char sstp_group[64];      /* ends with a zero */
};

/* Sockets. */
int STPsocket(int domain, int type, int protocol);
int STPbind(int s, const struct sockaddr *addr, socklen_t addrlen);
int STPlisten(int s, int backlog);
int STPaccept(int s, struct sockaddr *addr, socklen_t *addrlen);
int STPaccept4(int s, struct sockaddr *addr, socklen_t *addrlen, int flags);
int STPconnect(int s, const struct sockaddr *addr, socklen_t addrlen);
int STPshutdown(int s, int how);
int STPclose(int s);
int STPdup(int s);
int STPdup2(int s, int onto);

/* Bytes. */
ssize_t STPsend(int s, const void *buf, size_t len, int flags);
ssize_t STPrecv(int s, void *buf, size_t len, int flags);
ssize_t STPwrite(int s, const void *buf, size_t len);
ssize_t STPread(int s, void *buf, size_t len);
ssize_t STPwritev(int s, const struct iovec *parts, int number);
ssize_t STPreadv(int s, const struct iovec *parts, int number);

/* Waiting. The descriptor is the kernel's: poll, select and epoll take it too. */
int STPpoll(struct pollfd *fds, nfds_t number, int timeout);
int STPselect(int number, fd_set *readfds, fd_set *writefds, fd_set *exceptfds, struct timeval *timeout);

/* Names. */
int STPaddr(struct sockaddr_stp *addr, const char *text);
int STPgethostbyname(const char *name, struct sockaddr_stp *addr);
int STPgethostname(int s, struct sockaddr *addr, socklen_t *addrlen);
int STPgetpeername(int s, struct sockaddr *addr, socklen_t *addrlen);

/* Options. */
int STPgetsockopt(int s, int level, int name, void *value, socklen_t *len);
int STPsetsockopt(int s, int level, int name, const void *value, socklen_t len);
int STPgetopt(int s, int option, void *value, socklen_t *len);
int STPsetopt(int s, int option, const void *value, socklen_t len);

/* Options of the process: s is -1, and they can be set until the first socket is bound or connected. */
#define STP_OPT_VOLUME     1  /* text */
#define STP_OPT_SYSTEM     2  /* text */
#define STP_OPT_RUN_DIR    3  /* text */
#define STP_OPT_GROUP      4  /* text */
#define STP_OPT_ENGINE     5  /* uint32_t: one of the three below */
#define STP_OPT_POLL_US    6  /* uint32_t: the longest interval between two looks at the volume */
#define STP_OPT_POLL_IOPS  7  /* uint32_t: the most looks a second; 0: no bound */
#define STP_OPT_WINDOW     8  /* uint32_t: bytes that a peer may send ahead of a slow reader */
#define STP_OPT_RING       9  /* uint32_t: extents of the seat that one link takes at the most */
#define STP_OPT_DEAD_MS    10 /* uint32_t: silence after which peers give this program's engine up */
/* Options of a socket. */
#define STP_OPT_CONNECT_MS 11 /* uint32_t: how long connecting may take; 0: as long as the engine waits */
#define STP_OPT_TCP_END    12 /* uint32_t: 1: the end of the bytes counts as meant however the program ends */
#define STP_OPT_GIFT_FD    13 /* uint32_t, only told: a descriptor, readable once the socket's gift is settled */

#define STP_ENGINE_AUTO     0 /* the host's shared engine if one runs, else one in this process */
#define STP_ENGINE_EMBEDDED 1
#define STP_ENGINE_SHARED   2

/*
 * A connected socket moves to another program, of this system or another, which goes on at the exact byte in both
 * directions. The giver may then only close it; STPgiven tells what became of the gift.
 */
int STPgivesocket(int s, const char *taker, int timeout_ms);
int STPgiven(int s, int timeout_ms);
int STPtakesocket(const char *name, int timeout_ms);

/*
 * What this thread's last failed STP call has to say beyond errno: one of the numbers below, and a sentence that
 * names the culprit and the remedy. The text is the thread's own, until its next failing call.
 */
int STPerror(void);
const char *STPstrerror(int code);

#define STP_OK       0
#define STP_EVOLUME  1  /* no volume is named, or it cannot be used */
#define STP_EGROUP   2  /* the volume holds another group */
#define STP_ESYSTEM  3  /* the group has no such system */
#define STP_EDEAD    4  /* no engine of the system is alive */
#define STP_EREFUSED 5  /* nobody listens there */
#define STP_ETIMEOUT 6  /* no answer in time */
#define STP_EPORT    7  /* the port is in use, or none is left */
#define STP_ERESET   8  /* the stream broke */
#define STP_EENGINE  9  /* this program's engine is gone or does not answer */
#define STP_ELIMIT   10 /* a table or a limit is full */
#define STP_EADDRESS 11 /* the address is none */
#define STP_EOPTION  12 /* the option is unknown, or cannot be changed now */
#define STP_EFLAGS   13 /* a flag that this call does not have */
#define STP_ESTATE   14 /* the socket is not in a state for this call */
#define STP_ENOTSTP  15 /* the descriptor is no STP socket */
#define STP_EGIVE    16 /* giving or taking the socket failed */
#define STP_EBUG     17 /* a mistake in the library */

#ifdef __cplusplus
}
#endif

#endif
