/* The floor: a relay that does the system calls and little else.
 *
 *   relay PORT UPSTREAM_PORT [merge|batch]
 *
 * The gateway's simplest dialogue on WebSocket, `chat_message` in, `token` and `done` out, from an OpenAI-compatible
 * upstream on loopback. Nothing is parsed but the text between `"content":"` and its quote, and there is no log, no
 * order, no limit and no error but the end of a connection. Each token frame is a send of its own; with `merge`, all
 * that came with one recv goes out with one send; with `batch`, text is held until it has 10 characters or is 50 ms
 * old, as the gateway does by default. It speaks with `wsload` only: the answer to its handshake is the one to
 * wsload's own key. */
#include "json.h"
#include "wire.h"

#define READ_BYTES 65536
#define BATCH_CHARS 10
#define BATCH_NS 50000000ull

static const char WELCOME[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                              "Sec-WebSocket-Accept: tWMZtDN5RB+TnjsBjiT+FpqF2Qg=\r\n\r\n";

enum kind { CLIENT, UPSTREAM };

struct peer {
    enum kind kind;
    int fd;
    bool open, ended; /* the handshake is over; upstream has said [DONE] */
    struct buffer in, out, text;
    char id[160];     /* of the conversation that an upstream connection answers */
    struct peer *client;
    struct peer *next;       /* idle upstream connections; or the dead of this turn */
    struct peer *next_due, *previous_due; /* text that waits, oldest first */
    uint64_t due_ns;
    int answers; /* being given on this client; it isn't freed before they end */
};

static struct peer *idle, *dead, *due_first, *due_last;
static int epoll_fd, upstream_port;
static bool merge, batch;
static char scratch[READ_BYTES];

static struct peer *peer_new(enum kind kind, int fd) {
    struct peer *p = calloc(1, sizeof *p);
    if (!p || fd < 0) die("no connection");
    p->kind = kind;
    p->fd = fd;
    set_nodelay(fd);
    watch(epoll_fd, fd, p);
    return p;
}

static void due_stop(struct peer *u) {
    if (!u->due_ns) return;
    *(u->previous_due ? &u->previous_due->next_due : &due_first) = u->next_due;
    *(u->next_due ? &u->next_due->previous_due : &due_last) = u->previous_due;
    u->next_due = u->previous_due = NULL;
    u->due_ns = 0;
}

static void due_start(struct peer *u) {
    if (u->due_ns) return;
    u->due_ns = now_ns() + BATCH_NS;
    u->previous_due = due_last;
    *(due_last ? &due_last->next_due : &due_first) = u;
    due_last = u;
}

static void flush(struct peer *p) {
    if (p->fd >= 0) buffer_flush(&p->out, p->fd);
}

static void close_peer(struct peer *p) {
    if (p->fd < 0) return;
    close(p->fd);
    p->fd = -1;
    due_stop(p);
    if (p->kind == UPSTREAM) {
        for (struct peer **at = &idle; *at; at = &(*at)->next)
            if (*at == p) {
                *at = p->next;
                break;
            }
        if (p->client) p->client->answers--;
    }
    if (p->kind == CLIENT && p->answers) return; /* its answers run to their end, into nothing */
    p->next = dead;
    dead = p;
}

static void add_frame(struct peer *u, const char *type, struct span content) {
    char frame[8192];
    bool token = content.start != NULL;
    int n = snprintf(frame, sizeof frame, "{\"type\":\"%s\",\"conversation_id\":\"%s\"%s%.*s%s}", type, u->id,
                     token ? ",\"content\":\"" : "", token ? (int)span_length(content) : 0, token ? content.start : "",
                     token ? "\"" : "");
    if (u->client->fd >= 0) add_unmasked(&u->client->out, WS_TEXT, frame, (size_t)n);
}

static void flush_text(struct peer *u) {
    due_stop(u);
    if (!buffer_length(&u->text)) return;
    add_frame(u, "token", (struct span){u->text.data + u->text.start, u->text.data + u->text.end});
    u->text.start = u->text.end = 0;
}

static void ask(struct peer *client, struct span id, struct span message) {
    struct peer *u = idle;
    if (u) idle = u->next;
    else u = peer_new(UPSTREAM, connect_loopback(upstream_port, 0));
    u->next = NULL;
    u->client = client;
    u->ended = false;
    client->answers++;
    snprintf(u->id, sizeof u->id, "%.*s", (int)span_length(id), id.start);
    char body[8192], head[256];
    int n = snprintf(body, sizeof body,
                     "{\"model\":\"bench\",\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"%.*s\"}]}",
                     (int)span_length(message), message.start);
    int m = snprintf(head, sizeof head,
                     "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                     "Content-Length: %d\r\n\r\n", n);
    buffer_add(&u->out, head, (size_t)m);
    buffer_add(&u->out, body, (size_t)n);
    flush(u);
}

static char *hear_client(struct peer *c, char *at, char *end) {
    if (!c->open) {
        char *rest = head_end(at, end);
        if (!rest) return at;
        buffer_text(&c->out, WELCOME);
        flush(c);
        c->open = true;
        at = rest;
    }
    for (struct ws_frame frame; next_frame(&at, end, &frame);) {
        struct span text = {frame.payload, frame.payload + frame.length};
        if (frame.opcode == WS_TEXT) ask(c, json_get(text, "conversation_id"), json_get(text, "message"));
    }
    return at;
}

static void hear_content(struct peer *u, struct span content) {
    if (!span_length(content)) return;
    if (!batch) {
        add_frame(u, "token", content);
        if (!merge) flush(u->client);
        return;
    }
    buffer_add(&u->text, content.start, span_length(content));
    if (buffer_length(&u->text) >= BATCH_CHARS) flush_text(u);
    else due_start(u);
}

static char *hear_upstream(struct peer *u, char *at, char *end) {
    static const char NAME[] = "\"content\":\"";
    for (char *stop; at < end && (stop = memchr(at, '\n', (size_t)(end - at))); at = stop + 1) {
        if (stop - at > 20 && *at == 'd') {
            char *found = memmem(at, (size_t)(stop - at), NAME, sizeof NAME - 1);
            if (found) found += sizeof NAME - 1;
            if (found) hear_content(u, (struct span){found, json_string_end(found, stop)});
        } else if (stop - at >= 12 && !memcmp(at, "data: [DONE]", 12)) {
            flush_text(u);
            add_frame(u, "done", (struct span){0});
            u->ended = true;
        }
    }
    if (u->client) flush(u->client);
    if (!u->ended || !u->client) return at;
    /* The last chunk comes with [DONE] or just behind it; the next answer's lines start anew either way. */
    struct peer *client = u->client;
    u->client = NULL;
    u->next = idle;
    idle = u;
    if (!--client->answers && client->fd < 0) {
        client->next = dead;
        dead = client;
    }
    return at;
}

static void receive(struct peer *p) {
    while (p->fd >= 0) {
        bool plain = !buffer_length(&p->in);
        if (!plain) buffer_reserve(&p->in, READ_BYTES);
        char *into = plain ? scratch : p->in.data + p->in.end;
        ssize_t n = recv(p->fd, into, READ_BYTES, 0);
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
        if (n <= 0) {
            close_peer(p);
            return;
        }
        char *start = plain ? scratch : p->in.data + p->in.start, *end = into + n;
        if (!plain) p->in.end += (size_t)n;
        char *used = p->kind == CLIENT ? hear_client(p, start, end) : hear_upstream(p, start, end);
        if (plain) buffer_add(&p->in, used, (size_t)(end - used));
        else buffer_consume(&p->in, (size_t)(used - start));
        if (n < READ_BYTES) return;
    }
}

static void bury(void) {
    while (dead) {
        struct peer *p = dead;
        dead = p->next;
        buffer_free(&p->in);
        buffer_free(&p->out);
        buffer_free(&p->text);
        free(p);
    }
}

int main(int count, char **words) {
    if (count < 3) {
        fputs("usage: relay PORT UPSTREAM_PORT [merge|batch]\n", stderr);
        return 2;
    }
    upstream_port = atoi(words[2]);
    merge = count > 3 && !strcmp(words[3], "merge");
    batch = count > 3 && !strcmp(words[3], "batch");
    raise_file_limit();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    int listener = listen_loopback(atoi(words[1]));
    watch(epoll_fd, listener, NULL);
    struct epoll_event events[EVENTS];
    for (;;) {
        int n = wait_events(epoll_fd, events, due_first ? due_first->due_ns : 0);
        for (int i = 0, fd; i < n; i++) {
            struct peer *p = events[i].data.ptr;
            while (!p && (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) peer_new(CLIENT, fd);
            if (!p || p->fd < 0) continue;
            if (events[i].events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) receive(p);
            if (events[i].events & EPOLLOUT) flush(p);
        }
        while (due_first && due_first->due_ns <= now_ns()) {
            struct peer *u = due_first;
            flush_text(u);
            flush(u->client);
        }
        bury();
    }
}
