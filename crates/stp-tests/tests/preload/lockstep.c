/* Longer than a file should be: one sequence, told in one place. One sequence of socket calls for two roles, every result printed: run over plain TCP and over STP, the output must
 * be the same.
 *
 * - lockstep server|client OWN PEER PORT: the two hosts as they are to be seen; PORT and the two after it are the server's.
 * - A step that depends on the other role waits for what that role does (a byte, an end, a poll event), never for
 *   time; so every line is the same in every run.
 * - Names are printed as what they mean: `host` for an address of one of the two, P+0.. for the server's ports.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static int server, port;
static const char *own, *other;
static const char *scene = "-";

static void say(const char *format, ...) {
    va_list list;
    printf("%s: ", scene);
    va_start(list, format);
    vprintf(format, list);
    va_end(list);
    putchar('\n');
    fflush(stdout);
}

static const char *outcome(long result) {
    static char text[4][64];
    static int turn;
    char *place = text[turn++ & 3];
    if (result < 0)
        snprintf(place, 64, "%s", strerrorname_np(errno));
    else
        snprintf(place, 64, "%ld", result);
    return place;
}
#define R(call) (errno = 0, report(#call, (long)(call)))
static long report(const char *what, long result) {
    int saved = errno;
    say("%s = %s", what, outcome(result));
    errno = saved;
    return result;
}
/* Descriptors have numbers that mean nothing. */
#define F(call) (errno = 0, report_fd(#call, (int)(call)))
static int report_fd(const char *what, int fd) {
    int saved = errno;
    say("%s = %s", what, fd >= 0 ? "fd" : outcome(fd));
    errno = saved;
    return fd;
}

static void fatal(const char *what) {
    printf("%s: FATAL %s: %s\n", scene, what, strerror(errno));
    exit(3);
}

/* A host's address as text. */
static const char *resolve(const char *host) {
    struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *found;
    int error = getaddrinfo(host, NULL, &hints, &found);
    char text[64];
    if (error) {
        printf("FATAL %s: %s\n", host, gai_strerror(error));
        exit(3);
    }
    inet_ntop(AF_INET, &((struct sockaddr_in *)(void *)found->ai_addr)->sin_addr, text, sizeof text);
    freeaddrinfo(found);
    return strdup(text);
}

static struct sockaddr_in v4(const char *ip, int at) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(at)};
    if (inet_pton(AF_INET, ip, &address.sin_addr) != 1)
        fatal(ip);
    return address;
}

static struct sockaddr_in6 v6(const char *ip, int at) {
    struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons(at)};
    if (inet_pton(AF_INET6, ip, &address.sin6_addr) != 1)
        fatal(ip);
    return address;
}

static const char *word(const char *ip) {
    const char *bare = strncmp(ip, "::ffff:", 7) ? ip : ip + 7;
    const char *mapped = bare == ip ? "" : "mapped-";
    static char text[80];
    if (!strcmp(bare, own) || !strcmp(bare, other))
        snprintf(text, sizeof text, "%shost", mapped);
    else
        snprintf(text, sizeof text, "%s", ip);
    return text;
}

static void name(const char *what, const struct sockaddr_storage *at, socklen_t len) {
    char ip[64] = "?", number[16];
    int found = -1;
    if (at->ss_family == AF_INET) {
        const struct sockaddr_in *in = (const void *)at;
        inet_ntop(AF_INET, &in->sin_addr, ip, sizeof ip);
        found = ntohs(in->sin_port);
    } else if (at->ss_family == AF_INET6) {
        const struct sockaddr_in6 *in = (const void *)at;
        inet_ntop(AF_INET6, &in->sin6_addr, ip, sizeof ip);
        found = ntohs(in->sin6_port);
    }
    if (found >= port && found < port + 3)
        snprintf(number, sizeof number, "P+%d", found - port);
    else
        snprintf(number, sizeof number, "%s", found > 0 ? "free" : "0");
    say("%s = family %d len %d %s:%s", what, at->ss_family, (int)len, word(ip), number);
}

static void names(int fd) {
    struct sockaddr_storage at;
    socklen_t len = sizeof at;
    if (!R(getsockname(fd, (void *)&at, &len)))
        name("sockname", &at, len);
    len = sizeof at;
    if (!R(getpeername(fd, (void *)&at, &len)))
        name("peername", &at, len);
}

