/*
 * behave: what each call answers in each state of a socket. Prints `label = result [errno] [events]`; the test runs it
 * over TCP first, then over STP, and compares. With PEER_SYSTEM and PEER_RUN_DIR the other end is on another system.
 */
#include "peer.h"

static const char *name_of(int e)
{
    switch (e) {
    case 0: return "-";
    case EPERM: return "EPERM";
    case EINTR: return "EINTR";
    case EIO: return "EIO";
    case EBADF: return "EBADF";
    case EAGAIN: return "EAGAIN";
    case EACCES: return "EACCES";
    case EFAULT: return "EFAULT";
    case EINVAL: return "EINVAL";
    case EPIPE: return "EPIPE";
    case ENOTSOCK: return "ENOTSOCK";
    case EOPNOTSUPP: return "EOPNOTSUPP";
    case ENOPROTOOPT: return "ENOPROTOOPT";
    case EPROTONOSUPPORT: return "EPROTONOSUPPORT";
    case ESOCKTNOSUPPORT: return "ESOCKTNOSUPPORT";
    case EAFNOSUPPORT: return "EAFNOSUPPORT";
    case EADDRINUSE: return "EADDRINUSE";
    case EADDRNOTAVAIL: return "EADDRNOTAVAIL";
    case ECONNABORTED: return "ECONNABORTED";
    case ECONNRESET: return "ECONNRESET";
    case EISCONN: return "EISCONN";
    case ENOTCONN: return "ENOTCONN";
    case ETIMEDOUT: return "ETIMEDOUT";
    case ECONNREFUSED: return "ECONNREFUSED";
    case EHOSTUNREACH: return "EHOSTUNREACH";
    case EALREADY: return "EALREADY";
    case EINPROGRESS: return "EINPROGRESS";
    case EDESTADDRREQ: return "EDESTADDRREQ";
    default: break;
    }
    static char other[32];
    snprintf(other, sizeof other, "errno %d", e);
    return other;
}

#define show(label, call)                                                              \
    do {                                                                               \
        errno = 0;                                                                     \
        long show_got = (long)(call);                                                  \
        printf("%s = %ld%s%s\n", label, show_got, show_got < 0 ? " " : "",             \
               show_got < 0 ? name_of(errno) : "");                                    \
    } while (0)

#define value(label, number) printf("%s = %ld\n", label, (long)(number))

static void events(const char *label, int s, int wait_ms)
{
    struct pollfd p;
    p.fd = s;
    p.events = POLLIN | POLLOUT | POLLPRI | POLLRDHUP;
    p.revents = 0;
    if (CALL(poll)(&p, 1, wait_ms) < 0)
        perror("poll");
    printf("%s =%s%s%s%s%s%s%s\n", label, p.revents & POLLIN ? " IN" : "", p.revents & POLLPRI ? " PRI" : "",
           p.revents & POLLOUT ? " OUT" : "", p.revents & POLLERR ? " ERR" : "", p.revents & POLLHUP ? " HUP" : "",
           p.revents & POLLRDHUP ? " RDHUP" : "", p.revents == 0 ? " none" : "");
}

/* Waits until the kernel shows one of `wanted` at least: nothing below is a race with the other end. */
static void until(int s, int wanted)
{
    struct pollfd p;
    p.fd = s;
    p.events = (short)wanted;
    for (int i = 0; i < 3000; i++) {
        p.revents = 0;
        if (CALL(poll)(&p, 1, 10) > 0 && (p.revents & (wanted | POLLERR | POLLHUP)) != 0)
            return;
    }
    printf("until: no event %x\n", (unsigned)wanted);
}

static int pending_error(int s)
{
    int e = -1;
    socklen_t len = sizeof e;
    CALL(getsockopt)(s, SOL_SOCKET, SO_ERROR, &e, &len);
    return e;
}

static volatile sig_atomic_t signals;

static void count_signal(int sig)
{
    (void)sig;
    signals++;
}

static void on_signal(int sig, int flags)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = count_signal;
    action.sa_flags = flags;
    sigaction(sig, &action, NULL);
}

static void alarm_ms(long ms)
{
    struct itimerval t;
    memset(&t, 0, sizeof t);
    t.it_value.tv_sec = ms / 1000;
    t.it_value.tv_usec = ms % 1000 * 1000;
    setitimer(ITIMER_REAL, &t, NULL);
}

/* A stream to the peer, which has accepted it. */
static int joined(void)
{
    int s = stream();
    address a = there(peer_ask('L', 0));
    if (CALL(connect)(s, SA(&a), sizeof a) < 0)
        perror("connect");
    peer_ask('A', 0);
    return s;
}

