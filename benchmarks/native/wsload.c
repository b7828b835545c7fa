/* The load client: many conversations at once, each asked again as soon as it is answered, every frame looked at.
 *
 * `wsload --help` tells the options. It prints one line of JSON when it is done. Times are microseconds; `added` is
 * the age of a token's stamp when its frame has come: the whole way from the upstream's socket to this one.
 * One thread on epoll; a token costs it about as much as it costs the upstream. */
#include "load_hear.h"

#define READ_BYTES 262144
#define BEGIN_PATIENCE_S 20ull

static char scratch[READ_BYTES];

/* Reads at most `limit` bytes; what isn't whole waits in `in`. */
static void receive(struct connection *c, size_t limit) {
    while (c->stage != CLOSED && limit) {
        size_t want = limit < READ_BYTES ? limit : READ_BYTES;
        bool plain = !buffer_length(&c->in);
        if (!plain) buffer_reserve(&c->in, want);
        char *into = plain ? scratch : c->in.data + c->in.end;
        ssize_t n = recv(c->fd, into, want, 0);
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
        if (n <= 0) {
            /* Between two answers over HTTP a connection may end; all else is a loss. */
            bool missed = options.after >= 0 && !c->conversations->had_all;
            bool lost = !over_http() || c->conversations->asked || c->stage < OPEN || missed;
            drop(c, lost ? "CONNECTION_LOST" : NULL);
            return;
        }
        limit -= (size_t)n;
        now_counts.bytes += (size_t)n;
        if (!plain) c->in.end += (size_t)n;
        char *start = plain ? scratch : c->in.data + c->in.start, *end = into + n;
        char *used = hear(c, start, end, now_ns());
        if (c->stage == CLOSED) return;
        if (plain) buffer_add(&c->in, used, (size_t)(end - used));
        else buffer_consume(&c->in, (size_t)(used - start));
        if (!buffer_length(&c->in)) buffer_free(&c->in);
        if ((size_t)n < want) return; /* edge-triggered: more will be told */
    }
}

static void connect_next(struct connection *c) {
    bool slow = c->slow;
    c->connect_ns = now_ns();
    c->fd = connect_loopback(options.port, slow ? options.receive_buffer : 0);
    c->stage = CONNECTING;
    if (c->fd < 0) {
        c->stage = CLOSED;
        failed++;
        closed++;
        count_error("CANT_CONNECT", 12);
        return;
    }
    watch(epoll_fd, c->fd, c);
}

static void tcp_open(struct connection *c) {
    int problem = 0;
    socklen_t size = sizeof problem;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &problem, &size);
    if (problem) {
        drop(c, "CONNECTION_REFUSED");
        return;
    }
    c->stage = HANDSHAKE;
    if (over_http()) {
        became_open(c, now_ns());
        return;
    }
    char header[600] = "";
    if (*options.header) snprintf(header, sizeof header, "%s\r\n", options.header);
    add_upgrade(&c->out, options.path, options.port, header);
    flush(c);
}

static bool reads(const struct connection *c) { return !c->slow || c->stage < OPEN; }

static void handle(struct connection *c, uint32_t events) {
    if (c->stage == CLOSED) return;
    if (c->stage == CONNECTING && events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) tcp_open(c);
    if (c->stage != CLOSED && c->stage != CONNECTING && events & EPOLLOUT) flush(c);
    if (c->stage != CLOSED && events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR) && reads(c)) receive(c, SIZE_MAX);
}

static void turn(uint64_t until_ns) {
    static struct epoll_event events[EVENTS];
    static uint64_t slow_due_ns;
    if (options.slow && slow_due_ns < until_ns) until_ns = slow_due_ns ? slow_due_ns : until_ns;
    int n = wait_events(epoll_fd, events, until_ns);
    for (int i = 0; i < n; i++) handle(events[i].data.ptr, events[i].events);
    if (!options.slow || now_ns() < slow_due_ns) return;
    slow_due_ns = now_ns() + NS_PER_S / 10;
    for (int i = 0; i < options.slow && i < connection_count; i++)
        if (connections[i].stage == OPEN) receive(&connections[i], (size_t)(options.slow_rate / 10));
}

