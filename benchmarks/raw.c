/* One side of a transfer with nothing but system calls: what is left when Python is taken away.
 *
 *     raw splice|copy send|receive SIZE MESSAGES PORT CORE CONGESTION
 *
 * `splice` sends pages by reference (vmsplice into a pipe, splice to the socket) from 2 MiB pages, and
 * writes to a page again only after the receiver said, in an 8-byte cumulative count, that it has copied
 * it out: neither send returning nor a TCP ACK says so. `copy` is plain send(). The receiver listens on a
 * free port and prints it. Both ends print one line of JSON.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, HUGE_PAGE = 2 << 20, PIPE = 1 << 20 };
enum { WINDOW = 4 << 20 };          /* bytes in flight by reference, or 4 messages if that is more */
enum { REPORT_EVERY = WINDOW / 4 }; /* bytes between two counts by the receiver */
enum { COPY_RING = 256 << 10 };     /* what the copying contenders cycle through, at least 4 messages */

struct run {
    int by_reference;
    size_t size;
    uint64_t messages;
    int port, core;
    const char *congestion;
};

struct instant {
    double wall, user, system;
};

static _Noreturn void die(const char *what) {
    fprintf(stderr, "raw: %s: %s\n", what, strerror(errno));
    exit(1);
}

static struct instant now(void) {
    struct timespec clock;
    struct rusage used;
    clock_gettime(CLOCK_MONOTONIC, &clock);
    getrusage(RUSAGE_SELF, &used);
    return (struct instant){
        .wall = (double)clock.tv_sec + (double)clock.tv_nsec * 1e-9,
        .user = (double)used.ru_utime.tv_sec + (double)used.ru_utime.tv_usec * 1e-6,
        .system = (double)used.ru_stime.tv_sec + (double)used.ru_stime.tv_usec * 1e-6,
    };
}

static void report(const char *role, int fd, uint64_t bytes, struct instant from, struct instant to) {
    char congestion[16] = "";
    socklen_t length = sizeof congestion - 1;
    if (getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, congestion, &length)) die("TCP_CONGESTION");
    printf("{\"role\": \"%s\", \"bytes\": %llu, \"seconds\": %.6f, \"user\": %.6f, \"system\": %.6f, "
           "\"congestion\": \"%s\"}\n",
           role, (unsigned long long)bytes, to.wall - from.wall, to.user - from.user,
           to.system - from.system, congestion);
    fflush(stdout);
}

static int tcp_socket(const struct run *run) {
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) die("socket");
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one)) die("TCP_NODELAY");
    if (setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, run->congestion, (socklen_t)strlen(run->congestion)))
        die("TCP_CONGESTION");
    return fd;
}