static void arguments(void)
{
    int pipes[2], s = stream();
    char byte = 0;
    address a = here(0);
    socklen_t len = sizeof a;
    struct iovec part = {&byte, 1};
    if (pipe(pipes) < 0)
        exit(1);
    show("socket, unknown domain", CALL(socket)(63, SOCK_STREAM, 0));
    show("socket, unknown type", CALL(socket)(FAMILY, 77, 0));
    show("socket, unknown protocol", CALL(socket)(FAMILY, SOCK_STREAM, 250));
    const char *names[] = {"-1", "a closed number", "a pipe"};
    int numbers[] = {-1, 1000, pipes[0]};
    for (int i = 0; i < 3; i++) {
        char label[64];
#define on(what, call)                                                 \
    do {                                                               \
        snprintf(label, sizeof label, "%s on %s", what, names[i]);     \
        show(label, call);                                             \
    } while (0)
        int n = numbers[i];
        on("bind", CALL(bind)(n, SA(&a), sizeof a));
        on("listen", CALL(listen)(n, 1));
        on("accept", CALL(accept)(n, NULL, NULL));
        on("connect", CALL(connect)(n, SA(&a), sizeof a));
        on("send", CALL(send)(n, &byte, 1, MSG_NOSIGNAL));
        on("recv", CALL(recv)(n, &byte, 1, 0));
        on("shutdown", CALL(shutdown)(n, SHUT_RDWR));
        if (n != -1)
            on("getsockname", getsockname_(n, SA(&a), &len));
        on("getpeername", CALL(getpeername)(n, SA(&a), &len));
        int e = 0;
        socklen_t elen = sizeof e;
        on("getsockopt", CALL(getsockopt)(n, SOL_SOCKET, SO_ERROR, &e, &elen));
        on("setsockopt", CALL(setsockopt)(n, SOL_SOCKET, SO_KEEPALIVE, &e, sizeof e));
        if (n != pipes[0]) {
            on("readv", CALL(readv)(n, &part, 1));
            on("writev", CALL(writev)(n, &part, 1));
            on("close", CALL(close)(n));
        }
#undef on
    }
    a = here(9);
    show("connect, no address", CALL(connect)(s, NULL, sizeof a));
    show("connect, bad address", CALL(connect)(s, (struct sockaddr *)16, sizeof a));
    show("connect, 0 bytes of address", CALL(connect)(s, SA(&a), 0));
    show("connect, short address", CALL(connect)(s, SA(&a), 8));
    show("connect, huge address", CALL(connect)(s, SA(&a), 100000));
    show("connect, port 0", (a = here(0), CALL(connect)(s, SA(&a), sizeof a)));
    CALL(close)(s);
    s = stream();
    a = here(9);
    SA(&a)->sa_family = AF_UNIX;
    show("connect, other family", CALL(connect)(s, SA(&a), sizeof a));
    show("bind, other family", CALL(bind)(s, SA(&a), sizeof a));
    a = here(0);
    show("bind, no address", CALL(bind)(s, NULL, sizeof a));
    show("bind, short address", CALL(bind)(s, SA(&a), 8));
    show("bind, huge address", CALL(bind)(s, SA(&a), 100000));
#ifdef USE_STP
    strcpy(a.sstp_system, "elsewhere");
#else
    a.sin_addr.s_addr = htonl(0xc0000201);
#endif
    show("bind, not this host's address", CALL(bind)(s, SA(&a), sizeof a));
    show("close", CALL(close)(s));
    show("close twice", CALL(close)(s));
    close(pipes[0]);
    close(pipes[1]);
}

