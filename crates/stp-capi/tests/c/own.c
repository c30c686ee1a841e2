/* own: what STP has and TCP has not. Each check that fails is a line; the exit status counts them. */
#include <pthread.h>
#include <sys/resource.h>

#include "sockets.h"

static int failures;

#define check(what)                                                                            \
    do {                                                                                       \
        errno = 0;                                                                             \
        if (!(what)) {                                                                         \
            printf("line %d: %s: errno %d (%s), STPerror %d (%s)\n", __LINE__, #what, errno,   \
                   strerror(errno), STPerror(), STPstrerror(STPerror()));                      \
            failures++;                                                                        \
        }                                                                                      \
    } while (0)

static int says(const char *part)
{
    return strstr(STPstrerror(STPerror()), part) != NULL;
}

static void before(void)
{
    uint32_t number = 0;
    char text[300];
    socklen_t len = sizeof number;
    struct sockaddr_stp a = here(0);
    int s = stream();

    check(STPgetopt(-1, STP_OPT_POLL_US, &number, &len) == 0 && number == 20000);
    check(STPgetopt(-1, STP_OPT_WINDOW, &number, &len) == 0 && number == 4194304);
    number = 5000;
    check(STPsetopt(-1, STP_OPT_POLL_US, &number, sizeof number) == 0);
    number = 0;
    check(STPgetopt(-1, STP_OPT_POLL_US, &number, &len) == 0 && number == 5000);
    number = 5;
    check(STPsetopt(-1, STP_OPT_POLL_US, &number, sizeof number) < 0 && errno == EINVAL && says("100"));
    check(STPsetopt(-1, STP_OPT_POLL_US, &number, 1) < 0 && errno == EINVAL);
    check(STPsetopt(-1, STP_OPT_POLL_US, NULL, sizeof number) < 0 && errno == EFAULT);
    check(STPsetopt(-1, 999, &number, sizeof number) < 0 && errno == ENOPROTOOPT && STPerror() == STP_EOPTION);
    check(STPsetopt(-1, STP_OPT_CONNECT_MS, &number, sizeof number) < 0 && errno == EBADF);
    check(STPsetopt(-1, STP_OPT_SYSTEM, "no system", 9) < 0 && errno == EINVAL && STPerror() == STP_ESYSTEM);
    check(STPsetopt(s, STP_OPT_CONNECT_MS, &number, sizeof number) == 0);
    number = 0;
    check(STPgetsockopt(s, SOL_STP, STP_OPT_CONNECT_MS, &number, &len) == 0 && number == 5);
    check(STPgetopt(s, STP_OPT_GIFT_FD, &number, &len) < 0 && errno == EINVAL && STPerror() == STP_EGIVE);

    /* No volume, then one that is none, then the true one. */
    char *volume = strdup(getenv("STP_VOLUME"));
    unsetenv("STP_VOLUME");
    check(STPbind(s, SA(&a), sizeof a) < 0 && errno == ENODEV && STPerror() == STP_EVOLUME && says("STP_VOLUME"));
    check(STPsetopt(-1, STP_OPT_VOLUME, "/nonexistent/volume", 19) == 0);
    check(STPbind(s, SA(&a), sizeof a) < 0 && errno == ENODEV && says("/nonexistent/volume"));
    check(STPsetopt(-1, STP_OPT_VOLUME, volume, (socklen_t)strlen(volume)) == 0);
    check(STPbind(s, SA(&a), sizeof a) == 0);
    check(STPsetopt(-1, STP_OPT_VOLUME, volume, (socklen_t)strlen(volume)) < 0 && errno == EBUSY);
    len = sizeof text;
    check(STPgetopt(-1, STP_OPT_VOLUME, text, &len) == 0 && strcmp(text, volume) == 0 && len == strlen(volume) + 1);
    len = 2;
    check(STPgetopt(-1, STP_OPT_VOLUME, text, &len) < 0 && errno == ERANGE);
    len = sizeof text;
    check(STPgetopt(-1, STP_OPT_GROUP, text, &len) == 0 && strcmp(text, "lab") == 0);
    free(volume);
    check(STPclose(s) == 0);
}