/* The other end's idea of this connection is the mirror of ours: both send theirs and compare. */
static void mirror(int fd) {
    char text[2][200] = {{0}, {0}}, theirs[400] = {0}, ours[400], ip[64], number[16];
    struct sockaddr_storage at;
    for (int peer = 0; peer < 2; peer++) {
        socklen_t len = sizeof at;
        if (peer ? getpeername(fd, (void *)&at, &len) : getsockname(fd, (void *)&at, &len))
            fatal("name");
        if (getnameinfo((void *)&at, len, ip, sizeof ip, number, sizeof number, NI_NUMERICHOST | NI_NUMERICSERV))
            fatal("getnameinfo");
        snprintf(text[peer], 200, "%s %s", strncmp(ip, "::ffff:", 7) ? ip : ip + 7, number);
    }
    memset(ours, 0, sizeof ours);
    snprintf(ours, sizeof ours, "%s|%s", text[1], text[0]);
    char mine[400] = {0};
    snprintf(mine, sizeof mine, "%s|%s", text[0], text[1]);
    if (send(fd, mine, sizeof mine, MSG_NOSIGNAL) != sizeof mine)
        fatal("send of names");
    if (recv(fd, theirs, sizeof theirs, MSG_WAITALL) != sizeof theirs)
        fatal("names of the other end");
    if (strcmp(ours, theirs))
        say("mirror: NO, here %s, there %s", ours, theirs);
    else
        say("mirror: yes");
}

static void events(const char *what, short revents) {
    say("%s =%s%s%s%s%s%s%s", what, revents & POLLIN ? " IN" : "", revents & POLLPRI ? " PRI" : "",
        revents & POLLOUT ? " OUT" : "", revents & POLLRDHUP ? " RDHUP" : "", revents & POLLERR ? " ERR" : "",
        revents & POLLHUP ? " HUP" : "", revents & POLLNVAL ? " NVAL" : "");
}

/* Waits for one of these events, then says which of `all` there are. */
static void await(int fd, short wanted, short all) {
    struct pollfd entry = {fd, wanted, 0};
    int count;
    while ((count = poll(&entry, 1, 60000)) < 0 && errno == EINTR)
        ;
    if (count == 0) {
        errno = ETIMEDOUT;
        fatal("poll");
    }
    entry.events = all;
    /* A reset shows its error an instant before its end, on TCP as well. */
    for (int looks = 0; looks < 1000000; looks++) {
        poll(&entry, 1, 0);
        if (!(entry.revents & POLLERR) || !(all & POLLRDHUP) || entry.revents & POLLRDHUP)
            break;
    }
    events("poll", entry.revents);
}

/* One byte one way. */
static void tell(int fd, char token) {
    if (send(fd, &token, 1, MSG_NOSIGNAL) != 1)
        fatal("telling");
}

static void hear(int fd, char token) {
    char got = 0;
    if (recv(fd, &got, 1, MSG_WAITALL) != 1 || got != token)
        fatal("hearing");
}

/* Both roles are at this point: the client says so first. */
static void meet(int fd, char token) {
    if (!server)
        tell(fd, token);
    hear(fd, token);
    if (server)
        tell(fd, token);
}

static int soerror(int fd) {
    int value = -1;
    socklen_t len = sizeof value;
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &value, &len))
        return -1;
    say("SO_ERROR = %s", value ? strerrorname_np(value) : "0");
    return value;
}

static int listener;

/* A connection of this scene: the server's accepted socket, the client's connected one. */
static int pair(void) {
    if (server) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0)
            fatal("accept");
        return fd;
    }
    struct sockaddr_in to = v4(other, port);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (void *)&to, sizeof to))
        fatal("connect");
    return fd;
}