static void fresh(void)
{
    int s = stream();
    char byte = 0;
    address a = here(0);
    socklen_t len = sizeof a;
    events("fresh: poll", s, 0);
    show("fresh: send", CALL(send)(s, &byte, 1, MSG_NOSIGNAL));
    signals = 0;
    on_signal(SIGPIPE, 0);
    show("fresh: send with SIGPIPE", CALL(send)(s, &byte, 1, 0));
    value("fresh: SIGPIPEs", signals);
    show("fresh: recv", CALL(recv)(s, &byte, 1, 0));
    show("fresh: recv without waiting", CALL(recv)(s, &byte, 1, MSG_DONTWAIT));
    show("fresh: shutdown", CALL(shutdown)(s, SHUT_WR));
    show("fresh: accept", CALL(accept)(s, NULL, NULL));
    show("fresh: getpeername", CALL(getpeername)(s, SA(&a), &len));
    value("fresh: port", local_port(s));
    value("fresh: pending error", pending_error(s));
    a = here(0);
    show("bind to a free port", CALL(bind)(s, SA(&a), sizeof a));
    value("bound: has a port", local_port(s) > 0);
    show("bind twice", CALL(bind)(s, SA(&a), sizeof a));
    a = here(local_port(s));
    int other = stream();
    show("bind a bound port", CALL(bind)(other, SA(&a), sizeof a));
    show("connect to a bound port", CALL(connect)(other, SA(&a), sizeof a));
    CALL(close)(s);
    CALL(close)(other);
    other = stream();
    show("bind a closed socket's port", CALL(bind)(other, SA(&a), sizeof a));
    show("bind: listen", CALL(listen)(other, 5));
    s = stream();
    show("bind a listener's port", CALL(bind)(s, SA(&a), sizeof a));
    show("listen without bind", CALL(listen)(s, 5));
    value("listen without bind: has a port", local_port(s) > 0);
    CALL(close)(s);
    CALL(close)(other);
}

