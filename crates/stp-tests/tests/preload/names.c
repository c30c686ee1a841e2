/* Host names by every call that C has for them, every answer printed.
 *
 * - names SYSTEM OTHER: this system's name and another's.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static const char *gai(int error) {
    static const struct {
        int number;
        const char *name;
    } all[] = {{0, "ok"},
               {EAI_BADFLAGS, "EAI_BADFLAGS"},
               {EAI_NONAME, "EAI_NONAME"},
               {EAI_AGAIN, "EAI_AGAIN"},
               {EAI_FAMILY, "EAI_FAMILY"},
               {EAI_SOCKTYPE, "EAI_SOCKTYPE"},
               {EAI_SERVICE, "EAI_SERVICE"},
               {EAI_OVERFLOW, "EAI_OVERFLOW"}};
    for (unsigned at = 0; at < sizeof all / sizeof *all; at++)
        if (all[at].number == error)
            return all[at].name;
    return gai_strerror(error);
}

static void info(const char *node, const char *service, int flags, int family, int type) {
    struct addrinfo hints = {.ai_flags = flags, .ai_family = family, .ai_socktype = type}, *list = NULL;
    int error = getaddrinfo(node, service, &hints, &list);
    printf("info %s %s %#x %d %d: %s", node ? node : "-", service ? service : "-", flags, family, type, gai(error));
    for (struct addrinfo *at = error ? NULL : list; at; at = at->ai_next) {
        char ip[64], number[16];
        getnameinfo(at->ai_addr, at->ai_addrlen, ip, sizeof ip, number, sizeof number, NI_NUMERICHOST | NI_NUMERICSERV);
        printf(" [%d %d %s %s%s%s]", at->ai_family, at->ai_socktype, ip, number, at->ai_canonname ? " " : "",
               at->ai_canonname ? at->ai_canonname : "");
    }
    puts("");
    if (!error)
        freeaddrinfo(list);
}

static void entry(const char *what, struct hostent *found) {
    if (!found) {
        printf("%s: h_errno %d\n", what, h_errno);
        return;
    }
    printf("%s: %s type %d len %d", what, found->h_name, found->h_addrtype, found->h_length);
    for (char **alias = found->h_aliases; *alias; alias++)
        printf(" alias %s", *alias);
    for (char **address = found->h_addr_list; *address; address++) {
        char ip[64];
        printf(" %s", inet_ntop(found->h_addrtype, *address, ip, sizeof ip));
    }
    puts("");
}

static void back(const char *ip, int flags, unsigned room) {
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(80)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(80)};
    int is_v4 = inet_pton(AF_INET, ip, &v4.sin_addr) == 1;
    if (!is_v4 && inet_pton(AF_INET6, ip, &v6.sin6_addr) != 1)
        exit(3);
    char host[300] = "?", service[64] = "?";
    int error = getnameinfo(is_v4 ? (void *)&v4 : (void *)&v6, is_v4 ? sizeof v4 : sizeof v6, host, room, service,
                            sizeof service, flags);
    printf("back %s %#x %u: %s %s %s\n", ip, flags, room, gai(error), error ? "-" : host, error ? "-" : service);
    struct hostent *found = is_v4 ? gethostbyaddr(&v4.sin_addr, 4, AF_INET) : gethostbyaddr(&v6.sin6_addr, 16, AF_INET6);
    entry("gethostbyaddr", found);
}

int main(int count, char **arguments) {
    if (count != 3)
        return 2;
    char own[128], other[128], upper[128], ip[2][64];
    snprintf(own, sizeof own, "%s.stp", arguments[1]);
    snprintf(other, sizeof other, "%s.stp", arguments[2]);
    snprintf(upper, sizeof upper, "%s.STP.", arguments[2]);
    info(own, NULL, 0, AF_INET, SOCK_STREAM);
    info(other, "80", 0, AF_UNSPEC, SOCK_STREAM);
    info("127.0.0.1", "http", 0, AF_INET, SOCK_STREAM);
    info(other, "http", AI_CANONNAME, AF_INET, SOCK_STREAM);
    info(other, "80", 0, AF_INET6, SOCK_STREAM);
    info(other, "80", AI_V4MAPPED | AI_ADDRCONFIG, AF_INET6, SOCK_STREAM);
    info(other, "80", AI_ADDRCONFIG, AF_INET, 0);
    info(upper, "80", 0, AF_INET, SOCK_STREAM);
    info(arguments[2], "80", AI_CANONNAME, AF_INET, SOCK_STREAM);
    info("nobody.stp", "80", 0, AF_INET, SOCK_STREAM);
    info("no body.stp", "80", 0, AF_INET, SOCK_STREAM);
    info(other, "80", AI_NUMERICHOST, AF_INET, SOCK_STREAM);
    info(other, "http", AI_NUMERICSERV, AF_INET, SOCK_STREAM);
    info(other, "no-such-service", 0, AF_INET, SOCK_STREAM);
    info(other, "80", 0x400000, AF_INET, SOCK_STREAM);
    info(other, "80", 0, AF_APPLETALK, SOCK_STREAM);
    info(other, "80", 0, AF_INET, 77);
    info(NULL, "80", AI_PASSIVE | AI_ADDRCONFIG, AF_INET, SOCK_STREAM);
    info("127.0.0.1", "80", AI_ADDRCONFIG, AF_INET, SOCK_STREAM);
    for (int turn = 0; turn < 2; turn++) {
        int family = turn ? AF_INET6 : AF_INET;
        struct addrinfo hints = {.ai_family = family, .ai_socktype = SOCK_STREAM}, *list;
        if (getaddrinfo(other, NULL, &hints, &list))
            return 3;
        getnameinfo(list->ai_addr, list->ai_addrlen, ip[turn], 64, NULL, 0, NI_NUMERICHOST);
        freeaddrinfo(list);
    }
    info(ip[0], "80", 0, AF_UNSPEC, SOCK_STREAM);
    struct addrinfo *list;
    printf("without hints: %s\n", gai(getaddrinfo(other, "80", NULL, &list)));
    freeaddrinfo(list);
    entry("gethostbyname", gethostbyname(other));
    entry("gethostbyname bare", gethostbyname(arguments[2]));
    entry("gethostbyname unknown", gethostbyname("nobody.stp"));
    entry("gethostbyname2", gethostbyname2(other, AF_INET6));
    struct hostent space, *found = NULL;
    char buffer[512];
    int error = 0;
    printf("small _r = %d", gethostbyname_r(other, &space, buffer, 20, &found, &error));
    printf(" %s\n", found ? "found" : "null");
    printf("_r = %d\n", gethostbyname_r(other, &space, buffer + 1, sizeof buffer - 1, &found, &error));
    entry("gethostbyname_r", found);
    printf("2_r = %d\n", gethostbyname2_r(other, AF_INET6, &space, buffer + 3, sizeof buffer - 3, &found, &error));
    entry("gethostbyname2_r", found);
    printf("unknown _r = %d", gethostbyname_r("nobody.stp", &space, buffer, sizeof buffer, &found, &error));
    printf(" %s %d\n", found ? "found" : "null", error);
    struct in_addr raw;
    inet_pton(AF_INET, ip[0], &raw);
    printf("addr_r = %d\n", gethostbyaddr_r(&raw, 4, AF_INET, &space, buffer, sizeof buffer, &found, &error));
    entry("gethostbyaddr_r", found);
    back(ip[0], 0, 300);
    back(ip[0], NI_NUMERICSERV, 300);
    back(ip[0], NI_NUMERICHOST, 300);
    back(ip[0], 0, 3);
    back(ip[1], 0, 300);
    back("240.64.0.1", NI_NAMEREQD, 300);
    back("240.64.0.1", 0, 300);
    return 0;
}