static void scene_blocking(void) {
    scene = "blocking";
    char buffer[64];
    if (server) {
        struct sockaddr_storage from;
        socklen_t len = sizeof from;
        int fd = F(accept(listener, (void *)&from, &len));
        name("accepted", &from, len);
        names(fd);
        mirror(fd);
        R(recv(fd, buffer, 5, MSG_WAITALL));
        R(send(fd, "world", 5, 0));
        R(recv(fd, buffer, 5, 0));
        R(send(fd, "later", 5, 0));
        R(close(fd));
    } else {
        struct sockaddr_in to = v4(other, port);
        int fd = F(socket(AF_INET, SOCK_STREAM, 0));
        struct sockaddr_storage at;
        socklen_t len = sizeof at;
        R(getsockname(fd, (void *)&at, &len));
        name("fresh", &at, len);
        R(getpeername(fd, (void *)&at, &len));
        R(connect(fd, (void *)&to, sizeof to));
        names(fd);
        mirror(fd);
        R(connect(fd, (void *)&to, sizeof to));
        R(send(fd, "hello", 5, 0));
        R(recv(fd, buffer, 5, MSG_WAITALL));
        R(shutdown(fd, SHUT_WR));
        R(send(fd, "x", 1, MSG_NOSIGNAL));
        R(recv(fd, buffer, 5, MSG_WAITALL));
        R(recv(fd, buffer, 5, 0));
        await(fd, POLLHUP, POLLIN | POLLOUT | POLLRDHUP);
        R(close(fd));
    }
}

static void scene_nonblocking(void) {
    scene = "nonblocking";
    if (server) {
        int fd = pair();
        meet(fd, 'n');
        close(fd);
        return;
    }
    struct sockaddr_in to = v4(other, port);
    int fd = F(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
    int one = 1, value = 0;
    socklen_t len = sizeof value;
    R(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one));
    R(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one));
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET};
    R(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event));
    R(connect(fd, (void *)&to, sizeof to));
    do
        epoll_wait(epoll, &event, 1, 60000);
    while (!(event.events & EPOLLOUT) || event.events & EPOLLHUP);
    say("epoll = %#x", event.events);
    soerror(fd);
    names(fd);
    R(connect(fd, (void *)&to, sizeof to));
    R(connect(fd, (void *)&to, sizeof to));
    R(getsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &value, &len));
    say("SO_REUSEADDR = %d", value);
    R(getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &value, &len));
    say("TCP_NODELAY = %d", value);
    R(getsockopt(fd, SOL_SOCKET, SO_TYPE, &value, &len));
    say("SO_TYPE = %d", value);
    R(getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &value, &len));
    say("SO_DOMAIN = %d", value);
    R(getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &value, &len));
    say("SO_ACCEPTCONN = %d", value);
    fcntl(fd, F_SETFL, 0);
    meet(fd, 'n');
    R(close(fd));
    close(epoll);
}