static void listening(void)
{
    int l = listener(5), s;
    char byte = 0;
    address a = there(1);
    events("listening: poll", l, 0);
    nonblocking(l, 1);
    show("listening: accept", CALL(accept)(l, NULL, NULL));
    show("listening: connect", CALL(connect)(l, SA(&a), sizeof a));
    show("listening: send", CALL(send)(l, &byte, 1, MSG_NOSIGNAL));
    show("listening: recv", CALL(recv)(l, &byte, 1, MSG_DONTWAIT));
    show("listening: listen again", CALL(listen)(l, 7));
    show("listening: bind", (a = here(0), CALL(bind)(l, SA(&a), sizeof a)));
    show("listening: shutdown for writing", CALL(shutdown)(l, SHUT_WR));
    value("listening: pending error", pending_error(l));
    peer_ask('C', local_port(l));
    until(l, POLLIN);
    events("listening: poll with a connection", l, 0);
    socklen_t len = sizeof a;
    memset(&a, 0, sizeof a);
    s = CALL(accept)(l, SA(&a), &len);
    value("accept: a descriptor", s >= 0);
    value("accept: length of the address", len == sizeof a);
    value("accept: the peer's port", port_of(&a) == peer_ask('N', 0));
    value("accept: own port", local_port(s) == local_port(l));
    value("accept: blocking", (fcntl(s, F_GETFL) & O_NONBLOCK) == 0);
    events("accepted: poll", s, 0);
    show("accepted: listen", CALL(listen)(s, 5));
    show("accepted: bind", (a = here(0), CALL(bind)(s, SA(&a), sizeof a)));
    show("accepted: accept", CALL(accept)(s, NULL, NULL));
    CALL(close)(s);
    peer_ask('X', 0);
    peer_ask('C', local_port(l));
    until(l, POLLIN);
    len = 4;
    memset(&a, 1, sizeof a);
    s = CALL(accept)(l, SA(&a), &len);
    value("accept, short room: length told", len == sizeof a);
    value("accept, short room: rest untouched", ((char *)&a)[4] == 1);
    CALL(close)(s);
    peer_ask('X', 0);
    show("accept, bad length", (len = (socklen_t)-1, CALL(accept)(l, SA(&a), &len)));
    struct timeval limit = {0, 30000};
    nonblocking(l, 0);
    CALL(setsockopt)(l, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    show("accept with a time-out", CALL(accept)(l, NULL, NULL));
    limit.tv_usec = 0;
    CALL(setsockopt)(l, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    on_signal(SIGALRM, 0);
    alarm_ms(50);
    show("accept, interrupted", CALL(accept)(l, NULL, NULL));
    show("listening: shutdown for reading", CALL(shutdown)(l, SHUT_RD));
    show("accept after shutdown", CALL(accept)(l, NULL, NULL));
    show("shutdown after shutdown", CALL(shutdown)(l, SHUT_RD));
    value("after shutdown: has its port", local_port(l) > 0);
    show("after shutdown: listen", CALL(listen)(l, 5));
    peer_ask('C', local_port(l));
    until(l, POLLIN);
    s = CALL(accept)(l, NULL, NULL);
    value("after shutdown: accept", s >= 0);
    CALL(close)(s);
    peer_ask('X', 0);
    CALL(close)(l);
}

static void refused(void)
{
    int l = listener(1), free_port = local_port(l);
    (void)free_port;
    CALL(close)(l);
    int dead = peer_ask('P', 0);
    int s = stream();
    char byte = 0;
    address a = there(dead);
    show("refused: connect", CALL(connect)(s, SA(&a), sizeof a));
    value("refused: pending error", pending_error(s));
    a = there(peer_ask('L', 0));
    show("refused: connect again to a listener", CALL(connect)(s, SA(&a), sizeof a));
    peer_ask('A', 0);
    show("refused: then send", CALL(send)(s, &byte, 1, MSG_NOSIGNAL));
    value("refused: then the peer has it", peer_ask('R', 1));
    CALL(close)(s);
    peer_ask('X', 0);

    s = stream();
    nonblocking(s, 1);
    a = there(dead);
    errno = 0;
    int done = CALL(connect)(s, SA(&a), sizeof a);
    value("refused without waiting: told now or later", done < 0 && (errno == EINPROGRESS || errno == ECONNREFUSED));
    if (errno == EINPROGRESS) {
        until(s, POLLOUT);
        events("refused later: poll", s, 0);
        value("refused later: the error", pending_error(s) == ECONNREFUSED);
        value("refused later: once", pending_error(s));
        show("refused later: send", CALL(send)(s, &byte, 1, MSG_NOSIGNAL));
        show("refused later: connect tells", CALL(connect)(s, SA(&a), sizeof a));
        nonblocking(s, 0);
        show("refused later: connect again", CALL(connect)(s, SA(&a), sizeof a));
    } else {
        events("refused at once: poll", s, 0);
    }
    CALL(close)(s);
}

static void connecting(void)
{
    int s = stream(), ep = epoll_create1(0);
    struct epoll_event ev, got;
    address a = there(peer_ask('L', 0));
    socklen_t len = sizeof a;
    nonblocking(s, 1);
    memset(&ev, 0, sizeof ev);
    ev.events = EPOLLIN | EPOLLOUT | EPOLLET;
    epoll_ctl(ep, EPOLL_CTL_ADD, s, &ev);
    epoll_wait(ep, &got, 1, 0); /* what a fresh socket shows */
    show("without waiting: connect", CALL(connect)(s, SA(&a), sizeof a));
    int room = 40000;
    show("without waiting: send buffer", CALL(setsockopt)(s, SOL_SOCKET, SO_SNDBUF, &room, sizeof room));
    until(s, POLLOUT);
    memset(&got, 0, sizeof got);
    value("without waiting: epoll reports", epoll_wait(ep, &got, 1, 10000));
    value("without waiting: writable", (got.events & EPOLLOUT) != 0 && (got.events & (EPOLLERR | EPOLLHUP)) == 0);
    events("without waiting: poll", s, 0);
    value("without waiting: pending error", pending_error(s));
    len = sizeof room;
    CALL(getsockopt)(s, SOL_SOCKET, SO_SNDBUF, &room, &len);
    value("without waiting: send buffer as asked", room);
    len = sizeof a;
    show("without waiting: getpeername", CALL(getpeername)(s, SA(&a), &len));
    a = there(port_of(&a));
    show("without waiting: connect again", CALL(connect)(s, SA(&a), sizeof a));
    show("without waiting: connect once more", CALL(connect)(s, SA(&a), sizeof a));
    peer_ask('A', 0);
    value("without waiting: same ports", peer_ask('p', 0) == local_port(s));
    show("connected: listen", CALL(listen)(s, 1));
    show("connected: send", CALL(send)(s, "x", 1, MSG_NOSIGNAL));
    value("connected: the peer has it", peer_ask('R', 1));
    close(ep);
    CALL(close)(s);
    peer_ask('X', 0);

    s = stream();
    a = here(0);
    CALL(bind)(s, SA(&a), sizeof a);
    int own = local_port(s);
    a = there(peer_ask('L', 0));
    show("bound: connect", CALL(connect)(s, SA(&a), sizeof a));
    peer_ask('A', 0);
    value("bound: connected from that port", peer_ask('p', 0) == own && local_port(s) == own);
    CALL(close)(s);
    peer_ask('X', 0);

    s = stream();
    a = there(peer_ask('L', 0));
    CALL(connect)(s, SA(&a), sizeof a);
    SA(&a)->sa_family = AF_UNSPEC;
    show("connect to AF_UNSPEC", CALL(connect)(s, SA(&a), sizeof a));
    len = sizeof a;
    show("dissolved: getpeername", CALL(getpeername)(s, SA(&a), &len));
    CALL(close)(s);
    peer_ask('A', 0);
    peer_ask('X', 0);
}

static void bytes(void)
{
    int s = joined();
    char buf[64], *nowhere = (char *)16;
    static struct iovec parts[5000];
    volatile int less = -1;
    parts[0].iov_base = buf;
    parts[0].iov_len = 2;
    parts[1].iov_base = buf + 2;
    parts[1].iov_len = 3;
    events("idle: poll", s, 0);
    show("recv without waiting", CALL(recv)(s, buf, 1, MSG_DONTWAIT));
    show("send nothing", CALL(send)(s, buf, 0, MSG_NOSIGNAL));
    peer_ask('S', 10);
    until(s, POLLIN);
    events("bytes: poll", s, 0);
    show("recv to nowhere", CALL(recv)(s, nowhere, 1, 0));
    show("recv to no buffer", CALL(recv)(s, NULL, 1, 0));
    show("peek", CALL(recv)(s, buf, 4, MSG_PEEK));
    show("recv 1", CALL(recv)(s, buf, 1, 0));
    show("readv", CALL(readv)(s, parts, 2));
    show("readv of nothing", CALL(readv)(s, parts, 0));
    show("readv of too many", CALL(readv)(s, parts, 5000));
    show("readv of less than none", CALL(readv)(s, parts, less));
    show("recv more than there is", CALL(recv)(s, buf, sizeof buf, 0));
    peer_ask('S', 3);
    peer_ask('s', 5);
    show("recv all", CALL(recv)(s, buf, 8, MSG_WAITALL));
    show("send from nowhere", CALL(send)(s, nowhere, 1, MSG_NOSIGNAL));
    show("send from no buffer", CALL(send)(s, NULL, 1, MSG_NOSIGNAL));
    show("writev", CALL(writev)(s, parts, 2));
    show("writev of nothing", CALL(writev)(s, parts, 0));
    show("writev of too many", CALL(writev)(s, parts, 5000));
    show("writev of less than none", CALL(writev)(s, parts, less));
    value("writev: the peer has it", peer_ask('R', 5));
    show("recv with a time-out", ({
             struct timeval limit = {0, 30000};
             CALL(setsockopt)(s, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
             long got = CALL(recv)(s, buf, 1, 0);
             int e = errno;
             limit.tv_usec = 0;
             CALL(setsockopt)(s, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
             errno = e;
             got;
         }));
    on_signal(SIGALRM, 0);
    alarm_ms(50);
    show("recv, interrupted", CALL(recv)(s, buf, 1, 0));
    on_signal(SIGALRM, SA_RESTART);
    signals = 0;
    alarm_ms(30);
    peer_ask('t', 200); /* sends a byte later */
    show("recv, interrupted and restarted", CALL(recv)(s, buf, 1, 0));
    value("recv, restarted: signals", signals);
    fd_set r, w, x;
    struct timeval zero = {0, 0};
    FD_ZERO(&r);
    FD_ZERO(&w);
    FD_ZERO(&x);
    FD_SET(s, &r);
    FD_SET(s, &w);
    FD_SET(s, &x);
    show("select", CALL(select)(s + 1, &r, &w, &x, &zero));
    value("select: not readable", !FD_ISSET(s, &r) && FD_ISSET(s, &w) && !FD_ISSET(s, &x));
    int copy = dup(s);
    peer_ask('S', 2);
    show("recv on a copy of the descriptor", CALL(recv)(copy, buf, 1, 0));
    close(copy);
    show("recv on the first descriptor", CALL(recv)(s, buf, 1, 0));
    peer_ask('X', 0);
    CALL(close)(s);
}

static void full(void)
{
    static char block[65536];
    int s = joined();
    long sent = 0, got = 0;
    nonblocking(s, 1);
    do {
        /* Until nothing has been taken for a while: the way to the peer is long. */
        struct pollfd p = {s, POLLOUT, 0};
        while ((got = CALL(send)(s, block, sizeof block, MSG_NOSIGNAL)) > 0)
            sent += got;
        if (got < 0 && errno != EAGAIN)
            break;
        if (CALL(poll)(&p, 1, 1500) <= 0)
            break;
    } while (sent < 1L << 30);
    while (CALL(send)(s, block, 1, MSG_NOSIGNAL) == 1)
        sent++;
    value("full: took some", sent > 65536);
    show("full: send without waiting", CALL(send)(s, block, 1, MSG_NOSIGNAL));
    events("full: poll", s, 0);
    nonblocking(s, 0);
    struct timeval limit = {0, 50000};
    CALL(setsockopt)(s, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    show("full: send with a time-out", CALL(send)(s, block, sizeof block, MSG_NOSIGNAL));
    limit.tv_usec = 0;
    CALL(setsockopt)(s, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    on_signal(SIGALRM, 0);
    alarm_ms(50);
    show("full: send, interrupted", CALL(send)(s, block, sizeof block, MSG_NOSIGNAL));
    value("full: the peer takes all", peer_ask('R', sent) == sent);
    until(s, POLLOUT);
    events("emptied: poll", s, 0);
    CALL(close)(s);
    value("full: then the end", peer_ask('r', 0));
    peer_ask('X', 0);
}

static void endings(void)
{
    char buf[64];
    int s = joined();
    peer_ask('S', 3);
    peer_ask('W', 0);
    until(s, POLLRDHUP);
    events("peer's end: poll", s, 0);
    show("peer's end: recv", CALL(recv)(s, buf, sizeof buf, 0));
    show("peer's end: recv at the end", CALL(recv)(s, buf, sizeof buf, 0));
    show("peer's end: recv once more", CALL(recv)(s, buf, sizeof buf, 0));
    show("peer's end: peek", CALL(recv)(s, buf, sizeof buf, MSG_PEEK));
    show("peer's end: send", CALL(send)(s, buf, 4, MSG_NOSIGNAL));
    value("peer's end: the peer has it", peer_ask('R', 4));
    show("own end: shutdown", CALL(shutdown)(s, SHUT_WR));
    value("own end: the peer sees it", peer_ask('r', 0));
    show("own end: bad shutdown", CALL(shutdown)(s, 7));
    show("own end: send", CALL(send)(s, buf, 1, MSG_NOSIGNAL));
    signals = 0;
    on_signal(SIGPIPE, 0);
    show("own end: send with SIGPIPE", CALL(send)(s, buf, 1, 0));
    value("own end: SIGPIPEs", signals);
    CALL(close)(s);
    peer_ask('X', 0);

    s = joined();
    show("half: shutdown for writing", CALL(shutdown)(s, SHUT_WR));
    events("half: poll", s, 0);
    show("half: shutdown again", CALL(shutdown)(s, SHUT_WR));
    peer_ask('S', 2);
    show("half: recv", CALL(recv)(s, buf, sizeof buf, 0));
    CALL(close)(s);
    peer_ask('X', 0);

    s = joined();
    show("deaf: shutdown for reading", CALL(shutdown)(s, SHUT_RD));
    show("deaf: recv", CALL(recv)(s, buf, sizeof buf, 0));
    show("deaf: send", CALL(send)(s, buf, 1, MSG_NOSIGNAL));
    value("deaf: the peer has it", peer_ask('R', 1));
    CALL(close)(s);
    peer_ask('X', 0);

    s = joined();
    peer_ask('S', 5);
    peer_ask('X', 0);
    until(s, POLLRDHUP);
    show("peer closed: recv", CALL(recv)(s, buf, sizeof buf, 0));
    show("peer closed: recv at the end", CALL(recv)(s, buf, sizeof buf, 0));
    value("peer closed: pending error", pending_error(s));
    CALL(close)(s);

    s = joined();
    CALL(send)(s, buf, 10, MSG_NOSIGNAL);
    peer_ask('i', 0); /* it has arrived */
    peer_ask('X', 0); /* closed with bytes unread */
    until(s, POLLHUP);
    events("closed unread: poll", s, 0);
    show("closed unread: recv", CALL(recv)(s, buf, sizeof buf, 0));
    CALL(close)(s);

    s = joined();
    peer_ask('Z', 0);
    until(s, POLLHUP);
    events("reset: poll", s, 0);
    value("reset: pending error", pending_error(s) == ECONNRESET);
    signals = 0;
    show("reset: send", CALL(send)(s, buf, 1, 0));
    value("reset: SIGPIPEs", signals);
    CALL(close)(s);

    s = joined();
    peer_ask('Z', 0);
    until(s, POLLHUP);
    show("reset: send tells it", CALL(send)(s, buf, 1, MSG_NOSIGNAL));
    show("reset: send tells it once", CALL(send)(s, buf, 1, MSG_NOSIGNAL));
    CALL(close)(s);

    s = joined();
    peer_ask('S', 5);
    until(s, POLLIN);
    peer_die();
    until(s, POLLRDHUP);
    show("killed: recv what arrived", CALL(recv)(s, buf, sizeof buf, 0));
    show("killed: recv", CALL(recv)(s, buf, sizeof buf, 0));
    CALL(close)(s);

    s = joined();
    struct linger now = {1, 0};
    CALL(setsockopt)(s, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    show("no linger: close", CALL(close)(s));
    value("no linger: the peer reads", peer_ask('r', 0));
    peer_ask('X', 0);
}

static void forked(void)
{
    char buf[16];
    int status, s = joined();
    pid_t child = fork();
    if (child == 0) {
        int ok = CALL(send)(s, "child", 5, MSG_NOSIGNAL) == 5;
        ok = ok && CALL(recv)(s, buf, 2, MSG_WAITALL) == 2;
        ok = ok && CALL(close)(s) == 0;
        _exit(ok ? 0 : 1);
    }
    CALL(close)(s);
    value("forked: the peer hears the child", peer_ask('R', 5));
    peer_ask('S', 2);
    waitpid(child, &status, 0);
    value("forked: the child goes on", WIFEXITED(status) && WEXITSTATUS(status) == 0);
    value("forked: then the end", peer_ask('r', 0));
    peer_ask('X', 0);

    s = joined();
    child = fork();
    if (child == 0) {
        CALL(send)(s, "child", 5, MSG_NOSIGNAL);
        pause();
    }
    CALL(close)(s);
    value("forked and killed: the peer hears the child", peer_ask('R', 5));
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    value("forked and killed: the peer reads", peer_ask('r', 0));
    peer_ask('X', 0);

    s = joined();
    child = fork();
    if (child == 0)
        _exit(0); /* never used it */
    waitpid(child, &status, 0);
    show("forked aside: send", CALL(send)(s, "x", 1, MSG_NOSIGNAL));
    CALL(close)(s);
    value("forked aside: the peer has it", peer_ask('R', 1));
    value("forked aside: then the end", peer_ask('r', 0));
    peer_ask('X', 0);

    int l = listener(5);
    peer_ask('C', local_port(l));
    until(l, POLLIN);
    child = fork();
    if (child == 0) {
        s = CALL(accept)(l, NULL, NULL);
        int ok = s >= 0 && CALL(send)(s, "hello", 5, MSG_NOSIGNAL) == 5 && CALL(close)(s) == 0;
        CALL(close)(l);
        _exit(ok ? 0 : 1);
    }
    waitpid(child, &status, 0);
    value("child accepts: it did", WIFEXITED(status) && WEXITSTATUS(status) == 0);
    value("child accepts: the peer hears it", peer_ask('R', 5));
    value("child accepts: then the end", peer_ask('r', 0));
    peer_ask('X', 0);
    peer_ask('C', local_port(l));
    s = CALL(accept)(l, NULL, NULL);
    value("child accepted: the parent still does", s >= 0);
    CALL(close)(s);
    CALL(close)(l);
    peer_ask('X', 0);
}

static void options(void)
{
    static const struct {
        const char *name;
        int number;
    } all[] = {{"SO_TYPE", SO_TYPE},           {"SO_ACCEPTCONN", SO_ACCEPTCONN}, {"SO_ERROR", SO_ERROR},
               {"SO_KEEPALIVE", SO_KEEPALIVE}, {"SO_REUSEADDR", SO_REUSEADDR},   {"SO_OOBINLINE", SO_OOBINLINE},
               {"SO_DEBUG", SO_DEBUG},         {"SO_DONTROUTE", SO_DONTROUTE},   {"SO_BROADCAST", SO_BROADCAST},
               {"SO_PRIORITY", SO_PRIORITY},   {"SO_RCVLOWAT", SO_RCVLOWAT}};
    int s = stream(), v;
    char label[64];
    socklen_t len;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        v = -1;
        len = sizeof v;
        snprintf(label, sizeof label, "get %s", all[i].name);
        CALL(getsockopt)(s, SOL_SOCKET, all[i].number, &v, &len);
        value(label, v);
        v = 1;
        snprintf(label, sizeof label, "set %s", all[i].name);
        if (all[i].number != SO_DEBUG)
            show(label, CALL(setsockopt)(s, SOL_SOCKET, all[i].number, &v, sizeof v));
        v = -1;
        snprintf(label, sizeof label, "get %s again", all[i].name);
        CALL(getsockopt)(s, SOL_SOCKET, all[i].number, &v, &len);
        value(label, v);
    }
    show("unknown option", (len = sizeof v, CALL(getsockopt)(s, SOL_SOCKET, 9999, &v, &len)));
    show("set unknown option", CALL(setsockopt)(s, SOL_SOCKET, 9999, &v, sizeof v));
    show("unknown level", (len = sizeof v, CALL(getsockopt)(s, 7777, 1, &v, &len)));
    show("set, unknown level", CALL(setsockopt)(s, 7777, 1, &v, sizeof v));
    show("get to nowhere", CALL(getsockopt)(s, SOL_SOCKET, SO_TYPE, (void *)16, &len));
    show("get without a length", CALL(getsockopt)(s, SOL_SOCKET, SO_TYPE, &v, NULL));
    show("get with a bad length", (len = (socklen_t)-1, CALL(getsockopt)(s, SOL_SOCKET, SO_TYPE, &v, &len)));
    show("get into one byte", (len = 1, CALL(getsockopt)(s, SOL_SOCKET, SO_TYPE, &v, &len)));
    value("get into one byte: length", len);
    show("set from nowhere", CALL(setsockopt)(s, SOL_SOCKET, SO_KEEPALIVE, (void *)16, sizeof v));
    show("set from one byte", CALL(setsockopt)(s, SOL_SOCKET, SO_KEEPALIVE, &v, 1));
    show("set no delay", (v = 1, CALL(setsockopt)(s, IPPROTO_TCP, TCP_NODELAY, &v, sizeof v)));
    show("get no delay", (len = sizeof v, CALL(getsockopt)(s, IPPROTO_TCP, TCP_NODELAY, &v, &len)));
    value("no delay", v != 0);
    show("unknown TCP option", CALL(setsockopt)(s, IPPROTO_TCP, 9999, &v, sizeof v));
    CALL(close)(s);
    int l = listener(1);
    v = 0;
    CALL(getsockopt)(l, SOL_SOCKET, SO_ACCEPTCONN, &v, &len);
    value("a listener accepts", v);
    struct linger some = {1, 7};
    v = 1;
    CALL(setsockopt)(l, SOL_SOCKET, SO_LINGER, &some, sizeof some);
    CALL(setsockopt)(l, SOL_SOCKET, SO_KEEPALIVE, &v, sizeof v);
    peer_ask('C', local_port(l));
    s = CALL(accept)(l, NULL, NULL);
    memset(&some, 0, sizeof some);
    len = sizeof some;
    CALL(getsockopt)(s, SOL_SOCKET, SO_LINGER, &some, &len);
    value("accepted: inherits SO_LINGER", some.l_onoff * 100 + some.l_linger);
    len = sizeof v;
    v = 0;
    CALL(getsockopt)(s, SOL_SOCKET, SO_KEEPALIVE, &v, &len);
    value("accepted: inherits SO_KEEPALIVE", v);
    address a;
    show("getpeername, bad length", (len = (socklen_t)-1, CALL(getpeername)(s, SA(&a), &len)));
    show("getpeername to nowhere", (len = sizeof a, CALL(getpeername)(s, (struct sockaddr *)16, &len)));
    show("getsockname without a length", getsockname_(s, SA(&a), NULL));
    CALL(close)(s);
    CALL(close)(l);
    peer_ask('X', 0);
}

static void urgent(void)
{
    char buf[8];
    int s = joined(), inline_on = 1;
    peer_ask('S', 2);
    peer_ask('O', 0);
    until(s, POLLPRI);
    events("urgent: poll", s, 0);
    show("urgent: recv", CALL(recv)(s, buf, 1, MSG_OOB));
    value("urgent: the byte", buf[0]);
    show("urgent: recv twice", CALL(recv)(s, buf, 1, MSG_OOB));
    show("urgent: recv the others", CALL(recv)(s, buf, sizeof buf, 0));
    show("urgent: send", CALL(send)(s, "!", 1, MSG_OOB | MSG_NOSIGNAL));
    value("urgent: the peer has it", peer_ask('o', 0));
    CALL(close)(s);
    peer_ask('X', 0);
    s = joined();
    CALL(setsockopt)(s, SOL_SOCKET, SO_OOBINLINE, &inline_on, sizeof inline_on);
    peer_ask('S', 2);
    peer_ask('O', 0);
    until(s, POLLPRI);
    show("urgent inline: recv up to the mark", CALL(recv)(s, buf, sizeof buf, 0));
    show("urgent inline: recv the byte", CALL(recv)(s, buf, sizeof buf, 0));
    CALL(close)(s);
    peer_ask('X', 0);
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
#ifdef USE_STP
    uint32_t dead_ms = 3000; /* a killed program's engine is soon given up */
    if (STPsetopt(-1, STP_OPT_DEAD_MS, &dead_ms, sizeof dead_ms) < 0)
        perror("STPsetopt");
#endif
    peer_start();
    arguments();
    fresh();
    listening();
    refused();
    connecting();
    bytes();
    full();
    endings();
    forked();
    options();
    if (argc > 1 && strcmp(argv[1], "urgent") == 0)
        urgent();
    peer_stop();
    printf("done = 1\n");
    return 0;
}