static char *touched_memory(size_t bytes) {
    size_t whole = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    char *start = mmap(NULL, whole + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) die("mmap");
    start = (char *)(((uintptr_t)start + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
    madvise(start, whole, MADV_HUGEPAGE); /* a kernel without huge pages is slower, not wrong */
    memset(start, 0, whole);
    return start;
}

static void stamp(char *message, size_t size, uint64_t number) {
    for (size_t at = 0; at < size; at += PAGE) memcpy(message + at, &number, sizeof number);
}

static void check(const char *message, size_t size, uint64_t number) {
    uint64_t first, last;
    memcpy(&first, message, sizeof first);
    memcpy(&last, message + size - PAGE, sizeof last);
    if (first == number && last == number) return;
    fprintf(stderr, "raw: message %llu arrived as %llu…%llu\n", (unsigned long long)number,
            (unsigned long long)first, (unsigned long long)last);
    exit(1);
}

static void send_copy(int fd, const char *data, size_t size) {
    while (size) {
        ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);
        if (sent < 0) die("send");
        data += sent;
        size -= (size_t)sent;
    }
}

static void send_by_reference(int fd, const int pipes[2], char *data, size_t size) {
    while (size) {
        struct iovec piece = {data, size};
        /* Without NONBLOCK a piece of more pages than the pipe has slots would wait for its own reader. */
        ssize_t queued = vmsplice(pipes[1], &piece, 1, SPLICE_F_NONBLOCK);
        if (queued < 0) die("vmsplice");
        data += queued;
        size -= (size_t)queued;
        /* Exactly what is queued: asking for more lets the kernel hold the tail back for 200 ms. */
        while (queued) {
            ssize_t sent = splice(pipes[0], NULL, fd, NULL, (size_t)queued, 0);
            if (sent < 0) die("splice");
            queued -= sent;
        }
    }
}

/* Returns the newest count at or above `wanted`, waiting for it. */
static uint64_t await_count(int fd, uint64_t known, uint64_t wanted) {
    while (known < wanted) {
        ssize_t got = recv(fd, &known, sizeof known, MSG_WAITALL);
        if (got != sizeof known) die("the receiver's count");
    }
    return known;
}

static void await_end(int fd) {
    char rest[PAGE];
    ssize_t got;
    while ((got = recv(fd, rest, sizeof rest, 0)) > 0) {}
    if (got < 0) die("recv");
}

static void sender(const struct run *run) {
    int fd = tcp_socket(run), pipes[2];
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)run->port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(fd, (struct sockaddr *)&to, sizeof to)) die("connect");
    if (pipe2(pipes, O_CLOEXEC)) die("pipe");
    if (run->by_reference && fcntl(pipes[1], F_SETPIPE_SZ, PIPE) < 0) die("F_SETPIPE_SZ");

    size_t slots = (run->by_reference ? WINDOW : COPY_RING) / run->size;
    if (slots < 4) slots = 4;
    char *ring = touched_memory(slots * run->size);
    uint64_t counted = 0;
    struct instant from = now();
    for (uint64_t number = 0; number < run->messages; number++) {
        char *message = ring + number % slots * run->size;
        if (run->by_reference && number >= slots)
            counted = await_count(fd, counted, (number - slots + 1) * run->size);
        stamp(message, run->size, number);
        if (run->by_reference)
            send_by_reference(fd, pipes, message, run->size);
        else
            send_copy(fd, message, run->size);
    }
    await_end(fd);
    report("send", fd, run->messages * run->size, from, now());
}

static void receiver(const struct run *run) {
    int listener = tcp_socket(run);
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof here;
    if (bind(listener, (struct sockaddr *)&here, sizeof here)) die("bind");
    if (listen(listener, 1)) die("listen");
    if (getsockname(listener, (struct sockaddr *)&here, &length)) die("getsockname");
    printf("{\"port\": %d}\n", ntohs(here.sin_port));
    fflush(stdout);
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) die("accept");

    char *message = touched_memory(run->size);
    uint64_t copied = 0, told = 0, total = run->messages * run->size;
    struct instant from = {0};
    for (uint64_t number = 0; number < run->messages; number++) {
        for (size_t have = 0; have < run->size;) {
            ssize_t got = recv(fd, message + have, run->size - have, 0);
            if (got <= 0) die("recv");
            have += (size_t)got;
            copied += (uint64_t)got;
            if (run->by_reference && (copied - told >= REPORT_EVERY || copied == total)) {
                send_copy(fd, (const char *)&copied, sizeof copied);
                told = copied;
            }
        }
        check(message, run->size, number);
        if (number == 0) from = now();
    }
    report("receive", fd, total - run->size, from, now());
}

int main(int argc, char **argv) {
    if (argc != 8) {
        fprintf(stderr, "usage: raw splice|copy send|receive SIZE MESSAGES PORT CORE CONGESTION\n");
        return 2;
    }
    struct run run = {
        .by_reference = !strcmp(argv[1], "splice"),
        .size = strtoull(argv[3], NULL, 10),
        .messages = strtoull(argv[4], NULL, 10),
        .port = atoi(argv[5]),
        .core = atoi(argv[6]),
        .congestion = argv[7],
    };
    if (run.size == 0 || run.size % PAGE) {
        fprintf(stderr, "raw: SIZE must be a multiple of %d bytes\n", PAGE);
        return 2;
    }
    if (run.core >= 0) {
        cpu_set_t cores;
        CPU_ZERO(&cores);
        CPU_SET((size_t)run.core, &cores);
        if (sched_setaffinity(0, sizeof cores, &cores)) die("sched_setaffinity");
    }
    if (!strcmp(argv[2], "send"))
        sender(&run);
    else
        receiver(&run);
    return 0;
}
