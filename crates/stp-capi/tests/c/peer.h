/* The other end: a process of its own, perhaps of another system, that does as it is told over a pair of pipes. */
#ifndef PEER_H
#define PEER_H

#include "sockets.h"

struct order {
    int what;
    long number;
};

static int peer_pipe = -1;
static pid_t peer_pid;

static void peer_work(int orders)
{
    static char block[65536];
    struct order order;
    int l = -1, s = -1;
    signal(SIGPIPE, SIG_IGN);
    while (read(orders, &order, sizeof order) == sizeof order) {
        long answer = 0, n;
        switch (order.what) {
        case 'L': /* listen; the port */
            if (l >= 0)
                CALL(close)(l);
            l = listener(5);
            answer = local_port(l);
            break;
        case 'P': { /* a port where nobody listens */
            int t = listener(1);
            answer = local_port(t);
            CALL(close)(t);
            break;
        }
        case 'A': /* accept */
            s = CALL(accept)(l, NULL, NULL);
            answer = s >= 0;
            break;
        case 'C': { /* connect to a port of the program */
            address a = here((int)order.number);
#ifdef USE_STP
            const char *system = getenv("MAIN_SYSTEM");
            if (system != NULL)
                strncpy(a.sstp_system, system, sizeof a.sstp_system - 1);
#endif
            s = stream();
            answer = CALL(connect)(s, SA(&a), sizeof a);
            if (answer < 0)
                perror("peer: connect");
            break;
        }
        case 'N': /* own port */
            answer = local_port(s);
            break;
        case 'p': { /* the program's port */
            address a;
            socklen_t len = sizeof a;
            answer = CALL(getpeername)(s, SA(&a), &len) < 0 ? -1 : port_of(&a);
            break;
        }
        case 't': /* send a byte later, and answer at once */
            write(orders, &answer, sizeof answer);
            usleep((useconds_t)order.number * 1000);
            CALL(send)(s, block, 1, MSG_NOSIGNAL);
            continue;
        case 's': /* send later, answer at once */
            write(orders, &answer, sizeof answer);
            usleep(50000);
            CALL(send)(s, block, (size_t)order.number, MSG_NOSIGNAL);
            continue;
        case 'S':
            answer = CALL(send)(s, block, (size_t)order.number, MSG_NOSIGNAL);
            break;
        case 'R': /* take so many bytes */
            while (answer < order.number) {
                size_t want = (size_t)(order.number - answer);
                n = CALL(recv)(s, block, want < sizeof block ? want : sizeof block, 0);
                if (n <= 0)
                    break;
                answer += n;
            }
            break;
        case 'r': /* one recv: its result, or -errno; what is left over is taken first */
            do
                n = CALL(recv)(s, block, sizeof block, 0);
            while (n > 0);
            answer = n < 0 ? -(long)errno : 0;
            break;
        case 'i': { /* wait for bytes */
            struct pollfd p = {s, POLLIN, 0};
            poll(&p, 1, -1);
            break;
        }
        case 'W':
            answer = CALL(shutdown)(s, SHUT_WR);
            break;
        case 'O':
            answer = CALL(send)(s, "!", 1, MSG_OOB | MSG_NOSIGNAL);
            break;
        case 'o': { /* wait for the urgent byte */
            struct pollfd p = {s, POLLPRI, 0};
            poll(&p, 1, -1);
            answer = CALL(recv)(s, block, 1, MSG_OOB);
            break;
        }
        case 'Z': {
            struct linger now = {1, 0};
            CALL(setsockopt)(s, SOL_SOCKET, SO_LINGER, &now, sizeof now);
        } /* fall through */
        case 'X':
            if (s >= 0)
                answer = CALL(close)(s);
            s = -1;
            break;
        default:
            break;
        }
        write(orders, &answer, sizeof answer);
    }
    exit(0); /* what is closed is delivered */
}

static void peer_start(void)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) < 0)
        exit(1);
    fflush(stdout);
    peer_pid = fork();
    if (peer_pid == 0) {
        close(ends[0]);
        const char *system = getenv("PEER_SYSTEM"), *run_dir = getenv("PEER_RUN_DIR");
        if (system != NULL) {
            setenv("STP_SYSTEM", system, 1);
            setenv("STP_RUN_DIR", run_dir, 1);
        }
        peer_work(ends[1]);
    }
    close(ends[1]);
    peer_pipe = ends[0];
    fcntl(peer_pipe, F_SETFD, FD_CLOEXEC);
}

static long peer_ask(int what, long number)
{
    struct order order = {what, number};
    long answer = 0;
    char *to = (char *)&answer;
    size_t got = 0;
    if (write(peer_pipe, &order, sizeof order) != sizeof order)
        return -999;
    while (got < sizeof answer) {
        ssize_t n = read(peer_pipe, to + got, sizeof answer - got);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return -998;
        got += (size_t)n;
    }
    return answer;
}

static void peer_stop(void)
{
    close(peer_pipe);
    waitpid(peer_pid, NULL, 0);
}

/* As a crash: and a new one takes its place. */
static void peer_die(void)
{
    kill(peer_pid, SIGKILL);
    peer_stop();
    peer_start();
}

#endif
