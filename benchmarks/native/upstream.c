/* An OpenAI-compatible generator that is cheap enough never to be what is measured.
 *
 *   upstream [PORT] [tokens=400 rate=50 size=6 delay=0 start=0 hold=0 stamp=1]
 *
 * POST …/chat/completions answers as the last user message asks (script.h); the words of the command line are what a
 * message leaves out. Every chunk has OpenAI's shape. At a paced rate each token is a write of its own, on time; at
 * rate 0, and when a peer didn't take what was due, as much as the socket takes is sent at once. A token's stamp is
 * when it was due if the peer was behind, so that waiting counts, and when it was sent otherwise. GET …/stats tells
 * what was done so far. One thread, a wheel of timers: a token costs a write and little else. */
#include "core.h"
#include "script.h"
#include "stamp.h"
#include "wheel.h"
#include "wire.h"

#define BURST_BYTES 65536u
#define SEND_BUFFER_BYTES 32768

static const char WORDS[] = " the conversation is a log and every reader has its own cursor on it";

enum phase { IDLE, STREAMING, HOLDING };

struct connection {
    int fd;
    enum phase phase;
    struct buffer in, out;
    struct script script;
    bool usage;  /* asked for with stream_options */
    bool behind; /* the peer doesn't take what is due */
    uint64_t number, start_ns, due_ns;
    int sent;
    char prefix[512], suffix[96];
    size_t prefix_length, suffix_length, word;
    struct timer timer;
    struct connection *next_dead;
};

static struct script defaults;
static struct connection *dead;
static uint64_t requests, streams, tokens, writes, cancelled, late_max_ns; /* `streams`: being answered now */
static int epoll_fd;

static void drop(struct connection *c) {
    if (c->fd < 0) return;
    if (c->phase != IDLE) cancelled++, streams--;
    timer_stop(&c->timer);
    close(c->fd);
    c->fd = -1;
    c->next_dead = dead; /* events of this turn may still name it */
    dead = c;
}

static void add_chunk(struct connection *c, const char *data, size_t length) {
    char size[16];
    buffer_add(&c->out, size, (size_t)snprintf(size, sizeof size, "%zx\r\n", length));
    buffer_add(&c->out, data, length);
    buffer_add(&c->out, "\r\n", 2);
}

/* `data: {…"delta":{` up to the delta, `}…}` from there: as OpenAI sends them. */
static void add_event(struct connection *c, const char *shell, const char *delta, const char *reason) {
    char event[1024];
    int n = snprintf(event, sizeof event, "data: %s\"choices\":[{\"index\":0,\"delta\":{%s},\"logprobs\":null,"
                     "\"finish_reason\":%s}]%s}\n\n", shell, delta, reason, c->usage ? ",\"usage\":null" : "");
    add_chunk(c, event, (size_t)n);
}

static void shell_of(struct connection *c, char *shell, size_t size) {
    snprintf(shell, size, "{\"id\":\"chatcmpl-%012lx\",\"object\":\"chat.completion.chunk\",\"created\":%ld,"
             "\"model\":\"bench\",\"service_tier\":\"default\",\"system_fingerprint\":\"fp_0000000000\",",
             (unsigned long)c->number, (long)time(NULL));
}

static void prepare(struct connection *c) {
    char shell[256], text[256];
    shell_of(c, shell, sizeof shell);
    c->suffix_length = (size_t)snprintf(c->suffix, sizeof c->suffix, "\"},\"logprobs\":null,\"finish_reason\":null}]%s}"
                                        "\n\n\r\n", c->usage ? ",\"usage\":null" : "");
    int n = snprintf(text, sizeof text, "data: %s\"choices\":[{\"index\":0,\"delta\":{\"content\":\"", shell);
    size_t chunk = (size_t)n + (size_t)c->script.size + c->suffix_length - 2;
    c->prefix_length = (size_t)snprintf(c->prefix, sizeof c->prefix, "%zx\r\n%s", chunk, text);
    buffer_text(&c->out, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                "cache-control: no-cache\r\nx-request-id: req_bench\r\ntransfer-encoding: chunked\r\n\r\n");
    add_event(c, shell, "\"role\":\"assistant\",\"content\":\"\",\"refusal\":null", "null");
}