static void scene_refused(void) {
    scene = "refused";
    if (server) {
        int fd = pair();
        meet(fd, 'r');
        close(fd);
        return;
    }
    struct sockaddr_in nobody = v4(other, port + 2), to = v4(other, port);
    int fd = F(socket(AF_INET, SOCK_STREAM, 0));
    R(connect(fd, (void *)&nobody, sizeof nobody));
    soerror(fd);
    struct sockaddr_storage at;
    socklen_t len = sizeof at;
    R(getpeername(fd, (void *)&at, &len));
    R(connect(fd, (void *)&nobody, sizeof nobody));
    R(connect(fd, (void *)&to, sizeof to));
    meet(fd, 'r');
    R(close(fd));
    /* The same without blocking. */
    fd = F(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
    R(connect(fd, (void *)&nobody, sizeof nobody));
    await(fd, 0, POLLIN | POLLOUT | POLLRDHUP);
    soerror(fd);
    soerror(fd);
    R(connect(fd, (void *)&nobody, sizeof nobody));
    R(connect(fd, (void *)&nobody, sizeof nobody));
    await(fd, 0, 0);
    R(connect(fd, (void *)&nobody, sizeof nobody));
    R(close(fd));
    fd = F(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
    R(connect(fd, (void *)&nobody, sizeof nobody));
    await(fd, 0, 0);
    char byte;
    R(getpeername(fd, (void *)&at, &len));
    soerror(fd);
    R(send(fd, "x", 1, MSG_NOSIGNAL));
    R(recv(fd, &byte, 1, 0));
    R(close(fd));
    struct sockaddr_in zero = v4(other, 0);
    fd = F(socket(AF_INET, SOCK_STREAM, 0));
    R(connect(fd, (void *)&zero, sizeof zero));
    R(close(fd));
}

static void scene_resets(void) {
    char buffer[64];
    scene = "linger 0";
    int fd = pair();
    if (server) {
        struct linger hard = {1, 0};
        R(setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard));
        meet(fd, 'l');
        R(close(fd));
    } else {
        meet(fd, 'l');
        await(fd, 0, POLLIN | POLLOUT | POLLRDHUP);
        R(recv(fd, buffer, sizeof buffer, 0));
        R(recv(fd, buffer, sizeof buffer, 0));
        R(send(fd, "x", 1, MSG_NOSIGNAL));
        soerror(fd);
        R(close(fd));
    }
    scene = "unread";
    fd = pair();
    if (server) {
        await(fd, POLLIN, POLLIN | POLLOUT);
        R(close(fd));
    } else {
        R(send(fd, "never read", 10, 0));
        await(fd, 0, POLLIN | POLLOUT | POLLRDHUP);
        soerror(fd);
        R(recv(fd, buffer, sizeof buffer, 0));
        R(close(fd));
    }
    scene = "pipe";
    fd = pair();
    if (server) {
        R(close(fd));
    } else {
        await(fd, POLLIN, POLLIN | POLLOUT | POLLRDHUP);
        R(recv(fd, buffer, sizeof buffer, 0));
        R(send(fd, "x", 1, MSG_NOSIGNAL));
        await(fd, 0, POLLIN | POLLOUT | POLLRDHUP);
        R(send(fd, "x", 1, MSG_NOSIGNAL));
        signal(SIGPIPE, SIG_IGN);
        R(write(fd, "x", 1));
        R(close(fd));
    }
}

static void scene_reading(void) {
    scene = "reading";
    char buffer[64] = {0};
    int fd = pair(), count = -1;
    if (server) {
        R(recv(fd, buffer, 4, MSG_PEEK | MSG_WAITALL));
        say("peeked %.4s", buffer);
        R(ioctl(fd, FIONREAD, &count));
        say("FIONREAD %d", count);
        R(recv(fd, buffer, 2, 0));
        R(recv(fd, buffer, 64, MSG_DONTWAIT));
        say("read %.2s", buffer);
        R(recv(fd, buffer, 64, MSG_DONTWAIT));
        struct timeval limit = {0, 20000};
        R(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
        R(recv(fd, buffer, 64, 0));
        limit.tv_usec = 0;
        R(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
        tell(fd, 'R');
    } else {
        R(send(fd, "peek", 4, 0));
        hear(fd, 'R');
    }
    R(shutdown(fd, SHUT_RDWR));
    R(recv(fd, buffer, 1, 0));
    R(close(fd));
}

static void scene_urgent(void) {
    scene = "urgent";
    char buffer[64] = {0};
    int fd = pair(), mark = -1;
    if (server) {
        await(fd, POLLPRI, POLLIN | POLLPRI | POLLOUT);
        R(recv(fd, buffer, 1, MSG_OOB));
        say("urgent %.1s", buffer);
        R(recv(fd, buffer, 1, MSG_OOB));
        R(recv(fd, buffer, 64, 0));
        say("before the mark %.6s", buffer);
        R(ioctl(fd, SIOCATMARK, &mark));
        say("at mark %d", mark);
        R(recv(fd, buffer, 5, MSG_WAITALL));
        say("after %.5s", buffer);
        R(ioctl(fd, SIOCATMARK, &mark));
        say("at mark %d", mark);
        int one = 1;
        R(setsockopt(fd, SOL_SOCKET, SO_OOBINLINE, &one, sizeof one));
        tell(fd, 'O');
        await(fd, POLLPRI, POLLIN | POLLPRI | POLLOUT);
        R(recv(fd, buffer, 64, 0));
        R(ioctl(fd, SIOCATMARK, &mark));
        say("at mark %d", mark);
        R(recv(fd, buffer, 64, 0));
        say("inline %.1s", buffer);
        tell(fd, 'o');
    } else {
        R(send(fd, "before", 6, 0));
        R(send(fd, "!", 1, MSG_OOB));
        R(send(fd, "after", 5, 0));
        hear(fd, 'O');
        R(send(fd, "seven b", 7, 0));
        R(send(fd, "?", 1, MSG_OOB));
        hear(fd, 'o');
    }
    R(shutdown(fd, SHUT_RDWR));
    R(recv(fd, buffer, 1, 0));
    R(close(fd));
}

static void scene_bulk(void) {
    scene = "bulk";
    enum { SIZE = 3 << 20 };
    int fd = pair();
    unsigned char *bytes = malloc(SIZE), *back = malloc(SIZE);
    unsigned long sum = 5381;
    for (int at = 0; at < SIZE; at++)
        bytes[at] = (unsigned char)(at * 2654435761u >> 13);
    pid_t child = fork();
    if (child < 0)
        fatal("fork");
    if (child == 0) {
        /* The child writes: by sendfile on one side, in pieces on the other. */
        if (server) {
            FILE *file = tmpfile();
            off_t from = 0;
            if (!file || fwrite(bytes, 1, SIZE, file) != SIZE || fflush(file))
                fatal("file");
            while (from < SIZE)
                if (sendfile(fd, fileno(file), &from, SIZE - from) <= 0)
                    fatal("sendfile");
        } else {
            for (int at = 0; at < SIZE;) {
                ssize_t wrote = write(fd, bytes + at, SIZE - at < 70001 ? SIZE - at : 70001);
                if (wrote <= 0)
                    fatal("write");
                at += wrote;
            }
        }
        shutdown(fd, SHUT_WR);
        _exit(0);
    }
    int at = 0;
    for (ssize_t got; (got = read(fd, back + at, SIZE - at)) > 0 && at < SIZE;)
        at += got;
    for (int i = 0; i < at; i++)
        sum = sum * 33 + back[i];
    say("read %d bytes, %s, sum %lx", at, memcmp(bytes, back, SIZE) ? "DIFFERENT" : "same", sum);
    char byte;
    R(read(fd, &byte, 1));
    int status = -1;
    waitpid(child, &status, 0);
    say("child %d", status);
    R(close(fd));
    free(bytes);
    free(back);
}

static void scene_mistakes(void) {
    scene = "mistakes";
    if (server)
        return;
    struct sockaddr_in to = v4(other, port), mine = v4(own, 0);
    struct sockaddr_in6 to6 = v6("::1", port);
    struct sockaddr_storage at;
    socklen_t len = sizeof at;
    void *bad = (void *)-1;
    R(connect(-1, (void *)&to, sizeof to));
    R(connect(0x7fffffff, (void *)&to, sizeof to));
    int file = open("/dev/null", O_RDWR), fd = F(socket(AF_INET, SOCK_STREAM, 0));
    R(connect(file, (void *)&to, sizeof to));
    R(bind(file, (void *)&mine, sizeof mine));
    R(listen(file, 1));
    R(accept(file, NULL, NULL));
    R(getsockname(file, (void *)&at, &len));
    R(connect(fd, (void *)&to, 3));
    R(connect(fd, (void *)&to, 0));
    R(connect(fd, (void *)&to, 100000));
    R(connect(fd, (void *)&to, (socklen_t)-1));
    R(connect(fd, NULL, sizeof to));
    R(connect(fd, bad, sizeof to));
    R(connect(fd, (void *)&to6, sizeof to6));
    R(bind(fd, (void *)&to6, sizeof to6));
    R(bind(fd, (void *)&mine, 3));
    R(bind(fd, bad, sizeof mine));
    R(bind(fd, NULL, sizeof mine));
    R(accept(fd, NULL, NULL));
    R(accept4(fd, NULL, NULL, 0x7000000));
    R(getsockname(fd, bad, &len));
    R(getsockname(fd, (void *)&at, bad));
    R(getsockname(fd, (void *)&at, (void *)1));
    R(getpeername(fd, (void *)&at, (void *)7));
    R(getsockname(fd, NULL, &len));
    len = (socklen_t)-1;
    R(getsockname(fd, (void *)&at, &len));
    R(getsockopt(fd, SOL_SOCKET, SO_ERROR, bad, &len));
    len = 4;
    R(getsockopt(fd, SOL_SOCKET, SO_ERROR, NULL, &len));
    R(getsockopt(fd, SOL_SOCKET, SO_ERROR, &at, NULL));
    len = 1;
    memset(&at, 0x55, sizeof at);
    R(getsockopt(fd, SOL_SOCKET, SO_ERROR, &at, &len));
    say("short SO_ERROR %02x %02x", ((unsigned char *)&at)[0], ((unsigned char *)&at)[1]);
    /* A name cut to the room that there is. */
    R(bind(fd, (void *)&mine, sizeof mine));
    R(bind(fd, (void *)&mine, sizeof mine));
    memset(&at, 0x55, sizeof at);
    len = 6;
    R(getsockname(fd, (void *)&at, &len));
    say("cut name: len %d, %02x at 6", (int)len, ((unsigned char *)&at)[6]);
    len = sizeof at;
    R(getsockname(fd, (void *)&at, &len));
    name("bound", &at, len);
    R(listen(fd, 5));
    R(listen(fd, 9));
    R(connect(fd, (void *)&to, sizeof to));
    R(fcntl(fd, F_SETFL, O_NONBLOCK));
    R(accept(fd, NULL, NULL));
    /* The port is taken. */
    int second = F(socket(AF_INET, SOCK_STREAM, 0));
    R(getsockname(fd, (void *)&mine, (len = sizeof mine, &len)));
    R(bind(second, (void *)&mine, sizeof mine));
    mine.sin_addr.s_addr = INADDR_ANY;
    R(bind(second, (void *)&mine, sizeof mine));
    R(close(fd));
    R(bind(second, (void *)&mine, sizeof mine));
    R(listen(second, 0));
    R(close(second));
    /* Listening without binding, and an address that is not here. */
    fd = F(socket(AF_INET, SOCK_STREAM, 0));
    R(listen(fd, 1));
    len = sizeof at;
    R(getsockname(fd, (void *)&at, &len));
    name("unbound listener", &at, len);
    R(close(fd));
    fd = F(socket(AF_INET, SOCK_STREAM, 0));
    struct sockaddr_in elsewhere = v4("192.0.2.1", 0);
    R(bind(fd, (void *)&elsewhere, sizeof elsewhere));
    R(close(fd));
    /* Other kinds of sockets are the kernel's. */
    fd = F(socket(AF_INET, SOCK_DGRAM, 0));
    struct sockaddr_in loop = v4("127.0.0.1", port);
    R(connect(fd, (void *)&loop, sizeof loop));
    len = sizeof at;
    R(getpeername(fd, (void *)&at, &len));
    R(listen(fd, 1));
    R(close(fd));
    fd = F(socket(AF_UNIX, SOCK_STREAM, 0));
    R(connect(fd, (void *)&to, sizeof to));
    len = sizeof at;
    R(getsockname(fd, (void *)&at, &len));
    say("unix len %d", (int)len);
    R(close(fd));
    close(file);
}

static void scene_again(void) {
    scene = "again";
    /* One socket for one connection after the other. */
    if (server) {
        for (int turn = 0; turn < 2; turn++) {
            int fd = pair();
            meet(fd, 'a');
            char byte;
            recv(fd, &byte, 1, 0);
            close(fd);
        }
        return;
    }
    struct sockaddr_in to = v4(other, port);
    struct sockaddr none = {.sa_family = AF_UNSPEC};
    struct sockaddr_storage at;
    socklen_t len = sizeof at;
    int fd = F(socket(AF_INET, SOCK_STREAM, 0));
    R(connect(fd, (void *)&to, sizeof to));
    meet(fd, 'a');
    R(connect(fd, &none, sizeof none));
    R(getpeername(fd, (void *)&at, &len));
    R(connect(fd, (void *)&to, sizeof to));
    meet(fd, 'a');
    R(close(fd));
}

static void scene_fastopen(void) {
    scene = "fastopen";
    char buffer[8] = {0};
    if (server) {
        for (int turn = 0; turn < 3; turn++) {
            int fd = pair();
            recv(fd, buffer, 4, MSG_WAITALL);
            say("got %.4s", buffer);
            meet(fd, 'f');
            close(fd);
        }
        return;
    }
    struct sockaddr_in to = v4(other, port);
    int fd = F(socket(AF_INET, SOCK_STREAM, 0)), one = 1;
    R(sendto(fd, "fast", 4, MSG_FASTOPEN, (void *)&to, sizeof to));
    meet(fd, 'f');
    R(sendto(fd, "more", 4, MSG_FASTOPEN | MSG_NOSIGNAL, (void *)&to, sizeof to));
    R(close(fd));
    fd = F(socket(AF_INET, SOCK_STREAM, 0));
    struct iovec part = {"open", 4};
    struct msghdr message = {.msg_name = &to, .msg_namelen = sizeof to, .msg_iov = &part, .msg_iovlen = 1};
    R(sendmsg(fd, &message, MSG_FASTOPEN));
    meet(fd, 'f');
    R(close(fd));
    fd = F(socket(AF_INET, SOCK_STREAM, 0));
    R(setsockopt(fd, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, &one, sizeof one));
    R(connect(fd, (void *)&to, sizeof to));
    R(send(fd, "conn", 4, 0));
    meet(fd, 'f');
    R(close(fd));
    /* An address on a stream that is not connected, without the flag. */
    fd = F(socket(AF_INET, SOCK_STREAM, 0));
    R(sendto(fd, "none", 4, MSG_NOSIGNAL, (void *)&to, sizeof to));
    R(close(fd));
}

static void scene_bound(void) {
    scene = "bound";
    /* From a port of the client's choice, bound to its own address and to all of them. */
    struct sockaddr_storage at;
    for (int turn = 0; turn < 2; turn++) {
        if (server) {
            socklen_t len = sizeof at;
            int fd = F(accept4(listener, (void *)&at, &len, SOCK_CLOEXEC));
            mirror(fd);
            close(fd);
            continue;
        }
        struct sockaddr_in to = v4(other, port), mine = v4(turn ? "0.0.0.0" : own, 0);
        int fd = F(socket(AF_INET, SOCK_STREAM, 0));
        R(bind(fd, (void *)&mine, sizeof mine));
        R(connect(fd, (void *)&to, sizeof to));
        names(fd);
        mirror(fd);
        close(fd);
    }
}

static void scene_six(void) {
    scene = "six";
    struct sockaddr_storage at;
    socklen_t len = sizeof at;
    char mapped[64];
    snprintf(mapped, sizeof mapped, "::ffff:%s", other);
    if (server) {
        int only = 0;
        int six = F(socket(AF_INET6, SOCK_STREAM, 0)), one = 1;
        struct sockaddr_in6 any = v6("::", port + 1);
        R(setsockopt(six, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one));
        R(setsockopt(six, IPPROTO_IPV6, IPV6_V6ONLY, &only, sizeof only));
        R(bind(six, (void *)&any, sizeof any));
        R(listen(six, 5));
        int first = pair();
        meet(first, '6');
        for (int turn = 0; turn < 2; turn++) {
            len = sizeof at;
            int fd = F(accept(six, (void *)&at, &len));
            name("accepted", &at, len);
            names(fd);
            mirror(fd);
            close(fd);
        }
        close(first);
        R(close(six));
        return;
    }
    int first = pair();
    meet(first, '6');
    struct sockaddr_in plain = v4(other, port + 1);
    int fd = F(socket(AF_INET, SOCK_STREAM, 0));
    R(connect(fd, (void *)&plain, sizeof plain));
    mirror(fd);
    close(fd);
    struct sockaddr_in6 to = v6(mapped, port + 1), nobody = v6(mapped, port + 2);
    fd = F(socket(AF_INET6, SOCK_STREAM, 0));
    R(connect(fd, (void *)&nobody, sizeof nobody));
    R(connect(fd, (void *)&plain, sizeof plain));
    R(connect(fd, (void *)&to, sizeof to));
    names(fd);
    mirror(fd);
    close(fd);
    int one = 1;
    fd = F(socket(AF_INET6, SOCK_STREAM, 0));
    R(setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one));
    R(connect(fd, (void *)&to, sizeof to));
    close(fd);
    close(first);
}

static void scene_listener_goes(void) {
    scene = "listener goes";
    struct sockaddr_in at = v4(server ? own : other, port + 1);
    int one = 1;
    if (server) {
        int fd = F(socket(AF_INET, SOCK_STREAM, 0));
        R(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one));
        R(bind(fd, (void *)&at, sizeof at));
        R(listen(fd, 5));
        int first = pair();
        meet(first, '1');
        int got = F(accept(fd, NULL, NULL));
        meet(got, '2');
        R(close(fd));
        meet(first, '3');
        meet(got, '4');
        close(got);
        close(first);
        return;
    }
    int first = pair();
    meet(first, '1');
    int fd = F(socket(AF_INET, SOCK_STREAM, 0));
    R(connect(fd, (void *)&at, sizeof at));
    meet(fd, '2');
    meet(first, '3');
    int late = F(socket(AF_INET, SOCK_STREAM, 0));
    R(connect(late, (void *)&at, sizeof at));
    meet(fd, '4');
    close(late);
    close(fd);
    close(first);
}

static void scene_processes(void) {
    scene = "processes";
    char byte = 0;
    if (server) {
        /* Two workers on one listener, a connection for each, in whatever order. */
        pid_t workers[2];
        for (int turn = 0; turn < 2; turn++) {
            if ((workers[turn] = fork()) == 0) {
                int fd = accept(listener, NULL, NULL);
                if (fd < 0 || read(fd, &byte, 1) != 1 || write(fd, &byte, 1) != 1)
                    _exit(1);
                _exit(0);
            }
        }
        for (int turn = 0; turn < 2; turn++) {
            int status = -1;
            waitpid(workers[turn], &status, 0);
            say("worker %d", status);
        }
        /* A descriptor handed to a child by another socket. */
        int ways[2], fd = pair();
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, ways))
            fatal("socketpair");
        pid_t child = fork();
        char space[CMSG_SPACE(sizeof(int))] = {0};
        struct iovec part = {&byte, 1};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
        if (child == 0) {
            close(fd);
            if (recvmsg(ways[1], &message, 0) != 1)
                _exit(1);
            memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
            scene = "processes, passed";
            names(fd);
            meet(fd, 'p');
            _exit(0);
        }
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(head), &fd, sizeof fd);
        if (sendmsg(ways[0], &message, 0) != 1)
            fatal("sendmsg");
        close(fd);
        int status = -1;
        waitpid(child, &status, 0);
        say("child %d", status);
        close(ways[0]);
        close(ways[1]);
        return;
    }
    int first = pair(), second = pair();
    if (write(first, "x", 1) != 1 || write(second, "y", 1) != 1)
        fatal("write");
    R(read(first, &byte, 1));
    R(read(second, &byte, 1));
    R(read(first, &byte, 1));
    R(read(second, &byte, 1));
    close(first);
    close(second);
    int fd = pair();
    int copy = dup2(fd, 77);
    close(fd);
    names(copy);
    meet(copy, 'p');
    R(read(copy, &byte, 1));
    close(copy);
}