static void names(void)
{
    struct sockaddr_stp a;
    socklen_t len = sizeof a;
    const char *us = getenv("STP_SYSTEM");
    char text[200];

    check(STPgethostname(-1, SA(&a), &len) == 0 && strcmp(a.sstp_system, us) == 0 && a.sstp_port == 0);
    check(strcmp(a.sstp_group, "lab") == 0 && len == sizeof a && a.sstp_family == AF_STP);
    const char *forms[] = {"%s", "lab/%s", "%s.stp", ""};
    for (int i = 0; i < 4; i++) {
        snprintf(text, sizeof text, forms[i], us);
        memset(&a, 1, sizeof a);
        check(STPgethostbyname(text, &a) == 0 && strcmp(a.sstp_system, us) == 0 && a.sstp_family == AF_STP);
    }
    check(STPgethostbyname("nobody", &a) < 0 && errno == EHOSTUNREACH && STPerror() == STP_ESYSTEM && says("it has: "));
    check(STPgethostbyname("other/alpha", &a) < 0 && errno == ENETUNREACH && STPerror() == STP_EGROUP);
    check(STPgethostbyname(NULL, &a) < 0 && errno == EFAULT);
    check(STPaddr(&a, "lab/beta:7000") == 0 && ntohs(a.sstp_port) == 7000 && strcmp(a.sstp_group, "lab") == 0);
    check(STPaddr(&a, ":1") == 0 && a.sstp_system[0] == 0);
    check(STPaddr(&a, "beta") < 0 && errno == EINVAL && STPerror() == STP_EADDRESS && says("no port"));
    check(STPaddr(NULL, ":1") < 0 && errno == EFAULT);
    check(STPaddr(&a, NULL) < 0 && errno == EFAULT);
    memset(&a, 0, sizeof a);
    int s = stream();
    STPaddr(&a, "nobody:7");
    check(STPconnect(s, SA(&a), sizeof a) < 0 && errno == EHOSTUNREACH && STPerror() == STP_ESYSTEM);
    STPaddr(&a, "elsewhere/beta:7");
    check(STPconnect(s, SA(&a), sizeof a) < 0 && errno == ENETUNREACH && STPerror() == STP_EGROUP);
    check(STPbind(s, SA(&a), sizeof a) < 0 && errno == EADDRNOTAVAIL);
    char byte;
    check(STPrecv(s, &byte, 1, 0x40000) < 0 && errno == EOPNOTSUPP && STPerror() == STP_EFLAGS);
    check(STPsend(s, &byte, 1, 0x40000) < 0 && errno == EOPNOTSUPP);
    check(STPstrerror(STP_EGROUP)[0] != 0 && STPstrerror(9999)[0] != 0);
    check(STPclose(s) == 0);
    int pair[2];
    check(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    check(STPrecv(pair[0], &byte, 1, 0) < 0 && errno == ENOTSOCK && STPerror() == STP_ENOTSTP);
    close(pair[0]);
    close(pair[1]);
}

static int shared_port;

static void *talk(void *arg)
{
    long number = (long)arg, failed = 0;
    for (int round = 0; round < 25; round++) {
        struct sockaddr_stp a = here(shared_port);
        int s = stream();
        long back = -1;
        /* Each thread's error is its own. */
        failed += STPshutdown(-1 - (int)(number % 2) * 998, 0) != -1 || STPerror() != STP_OK;
        failed += STPconnect(s, SA(&a), sizeof a) != 0;
        failed += STPsend(s, &number, sizeof number, 0) != sizeof number;
        failed += STPrecv(s, &back, sizeof back, MSG_WAITALL) != sizeof back || back != number;
        failed += STPclose(s) != 0;
    }
    return (void *)failed;
}

static void *answer(void *arg)
{
    int l = *(int *)arg;
    for (;;) {
        long number;
        int s = STPaccept(l, NULL, NULL);
        if (s < 0)
            return NULL;
        if (STPrecv(s, &number, sizeof number, MSG_WAITALL) == sizeof number)
            STPsend(s, &number, sizeof number, 0);
        STPclose(s);
    }
}

static void threads(void)
{
    pthread_t talkers[8], answerers[4];
    int l = listener(64);
    shared_port = local_port(l);
    for (int i = 0; i < 4; i++)
        pthread_create(&answerers[i], NULL, answer, &l);
    for (long i = 0; i < 8; i++)
        pthread_create(&talkers[i], NULL, talk, (void *)i);
    /* Children are made in the middle of it, and find the library whole. */
    for (int i = 0; i < 20; i++) {
        int status = -1;
        pid_t child = fork();
        if (child == 0) {
            int s = stream();
            _exit(STPclose(s) == 0 && STPclose(l) == 0 ? 0 : 1);
        }
        waitpid(child, &status, 0);
        check(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    for (int i = 0; i < 8; i++) {
        void *failed = NULL;
        pthread_join(talkers[i], &failed);
        check(failed == NULL);
    }
    check(STPshutdown(l, SHUT_RD) == 0);
    for (int i = 0; i < 4; i++)
        pthread_join(answerers[i], NULL);
    check(STPclose(l) == 0);
}

/* How a program ends: by exit, by a signal, by a signal but with the end declared. */
static void ends(void)
{
    int l = listener(5), status;
    struct sockaddr_stp a = here(local_port(l));
    for (int way = 0; way < 3; way++) {
        char buf[16];
        pid_t child = fork();
        if (child == 0) {
            uint32_t on = 1;
            int s = stream();
            if (way == 2)
                STPsetopt(s, STP_OPT_TCP_END, &on, sizeof on);
            if (STPconnect(s, SA(&a), sizeof a) < 0)
                abort();
            if (way == 2)
                STPsetopt(s, STP_OPT_TCP_END, &on, sizeof on);
            STPsend(s, "bytes", 5, 0);
            if (way == 0)
                exit(0);
            raise(SIGKILL);
        }
        int s = STPaccept(l, NULL, NULL);
        waitpid(child, &status, 0);
        check(STPrecv(s, buf, sizeof buf, MSG_WAITALL) == 5);
        if (way == 1)
            check(STPrecv(s, buf, sizeof buf, 0) < 0 && errno == ECONNRESET && STPerror() == STP_ERESET);
        else
            check(STPrecv(s, buf, sizeof buf, 0) == 0);
        check(STPclose(s) == 0);
    }
    check(STPclose(l) == 0);
}

/* A number that was closed behind the library's back is another file's when the program exits. */
static void other_files(void)
{
    char text[64] = "", name[] = "/tmp/stp-own-XXXXXX";
    int status, file = mkstemp(name);
    pid_t child = fork();
    if (child == 0) {
        int s = stream();
        close(s);
        FILE *log = fopen(name, "w");
        if (log == NULL || fileno(log) != s)
            abort();
        fputs("the last line", log);
        exit(0);
    }
    waitpid(child, &status, 0);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    check(read(file, text, sizeof text - 1) == 13 && strcmp(text, "the last line") == 0);
    close(file);
    unlink(name);
}

/* As many descriptors may be opened as the program says. */
static void descriptors(int left)
{
    struct rlimit limit;
    int next = dup(0);
    close(next);
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = left < 0 ? limit.rlim_max : (rlim_t)(next + left);
    check(setrlimit(RLIMIT_NOFILE, &limit) == 0);
}

/* What fails for want of descriptors works when there are some. */
static void few_descriptors(void)
{
    struct sockaddr_stp a;
    int s = stream();
    STPaddr(&a, "nobody:7");
    descriptors(1);
    check(STPconnect(s, SA(&a), sizeof a) < 0 && errno == EMFILE);
    descriptors(-1);
    check(STPconnect(s, SA(&a), sizeof a) < 0 && errno == EHOSTUNREACH);
    check(STPclose(s) == 0);
    s = stream();
    nonblocking(s, 1);
    a = here(1);
    descriptors(1);
    check(STPconnect(s, SA(&a), sizeof a) < 0 && errno == ECONNREFUSED);
    descriptors(-1);
    check(STPconnect(s, SA(&a), sizeof a) < 0 && errno == EINPROGRESS);
    check(STPclose(s) == 0);
    /* A connection that cannot be taken for want of descriptors is told of, to both. */
    int l = listener(5);
    char byte;
    nonblocking(l, 1);
    for (int left = 1; left <= 2; left++) {
        a = here(local_port(l));
        s = stream();
        check(STPconnect(s, SA(&a), sizeof a) == 0);
        descriptors(left);
        check(STPaccept(l, NULL, NULL) < 0 && errno == EMFILE);
        descriptors(-1);
        check(STPrecv(s, &byte, 1, 0) < 0 && errno == ECONNRESET);
        check(STPclose(s) == 0);
    }
    check(STPclose(l) == 0);
}

/* The test takes a step when it has read a line, and says so by another. */
static void step(const char *line)
{
    char answer[16];
    printf("%s\n", line);
    fflush(stdout);
    if (fgets(answer, sizeof answer, stdin) == NULL)
        exit(99);
}

/* A listener that cannot be published keeps its port and can be listened on when there is an engine again. */
static int listen_again(void)
{
    struct sockaddr_stp a = here(0);
    int s = stream(), other = stream(), port, listened, tries = 0;
    check(STPbind(s, SA(&a), sizeof a) == 0);
    port = local_port(s);
    step("bound");
    check(STPlisten(s, 5) < 0 && STPerror() == STP_EENGINE);
    check(local_port(s) == port);
    a = here(port);
    check(STPbind(other, SA(&a), sizeof a) < 0 && errno == EADDRINUSE);
    step("failed");
    while ((listened = STPlisten(s, 5)) < 0 && STPerror() == STP_EENGINE && tries++ < 1000)
        usleep(10000);
    check(listened == 0 && local_port(s) == port);
    nonblocking(other, 1);
    check(STPconnect(other, SA(&a), sizeof a) < 0 && errno == EINPROGRESS);
    check(STPaccept(s, NULL, NULL) >= 0);
    return failures;
}

/* The engine goes in the middle of a call. */
static int engine_gone(const char *address)
{
    struct sockaddr_stp a;
    int s = stream();
    char byte;
    check(STPaddr(&a, address) == 0);
    check(STPconnect(s, SA(&a), sizeof a) == 0);
    printf("connected\n");
    fflush(stdout);
    check(STPrecv(s, &byte, 1, 0) < 0 && errno == EIO && STPerror() == STP_EENGINE && says("stp engine"));
    check(STPsend(s, &byte, 1, MSG_NOSIGNAL) < 0 && (errno == EIO || errno == EPIPE));
    STPclose(s);
    s = stream();
    check(STPconnect(s, SA(&a), sizeof a) < 0 && errno == EIO && STPerror() == STP_EENGINE);
    STPclose(s);
    return failures;
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "listen") == 0)
        return listen_again();
    if (argc > 1)
        return engine_gone(argv[1]);
    before();
    names();
    threads();
    ends();
    other_files();
    few_descriptors();
    return failures;
}
