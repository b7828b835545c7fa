/* What the native tools share: the clock, buffers, sockets, epoll. Linux only; nothing but the C library. */
#ifndef CORE_H
#define CORE_H
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S 1000000000ull
#define NS_PER_US 1000ull
#define EVENTS 512

static inline void die(const char *what) {
    fprintf(stderr, "%s: %s\n", what, errno ? strerror(errno) : "failed");
    exit(1);
}

/* CLOCK_MONOTONIC is one clock for all processes of the machine: times may be compared across them. */
static inline uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

/* CPU time of a process, all of its threads, user and system; 0 when it is gone. `pid` 0: this process. */
static inline uint64_t cpu_ns(pid_t pid) {
    clockid_t clock = CLOCK_PROCESS_CPUTIME_ID;
    struct timespec t;
    if (pid && clock_getcpuclockid(pid, &clock)) return 0;
    if (clock_gettime(clock, &t)) return 0;
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

/* Bytes between `start` and `end` are valid. It grows without bound: the tools own both ends of every connection. */
struct buffer {
    char *data;
    size_t start, end, capacity;
};

static inline size_t buffer_length(const struct buffer *b) { return b->end - b->start; }

/* Makes room for `more` bytes at `end`. */
static inline void buffer_reserve(struct buffer *b, size_t more) {
    if (b->start && b->end + more > b->capacity) {
        memmove(b->data, b->data + b->start, b->end - b->start);
        b->end -= b->start;
        b->start = 0;
    }
    if (b->end + more <= b->capacity) return;
    size_t capacity = b->capacity ? b->capacity : 512;
    while (capacity < b->end + more) capacity *= 2;
    b->data = realloc(b->data, capacity);
    if (!b->data) die("out of memory");
    b->capacity = capacity;
}

static inline void buffer_add(struct buffer *b, const void *data, size_t length) {
    buffer_reserve(b, length);
    memcpy(b->data + b->end, data, length);
    b->end += length;
}

static inline void buffer_text(struct buffer *b, const char *text) { buffer_add(b, text, strlen(text)); }

static inline void buffer_consume(struct buffer *b, size_t length) {
    b->start += length;
    if (b->start == b->end) b->start = b->end = 0;
}

static inline void buffer_free(struct buffer *b) {
    free(b->data);
    memset(b, 0, sizeof *b);
}

/* Writes what the socket takes. False: the connection is broken. What is left stays in the buffer. */
static inline bool buffer_flush(struct buffer *b, int fd) {
    while (b->start < b->end) {
        ssize_t n = send(fd, b->data + b->start, b->end - b->start, MSG_NOSIGNAL);
        if (n < 0) return errno == EAGAIN || errno == EWOULDBLOCK;
        buffer_consume(b, (size_t)n);
    }
    return true;
}

static inline void set_nodelay(int fd) {
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static inline struct sockaddr_in loopback(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

/* Listens on loopback; `port` 0: any free one. The first line of the output is the port, as `benchmarks.upstream`'s. */
static inline int listen_loopback(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    struct sockaddr_in address = loopback(port);
    socklen_t size = sizeof address;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (fd < 0 || bind(fd, (void *)&address, size) || listen(fd, 65535)) die("can't listen");
    getsockname(fd, (void *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

/* A connection that may still be under way; -1 when it can't even be begun (`errno`). */
static inline int connect_loopback(int port, int receive_buffer_bytes) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = loopback(port);
    if (fd < 0) return -1;
    if (receive_buffer_bytes)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_buffer_bytes, sizeof receive_buffer_bytes);
    set_nodelay(fd);
    if (connect(fd, (void *)&address, sizeof address) && errno != EINPROGRESS) {
        close(fd);
        return -1;
    }
    return fd;
}

/* Edge-triggered both ways, once and for all: no epoll_ctl per write. */
static inline void watch(int epoll, int fd, void *owner) {
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = owner};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
}

/* Sleeps until something happens or `until_ns` (0: for ever; the past: doesn't sleep). */
static inline int wait_events(int epoll, struct epoll_event *events, uint64_t until_ns) {
    struct timespec span = {0}, *timeout = NULL;
    if (until_ns) {
        uint64_t now = now_ns(), left = until_ns > now ? until_ns - now : 0;
        span.tv_sec = (time_t)(left / NS_PER_S);
        span.tv_nsec = (long)(left % NS_PER_S);
        timeout = &span;
    }
    int n = epoll_pwait2(epoll, events, EVENTS, timeout, NULL);
    if (n < 0 && errno != EINTR) die("epoll_pwait2");
    return n < 0 ? 0 : n;
}

/* As many open files as the system lets us have. */
static inline void raise_file_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit)) return;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}
#endif