static void prepare(void) {
    total = (unsigned)options.connections * (unsigned)options.conversations;
    connection_count = options.connections + options.readers;
    connections = calloc((size_t)connection_count, sizeof *connections);
    for (int i = 0; connections && i < connection_count; i++) {
        struct connection *c = &connections[i];
        c->count = (unsigned)options.conversations;
        c->first = (unsigned)((uint64_t)i * c->count % total);
        c->reader = i >= options.connections;
        c->slow = i < options.slow;
        c->conversations = calloc(c->count, sizeof *c->conversations);
        if (!c->conversations) die("out of memory");
    }
    if (!connections) die("out of memory");
}

/* Connects all, the readers last: what they follow needn't exist yet. */
static void connect_all(uint64_t deadline_ns) {
    int begun = 0;
    while (opened + failed < (unsigned)connection_count && now_ns() < deadline_ns) {
        while (begun < connection_count && begun - (int)(opened + failed) < options.in_flight)
            connect_next(&connections[begun++]);
        turn(deadline_ns);
    }
}

static void ask_all(void) {
    uint64_t begin = now_ns();
    for (unsigned number = 0; number < total; number++) {
        /* Not in step: paced answers that begin together would come together. */
        double at = number + (number * 0.6180339887 - (unsigned)(number * 0.6180339887));
        uint64_t due = begin + (uint64_t)(options.ramp_s * 1e9 * at / total);
        while (now_ns() < due) turn(due);
        /* Spread over the connections, too. */
        struct connection *c = &connections[number % (unsigned)options.connections];
        if (c->stage == OPEN) ask(c, number / (unsigned)options.connections);
        if (number % 64 == 63) turn(1);
    }
}

static bool finished(void) {
    if (options.expect && had_all + failed >= total) return true;
    unsigned never = failed * (unsigned)options.conversations;
    return closed == (unsigned)connection_count || (options.once && answered_all + never >= total);
}

static void run_until(uint64_t deadline_ns) {
    while (now_ns() < deadline_ns && !finished()) {
        uint64_t slice = start_ns + (uint64_t)(slice_count + 1) * NS_PER_S;
        turn(measuring && slice < deadline_ns ? slice : deadline_ns);
        if (measuring && now_ns() >= slice) take_slice();
    }
}

int main(int count, char **words) {
    options_read(count, words);
    raise_file_limit();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    prepare();
    bool at_once = options.after >= 0 || options.connect_only;
    if (at_once) begin_measuring(); /* connecting is part of it */
    connect_all(now_ns() + 60 * NS_PER_S);
    if (options.connect_only) {
        end_measuring();
        print_result();
        struct epoll_event ended = {.events = EPOLLIN, .data.ptr = NULL};
        if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, 0, &ended)) return 0; /* a file is at its end already */
        for (struct epoll_event events[EVENTS];;) {
            int n = wait_events(epoll_fd, events, 0);
            for (int i = 0; i < n; i++) {
                if (!events[i].data.ptr) return 0;
                handle(events[i].data.ptr, events[i].events);
            }
        }
    }
    if (!at_once) {
        if (options.once) begin_measuring();
        ask_all();
        if (!options.once) {
            /* A server that is slow to begin isn't measured while it does. */
            uint64_t patience = now_ns() + BEGIN_PATIENCE_S * NS_PER_S;
            while (all_begun < total && !finished() && now_ns() < patience) turn(patience);
            run_until(now_ns() + (uint64_t)(options.warmup_s * 1e9));
            begin_measuring();
        }
    }
    run_until(start_ns + (uint64_t)(options.seconds * 1e9));
    end_measuring();
    print_result();
    return 0;
}