static void add_token(struct connection *c, uint64_t stamp_ns) {
    size_t size = (size_t)c->script.size, at = 0;
    buffer_reserve(&c->out, c->prefix_length + size + c->suffix_length);
    char *out = c->out.data + c->out.end;
    memcpy(out, c->prefix, c->prefix_length);
    out += c->prefix_length;
    if (c->script.stamp && size >= STAMP_BYTES) {
        stamp_write(out, stamp_ns);
        at = STAMP_BYTES;
    }
    for (; at < size; at++) {
        out[at] = WORDS[c->word++];
        if (c->word == sizeof WORDS - 1) c->word = 0;
    }
    memcpy(out + size, c->suffix, c->suffix_length);
    c->out.end += c->prefix_length + size + c->suffix_length;
    c->sent++;
    tokens++;
}

static void finish(struct connection *c) {
    char shell[256], usage[512];
    shell_of(c, shell, sizeof shell);
    add_event(c, shell, "", "\"stop\"");
    if (c->usage) {
        int n = snprintf(usage, sizeof usage, "data: %s\"choices\":[],\"usage\":{\"prompt_tokens\":9,"
                         "\"completion_tokens\":%d,\"total_tokens\":%d}}\n\n", shell, c->sent, 9 + c->sent);
        add_chunk(c, usage, (size_t)n);
    }
    add_chunk(c, "data: [DONE]\n\n", 14);
    buffer_text(&c->out, "0\r\n\r\n");
    c->phase = IDLE;
    streams--;
}

/* False: the peer is gone. What it doesn't take stays in `out`, and EPOLLOUT will come. */
static bool flush(struct connection *c) {
    if (!buffer_length(&c->out)) return true;
    writes++;
    if (!buffer_flush(&c->out, c->fd)) {
        drop(c);
        return false;
    }
    c->behind |= buffer_length(&c->out) > 0;
    return true;
}

static void take_requests(struct connection *c);

/* The tokens that are due: one, or what a burst holds when a peer was behind or no rate is asked for. */
static void add_due(struct connection *c, uint64_t now) {
    const struct script *s = &c->script;
    bool paced = s->rate > 0;
    if (paced && !c->behind && now - c->due_ns > late_max_ns) late_max_ns = now - c->due_ns;
    do {
        add_token(c, paced && c->behind ? c->due_ns : now);
        c->due_ns = paced ? c->start_ns + (uint64_t)(1e9 * c->sent / s->rate) : 0;
    } while ((c->behind || !paced) && c->due_ns <= now && c->sent < s->tokens && buffer_length(&c->out) < BURST_BYTES);
}

/* Sends what is due until the peer doesn't take it, or nothing more is due. */
static void go_on(struct connection *c) {
    while (c->phase != IDLE && flush(c) && !buffer_length(&c->out)) {
        uint64_t now = now_ns();
        if (c->due_ns > now) {
            c->behind = false;
            timer_start(&c->timer, c->due_ns);
            return;
        }
        if (c->sent < c->script.tokens) {
            add_due(c, now);
        } else if (c->phase == STREAMING && c->script.hold > 0) {
            c->phase = HOLDING;
            c->due_ns = now + (uint64_t)(c->script.hold * 1e9);
        } else {
            finish(c);
            if (flush(c)) take_requests(c);
            return;
        }
    }
}

static void answer_json(struct connection *c, int status, const char *body) {
    char head[160];
    snprintf(head, sizeof head, "HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n",
             status, strlen(body));
    buffer_text(&c->out, head);
    buffer_text(&c->out, body);
    flush(c);
}

static void answer_stats(struct connection *c) {
    char body[320];
    snprintf(body, sizeof body,
             "{\"requests\":%lu,\"streams\":%lu,\"tokens\":%lu,\"writes\":%lu,\"cancelled\":%lu,\"late_max_us\":%lu,"
             "\"cpu_ns\":%lu}", (unsigned long)requests, (unsigned long)streams, (unsigned long)tokens,
             (unsigned long)writes, (unsigned long)cancelled, (unsigned long)(late_max_ns / NS_PER_US),
             (unsigned long)cpu_ns(0));
    answer_json(c, 200, body);
}

