/* What programs do around their sockets: each line says whether a connection still works then.
 *
 * - manners serve PORT: gives every byte back, a process a connection.
 * - manners client HOST PORT EMPTY-FOLDER
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static struct sockaddr_in to;

static int serve(int port) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(port)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    signal(SIGCHLD, SIG_IGN);
    if (bind(listener, (void *)&any, sizeof any) || listen(listener, 100)) {
        perror("listener");
        return 1;
    }
    puts("ready");
    fflush(stdout);
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0)
            continue;
        if (fork() == 0) {
            char byte;
            while (read(fd, &byte, 1) == 1 && write(fd, &byte, 1) == 1)
                ;
            _exit(0);
        }
        close(fd);
    }
}

/* 0, or the error number of what failed. No call here is forbidden in a signal handler. */
static int talk(int fd) {
    char byte = 'b';
    if (connect(fd, (void *)&to, sizeof to))
        return errno;
    if (write(fd, &byte, 1) != 1 || read(fd, &byte, 1) != 1 || byte != 'b')
        return EIO;
    struct sockaddr_in peer;
    socklen_t len = sizeof peer;
    if (getpeername(fd, (void *)&peer, &len))
        return errno;
    return memcmp(&peer, &to, sizeof to) ? EINVAL : 0;
}

static int visit(void) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return errno;
    int result = talk(fd);
    close(fd);
    return result;
}

static void tell(const char *what, int error) {
    printf("%s: %s\n", what, error ? strerrorname_np(error) : "ok");
    fflush(stdout);
}

/* In a child, so that what it does to itself ends with it. */
static void apart(const char *what, int (*story)(void)) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0)
        _exit(story());
    int status = 0;
    waitpid(child, &status, 0);
    if (WIFEXITED(status))
        tell(what, WEXITSTATUS(status));
    else
        printf("%s: killed by %d\n", what, WTERMSIG(status));
}

static int closes_everything(void) {
    if (close_range(3, ~0u, 0))
        return errno;
    return visit();
}

static const char *empty;

static int leaves_root(void) {
    if (chroot(empty) || chdir("/") || setgroups(0, NULL) || setgid(65534) || setuid(65534))
        return errno;
    return visit();
}

static int clears_environment(void) {
    clearenv();
    return visit();
}

static int in_vfork(void) {
    volatile int result = -1;
    pid_t child = vfork();
    if (child == 0) {
        result = visit();
        _exit(0);
    }
    waitpid(child, NULL, 0);
    return result;
}

static volatile sig_atomic_t handled = -1;
static void handler(int number) {
    (void)number;
    handled = visit();
}

static int in_a_handler(void) {
    signal(SIGUSR1, handler);
    raise(SIGUSR1);
    return handled;
}

static void *many(void *result) {
    for (int turn = 0; turn < 25; turn++) {
        int error = visit();
        if (error)
            *(int *)result = error;
    }
    return NULL;
}

static int in_threads(void) {
    pthread_t threads[4];
    int results[4] = {0};
    for (int at = 0; at < 4; at++)
        pthread_create(&threads[at], NULL, many, &results[at]);
    for (int at = 0; at < 4; at++)
        pthread_join(threads[at], NULL);
    return results[0] | results[1] | results[2] | results[3];
}

static int waiting;
static void *accepts(void *argument) {
    (void)argument;
    accept(waiting, NULL, NULL);
    return NULL;
}

static int cancelled(void) {
    waiting = socket(AF_INET, SOCK_STREAM, 0);
    if (listen(waiting, 1))
        return errno;
    pthread_t thread;
    void *result = NULL;
    pthread_create(&thread, NULL, accepts, NULL);
    if (pthread_cancel(thread) || pthread_join(thread, &result))
        return EIO;
    return result == PTHREAD_CANCELED ? visit() : EBUSY;
}

static void nothing(int number) { (void)number; }

static int interrupted(void) {
    struct sigaction action = {.sa_handler = nothing};
    sigaction(SIGALRM, &action, NULL);
    waiting = socket(AF_INET, SOCK_STREAM, 0);
    if (listen(waiting, 1))
        return errno;
    /* Again and again, in case one comes before the call. */
    struct itimerval {
        struct timeval interval, value;
    } timer = {{0, 20000}, {0, 20000}};
    extern int setitimer(int, const void *, void *);
    setitimer(0, &timer, NULL);
    if (accept(waiting, NULL, NULL) >= 0 || errno != EINTR)
        return EBUSY;
    for (int turn = 0; turn < 20; turn++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0), error = 0;
        socklen_t len = sizeof error;
        if (connect(fd, (void *)&to, sizeof to)) {
            if (errno != EINTR)
                return errno;
            struct pollfd entry = {fd, POLLOUT, 0};
            while (poll(&entry, 1, -1) < 0)
                ;
            getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len);
            if (error)
                return error;
        }
        close(fd);
    }
    return 0;
}

static int full_table(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0), last = -1;
    struct rlimit limit = {64, 64};
    setrlimit(RLIMIT_NOFILE, &limit);
    for (int copy; (copy = dup(0)) >= 0;)
        last = copy;
    int error = talk(fd);
    if (error != EMFILE)
        return error ? error : EBUSY;
    close(last);
    return talk(fd);
}

static int keeps_errno(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in name;
    socklen_t len = sizeof name;
    errno = 4711;
    if (talk(fd) || errno != 4711)
        return EIO;
    getsockname(fd, (void *)&name, &len);
    waiting = socket(AF_INET, SOCK_STREAM, 0);
    if (listen(waiting, 1) || errno != 4711)
        return EIO;
    return 0;
}

static int execs(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    int error = talk(fd);
    if (error)
        return error;
    char number[16], port[16];
    snprintf(number, sizeof number, "%d", fd);
    snprintf(port, sizeof port, "%d", ntohs(to.sin_port));
    execl("/proc/self/exe", "manners", "heir", inet_ntoa(to.sin_addr), port, number, NULL);
    return errno;
}

static int inherits(int fd) {
    struct sockaddr_in peer;
    socklen_t len = sizeof peer;
    char byte = 'h';
    if (getpeername(fd, (void *)&peer, &len))
        return errno;
    if (memcmp(&peer, &to, sizeof to))
        return EINVAL;
    if (write(fd, &byte, 1) != 1 || read(fd, &byte, 1) != 1 || byte != 'h')
        return EIO;
    return visit();
}

int main(int count, char **arguments) {
    if (count == 3 && !strcmp(arguments[1], "serve"))
        return serve(atoi(arguments[2]));
    if (count != 5)
        return 2;
    struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *found;
    int error = getaddrinfo(arguments[2], arguments[3], &hints, &found);
    if (error) {
        fprintf(stderr, "%s: %s\n", arguments[2], gai_strerror(error));
        return 1;
    }
    memcpy(&to, found->ai_addr, sizeof to);
    freeaddrinfo(found);
    if (!strcmp(arguments[1], "heir"))
        return inherits(atoi(arguments[4]));
    empty = arguments[4];
    alarm(100);
    tell("plain", visit());
    apart("close_range", closes_everything);
    apart("chroot, setuid", leaves_root);
    apart("clearenv", clears_environment);
    apart("vfork", in_vfork);
    apart("signal handler", in_a_handler);
    apart("threads", in_threads);
    apart("cancelled thread", cancelled);
    apart("interrupted", interrupted);
    apart("full table", full_table);
    apart("errno", keeps_errno);
    apart("exec", execs);
    tell("plain again", visit());
    return 0;
}