static void scene_select(void) {
    scene = "select";
    char byte;
    int fd = pair();
    fd_set in, out;
    if (server) {
        FD_ZERO(&in);
        FD_SET(fd, &in);
        R(select(fd + 1, &in, NULL, NULL, NULL));
        R(read(fd, &byte, 1));
        await(fd, POLLRDHUP, POLLIN | POLLOUT | POLLRDHUP);
        R(read(fd, &byte, 1));
        R(write(fd, "z", 1));
    } else {
        FD_ZERO(&out);
        FD_SET(fd, &out);
        R(select(fd + 1, NULL, &out, NULL, NULL));
        R(write(fd, "w", 1));
        R(shutdown(fd, SHUT_WR));
        R(read(fd, &byte, 1));
        R(read(fd, &byte, 1));
    }
    close(fd);
}

int main(int count, char **arguments) {
    if (count != 5)
        return 2;
    server = !strcmp(arguments[1], "server");
    own = resolve(arguments[2]);
    other = resolve(arguments[3]);
    port = atoi(arguments[4]);
    if (server) {
        int one = 1;
        struct sockaddr_in any = v4("0.0.0.0", port);
        listener = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (bind(listener, (void *)&any, sizeof any) || listen(listener, 20))
            fatal("listener");
        puts("ready");
        fflush(stdout);
    }
    alarm(110);
    scene_blocking();
    scene_nonblocking();
    scene_refused();
    scene_resets();
    scene_reading();
    scene_urgent();
    scene_bulk();
    scene_mistakes();
    scene_again();
    scene_fastopen();
    scene_bound();
    scene_six();
    scene_listener_goes();
    scene_processes();
    scene_select();
    scene = "-";
    say("end");
    return 0;
}