static void answer_chat(struct connection *c, struct span body) {
    requests++;
    if (!span_is(json_get(body, "stream"), "true")) {
        answer_json(c, 200,
                    "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":1764000000,\"model\":\"bench\","
                    "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"A short summary.\"},"
                    "\"finish_reason\":\"stop\"}],"
                    "\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":4,\"total_tokens\":13}}");
        return;
    }
    c->script = script_parse(defaults, last_question(body));
    c->usage = span_is(json_get(json_get(body, "stream_options"), "include_usage"), "true");
    c->number = requests;
    c->phase = STREAMING;
    streams++;
    c->behind = false;
    c->sent = 0;
    c->start_ns = now_ns() + (uint64_t)(c->script.delay * 1e9);
    uint64_t start_ns = (uint64_t)(c->script.start * 1e9);
    if (start_ns > c->start_ns) {
        /* Together, but not in step. */
        double turn = (double)c->number * 0.6180339887, phase = turn - (double)(uint64_t)turn;
        c->start_ns = start_ns + (c->script.rate > 0 ? (uint64_t)(1e9 * phase / c->script.rate) : 0);
    }
    c->due_ns = c->start_ns;
    prepare(c);
}

/* Reads whole requests while none is being answered. */
static void take_requests(struct connection *c) {
    while (c->fd >= 0 && c->phase == IDLE && buffer_length(&c->in)) {
        char *start = c->in.data + c->in.start, *end = c->in.data + c->in.end;
        char *after = head_end(start, end);
        if (!after) return;
        const char *length = header_value(start, after, "content-length:");
        struct span body = {after, after + (length ? strtoul(length, NULL, 10) : 0)};
        if (body.end > end) return;
        bool post = !strncmp(start, "POST ", 5);
        char *line_end = memchr(start, '\r', (size_t)(after - start));
        bool chat = memmem(start, (size_t)(line_end - start), "/chat/completions", 17) != NULL;
        bool stats = memmem(start, (size_t)(line_end - start), "/stats", 6) != NULL;
        if (post && chat) answer_chat(c, body);
        else if (stats) answer_stats(c);
        else answer_json(c, 404, "{\"error\":{\"message\":\"no such address\",\"type\":\"invalid_request_error\"}}");
        if (c->fd < 0) return;
        buffer_consume(&c->in, (size_t)(body.end - start));
        go_on(c);
    }
}

static void receive(struct connection *c) {
    for (;;) {
        buffer_reserve(&c->in, 16384);
        ssize_t n = recv(c->fd, c->in.data + c->in.end, 16384, 0);
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
        if (n <= 0) {
            drop(c);
            return;
        }
        c->in.end += (size_t)n;
    }
    take_requests(c);
    if (c->fd >= 0 && !buffer_length(&c->in)) buffer_free(&c->in);
}

static void accept_all(int listener) {
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct connection *c = calloc(1, sizeof *c);
        if (!c) die("out of memory");
        c->fd = fd;
        set_nodelay(fd);
        /* A peer that reads no more is felt soon: little more is sent than what it takes. */
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &(int){SEND_BUFFER_BYTES}, sizeof(int));
        watch(epoll_fd, fd, c);
    }
}

static void timer_fired(struct timer *timer) {
    go_on((struct connection *)((char *)timer - offsetof(struct connection, timer)));
}

static void bury(void) {
    while (dead) {
        struct connection *c = dead;
        dead = c->next_dead;
        buffer_free(&c->in);
        buffer_free(&c->out);
        free(c);
    }
}

int main(int count, char **words) {
    defaults = SCRIPT_DEFAULT;
    for (int i = 2; i < count; i++)
        defaults = script_parse(defaults, (struct span){words[i], words[i] + strlen(words[i])});
    raise_file_limit();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    int listener = listen_loopback(count > 1 ? atoi(words[1]) : 0);
    watch(epoll_fd, listener, NULL);
    wheel_begin(now_ns());
    struct epoll_event events[EVENTS];
    for (;;) {
        int n = wait_events(epoll_fd, events, wheel_next_ns());
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (!c) accept_all(listener);
            if (c && c->fd >= 0 && events[i].events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) receive(c);
            if (c && c->fd >= 0 && events[i].events & EPOLLOUT && buffer_length(&c->out) && flush(c)) go_on(c);
        }
        wheel_turn(now_ns(), timer_fired);
        bury();
    }
}
