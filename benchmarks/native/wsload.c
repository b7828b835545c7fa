/* The load client: many conversations at once, each asked again as soon as it is answered, every frame looked at.
 *
 * `wsload --help` tells the options. It prints one line of JSON when it is done. Times are microseconds; `added` is
 * the age of a token's stamp when its frame has come: the whole way from the upstream's socket to this one.
 * One thread on epoll; a token costs it about as much as it costs the upstream. */
#include "histogram.h"
#include "json.h"
#include "load_options.h"
#include "stamp.h"
#include "wire.h"

#define READ_BYTES 262144
#define SLICES 3600
#define CODES 64

enum stage { CONNECTING, HANDSHAKE, GREETING, OPEN, CLOSED };

struct conversation {
    uint64_t asked_ns;
    uint64_t seq, tokens, chars; /* the last seq seen; of this turn */
    bool asked, begun, answered, unchecked;
};

struct connection {
    int fd;
    enum stage stage;
    bool reader, slow, responding;
    struct buffer in, out, text;
    struct body body;
    uint64_t connect_ns;
    unsigned first, count; /* its conversations: from number `first` on, round the end */
    struct conversation *conversations;
};

static struct counts {
    uint64_t tokens, frames, bytes, chars, done, asked, gaps, duplicates, wrong_length, slow_tokens;
} now_counts, start_counts;

static struct { char code[48]; uint64_t count; } errors[CODES];
static struct histogram added, slow_added, first_token, connected, all_first_token;
static struct { double at_s; uint64_t tokens, cpu[PIDS]; } slices[SLICES];
static uint64_t start_cpu[PIDS], end_cpu[PIDS], own_start, own_end, end_counts_ns, start_ns;
static struct connection *connections;
static unsigned total, opened, failed, resumed, answered_all, closed;
static int epoll_fd, connection_count, slice_count;
static bool measuring;
static char scratch[READ_BYTES];

static void count_error(const char *code, size_t length) {
    if (length >= sizeof errors[0].code) length = sizeof errors[0].code - 1;
    for (int i = 0; i < CODES; i++) {
        if (errors[i].count && (strncmp(errors[i].code, code, length) || errors[i].code[length])) continue;
        memcpy(errors[i].code, code, length);
        errors[i].count++;
        return;
    }
}

static void drop(struct connection *c, const char *why) {
    if (c->stage == CLOSED) return;
    if (why) count_error(why, strlen(why));
    if (c->stage < OPEN) failed++;
    closed++;
    close(c->fd);
    c->fd = -1;
    c->stage = CLOSED;
}

static void flush(struct connection *c) {
    if (!buffer_flush(&c->out, c->fd)) drop(c, "CONNECTION_LOST");
}

/* ---- asking ---- */

static void begin_turn(struct conversation *v, uint64_t now) {
    v->asked = true;
    v->begun = v->unchecked = false;
    v->tokens = v->chars = 0;
    v->asked_ns = now;
    now_counts.asked++;
}

static void request(struct connection *c, const char *method, const char *path, const char *body) {
    buffer_reserve(&c->out, strlen(path) + strlen(body) + 1024);
    c->out.end += (size_t)sprintf(c->out.data + c->out.end, "%s %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: text/event-stream\r\n"
        "Content-Type: application/json\r\nContent-Length: %zu\r\n%s%s\r\n%s", method, path, options.port, strlen(body),
        options.header, *options.header ? "\r\n" : "", body);
    c->responding = false;
    c->text.start = c->text.end = 0;
}

static void ask(struct connection *c, unsigned slot) {
    char frame[8192];
    unsigned number = (c->first + slot) % total;
    int n;
    begin_turn(&c->conversations[slot], now_ns());
    if (options.mode == OPENAI) {
        snprintf(frame, sizeof frame, "{\"model\":\"%s\",\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"%s\"}]}",
                 options.model, options.message);
        request(c, "POST", options.path, frame);
    } else if (options.mode == SSE) {
        snprintf(frame, sizeof frame, "{\"conversation_id\":\"%s-%u\",\"message\":\"%s\"}", options.prefix, number,
                 options.message);
        request(c, "POST", options.path, frame);
    } else {
        bool sio = options.mode == SIO;
        n = snprintf(frame, sizeof frame, "%s{\"type\":\"chat_message\",\"conversation_id\":\"%s-%u\",\"message\":\"%s\"}%s",
                     sio ? "42[\"chat_message\"," : "", options.prefix, number, options.message, sio ? "]" : "");
        add_masked(&c->out, WS_TEXT, frame, (size_t)n);
    }
    flush(c);
}

/* Follows its conversations, from the head or from a cursor. */
static void subscribe(struct connection *c) {
    char frame[512], path[1024];
    uint64_t now = now_ns();
    for (unsigned slot = 0; slot < c->count; slot++) {
        unsigned number = (c->first + slot) % total;
        c->conversations[slot].asked_ns = now;
        if (options.mode == SSE || options.mode == OPENAI) {
            char id[96];
            snprintf(id, sizeof id, "%s-%u", options.prefix, number);
            snprintf(path, sizeof path, options.resume ? options.resume : "/api/chat/stream?conversation_id=%s&after=0", id);
            request(c, "GET", path, "");
            continue;
        }
        char after[32] = "";
        if (options.after >= 0) snprintf(after, sizeof after, ",\"after\":%ld", options.after);
        bool sio = options.mode == SIO;
        int n = snprintf(frame, sizeof frame, "%s{\"type\":\"subscribe\",\"conversation_id\":\"%s-%u\"%s}%s",
                         sio ? "42[\"subscribe\"," : "", options.prefix, number, after, sio ? "]" : "");
        add_masked(&c->out, WS_TEXT, frame, (size_t)n);
    }
    flush(c);
}

/* ---- hearing ---- */

static struct conversation *conversation_of(struct connection *c, struct span id) {
    const char *digits = id.end;
    while (digits > id.start && digits[-1] >= '0' && digits[-1] <= '9') digits--;
    unsigned slot = digits == id.end ? 0 : ((unsigned)span_number((struct span){digits, id.end}) + total - c->first) % total;
    return slot < c->count ? &c->conversations[slot] : NULL;
}

/* Unicode code points of a JSON string. */
static uint64_t code_points(struct span s) {
    uint64_t n = 0;
    for (const char *p = s.start; p < s.end; p++) {
        if (*p == '\\' && p + 1 < s.end) {
            p++;
            if (*p == 'u') {
                n -= p + 2 < s.end && (p[1] | 32) == 'd' && (p[2] | 32) >= 'c'; /* the second half of a pair */
                p += 4;
            }
            n++;
        } else {
            n += (*p & 0xc0) != 0x80;
        }
    }
    return n;
}

static void hear_token(struct connection *c, struct conversation *v, struct span content, uint64_t now) {
    uint64_t tokens = 0;
    for (const char *p = content.start; (p = memchr(p, '@', (size_t)(content.end - p)));) {
        int64_t age_us = stamp_age_us(p, content.end, now);
        if (age_us >= 0) {
            tokens++;
            histogram_add(c->slow ? &slow_added : &added, (uint64_t)age_us);
        }
        if (++p >= content.end) break;
    }
    tokens += !tokens && content.end > content.start; /* unstamped: a frame counts as one */
    if (!v->begun && tokens && !c->reader) {
        v->begun = true;
        uint64_t us = (now - v->asked_ns) / NS_PER_US;
        histogram_add(&all_first_token, us);
        if (measuring) histogram_add(&first_token, us);
    }
    uint64_t chars = code_points(content);
    v->tokens += tokens;
    v->chars += chars;
    now_counts.tokens += tokens;
    now_counts.chars += chars;
    if (c->slow) now_counts.slow_tokens += tokens;
    now_counts.frames++;
    if (options.after >= 0 && !v->answered && v->tokens >= (uint64_t)options.expect) {
        v->answered = true;
        histogram_add(&connected, (now - c->connect_ns) / NS_PER_US);
        resumed++;
    }
}

static void hear_done(struct connection *c, struct conversation *v) {
    now_counts.done++;
    if (c->reader || options.after >= 0) {
        v->tokens = options.after >= 0 ? v->tokens : 0;
        v->chars = 0;
        return;
    }
    if (!v->answered) answered_all++;
    v->answered = true;
    v->asked = false;
}

static void check_order(struct conversation *v, struct span first, struct span seq) {
    if (!span_length(seq)) return;
    uint64_t from = span_length(first) ? span_number(first) : span_number(seq), to = span_number(seq);
    if (from > v->seq + 1) now_counts.gaps++;
    if (from <= v->seq) now_counts.duplicates++;
    v->seq = to;
}

/* Asks again, unless each is to ask once; over SSE when the answer is whole. */
static void turn_over(struct connection *c, struct conversation *v) {
    if (c->reader || c->stage != OPEN || options.once || options.after >= 0) return;
    if (options.mode == WS || options.mode == SIO) ask(c, (unsigned)(v - c->conversations));
}

static void hear_object(struct connection *c, struct span object, struct span type, uint64_t now) {
    struct span key, value, none = {object.end, object.end};
    struct span id = none, content = none, seq = none, first = none, error = none, length = none, after = none, turn = none;
    for (const char *p = object.start; json_member(&p, object.end, &key, &value);) {
        if (span_is(key, "type")) type = value;
        else if (span_is(key, "content") || span_is(key, "delta")) content = value;
        else if (span_is(key, "conversation_id")) id = value;
        else if (span_is(key, "seq")) seq = value;
        else if (span_is(key, "first_seq")) first = value;
        else if (span_is(key, "error")) error = value;
        else if (span_is(key, "text_length")) length = value;
        else if (span_is(key, "after")) after = value;
        else if (span_is(key, "turn_id")) turn = value;
    }
    struct conversation *v = conversation_of(c, id);
    if (!v) {
        count_error("UNKNOWN_CONVERSATION", 20);
        return;
    }
    bool snapshot = span_is(type, "snapshot");
    if (span_is(type, "subscribed")) v->seq = span_number(after);
    else if (snapshot) v->seq = span_number(seq);
    else check_order(v, first, seq);
    if (span_is(type, "token") || span_is(type, "text-delta")) hear_token(c, v, content, now);
    if (span_is(type, "restart") || snapshot) v->unchecked = true;
    bool is_error = span_is(type, "error");
    if (is_error) {
        struct span code = json_get(error, "code");
        if (!span_length(code)) code = (struct span){"ERROR", "ERROR" + 5};
        count_error(code.start, span_length(code));
    }
    if (span_is(type, "done") && span_length(length) && !c->reader && options.after < 0 && !v->unchecked &&
        span_number(length) != v->chars)
        now_counts.wrong_length++;
    if (span_is(type, "done") || span_is(type, "finish") || (is_error && span_length(turn))) {
        hear_done(c, v);
        turn_over(c, v);
    }
}

/* An event of OpenAI's API. */
static void hear_openai(struct connection *c, struct span object, uint64_t now) {
    struct conversation *v = c->conversations;
    if (span_is(object, "[DONE]")) {
        hear_done(c, v);
        return;
    }
    struct span choices = json_get(object, "choices"), choice, error = json_get(object, "error");
    const char *p = choices.start;
    if (span_length(error)) count_error("STREAM_ERROR", 12);
    if (!json_item(&p, choices.end, &choice)) return;
    struct span content = json_get(json_get(choice, "delta"), "content");
    if (span_length(content) && !span_is(content, "null")) hear_token(c, v, content, now);
}

static void became_open(struct connection *c, uint64_t now) {
    c->stage = OPEN;
    opened++;
    if (options.after < 0) histogram_add(&connected, (now - c->connect_ns) / NS_PER_US);
    if (c->reader || options.after >= 0) subscribe(c);
}

/* engine.io 4 with socket.io's own packets in it. */
static void hear_sio(struct connection *c, struct span text, uint64_t now) {
    size_t length = span_length(text);
    if (length && *text.start == '0') add_masked(&c->out, WS_TEXT, "40", 2);
    if (length && *text.start == '2') add_masked(&c->out, WS_TEXT, "3", 1);
    if (length < 2 || *text.start != '4') {
        flush(c);
        return;
    }
    if (text.start[1] == '0' && c->stage == GREETING) became_open(c, now);
    const char *p = text.start + 2;
    struct span event, object;
    if (text.start[1] != '2' || !json_item(&p, text.end, &event) || !json_item(&p, text.end, &object)) return;
    event = (struct span){event.start + 1, event.end - 1};
    hear_object(c, object, event, now);
}

static void hear_frame(struct connection *c, const struct ws_frame *frame, uint64_t now) {
    struct span text = {frame->payload, frame->payload + frame->length};
    if (frame->opcode == WS_PING) {
        add_masked(&c->out, WS_PONG, frame->payload, frame->length);
        flush(c);
    } else if (frame->opcode == WS_CLOSE) {
        char why[32];
        unsigned code = frame->length >= 2 ? (unsigned char)text.start[0] * 256u + (unsigned char)text.start[1] : 1005;
        snprintf(why, sizeof why, "CLOSED_%u", code);
        drop(c, why);
    } else if (!frame->final || frame->opcode == WS_MORE) {
        drop(c, "FRAGMENTED");
    } else if (frame->opcode != WS_PONG && options.mode == SIO) {
        hear_sio(c, text, now);
    } else if (frame->opcode != WS_PONG) {
        hear_object(c, text, (struct span){text.end, text.end}, now);
    }
}

/* Whole lines of an event stream. */
static void hear_lines(struct connection *c, uint64_t now) {
    char *start = c->text.data + c->text.start, *end = c->text.data + c->text.end, *line = start, *stop;
    while (line < end && (stop = memchr(line, '\n', (size_t)(end - line)))) {
        struct span data = {line, stop > line && stop[-1] == '\r' ? stop - 1 : stop};
        line = stop + 1;
        if (span_length(data) < 6 || memcmp(data.start, "data:", 5)) continue;
        data.start = json_space(data.start + 5, data.end);
        if (options.mode == OPENAI) hear_openai(c, data, now);
        else if (*data.start == '{') hear_object(c, data, (struct span){data.end, data.end}, now);
    }
    buffer_consume(&c->text, (size_t)(line - start));
}

/* Reads an answer to a request, and asks again when it is whole. Returns what is used of the bytes. */
static char *hear_http(struct connection *c, char *at, char *end, uint64_t now) {
    if (!c->responding) {
        char *body = head_end(at, end), why[32];
        if (!body) return at;
        int status = atoi(at + 9);
        body_begin(&c->body, at, body);
        c->responding = true;
        at = body;
        if (status != 200) {
            snprintf(why, sizeof why, "HTTP_%d", status);
            drop(c, why);
            return end;
        }
    }
    body_take(&c->body, &at, end, &c->text);
    hear_lines(c, now);
    if (c->body.whole && c->stage == OPEN) {
        c->responding = false;
        if (c->conversations->asked) count_error("ENDED_EARLY", 11);
        c->conversations->asked = false;
        if (!options.once && options.after < 0) ask(c, 0);
    }
    return at;
}

static char *hear_upgrade(struct connection *c, char *at, char *end, uint64_t now) {
    char *rest = head_end(at, end), why[32];
    if (!rest) return at;
    int status = atoi(at + 9);
    if (status != 101) {
        snprintf(why, sizeof why, "HTTP_%d", status);
        drop(c, why);
        return end;
    }
    c->stage = GREETING;
    if (options.mode == WS) became_open(c, now);
    return rest;
}

static char *hear(struct connection *c, char *at, char *end, uint64_t now) {
    if (options.mode == SSE || options.mode == OPENAI) return hear_http(c, at, end, now);
    if (c->stage == HANDSHAKE) at = hear_upgrade(c, at, end, now);
    struct ws_frame frame;
    while (c->stage >= GREETING && c->stage < CLOSED && next_frame(&at, end, &frame)) hear_frame(c, &frame, now);
    return at;
}

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
            /* An answer without a length ends with its connection. */
            drop(c, c->conversations->asked || c->stage < OPEN || options.mode < SSE ? "CONNECTION_LOST" : NULL);
            return;
        }
        limit -= (size_t)n;
        now_counts.bytes += (size_t)n;
        char *start = plain ? scratch : c->in.data + c->in.start, *end = into + n;
        char *used = hear(c, start, end, now_ns());
        if (c->stage == CLOSED) return;
        if (plain) buffer_add(&c->in, used, (size_t)(end - used));
        else buffer_consume(&c->in, (size_t)(used - start));
        if (!buffer_length(&c->in)) buffer_free(&c->in);
        if ((size_t)n < want) return; /* edge-triggered: more will be told */
    }
}

/* ---- the run ---- */

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
    if (options.mode == SSE || options.mode == OPENAI) {
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
        while (begun < connection_count && begun - (int)(opened + failed) < options.in_flight) connect_next(&connections[begun++]);
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
    if (options.after >= 0) return resumed + failed >= total + (unsigned)(options.readers * options.conversations);
    return closed == (unsigned)connection_count || (options.once && answered_all + failed * (unsigned)options.conversations >= total);
}

static void take_slice(void) {
    if (slice_count == SLICES) return;
    slices[slice_count].at_s = (double)(now_ns() - start_ns) / 1e9;
    slices[slice_count].tokens = now_counts.tokens - start_counts.tokens;
    for (int i = 0; i < options.pid_count; i++) slices[slice_count].cpu[i] = cpu_ns(options.pids[i]) - start_cpu[i];
    slice_count++;
}

static void begin_measuring(void) {
    memset(&added, 0, sizeof added);
    memset(&slow_added, 0, sizeof slow_added);
    start_counts = now_counts;
    measuring = true;
    own_start = cpu_ns(0);
    for (int i = 0; i < options.pid_count; i++) start_cpu[i] = cpu_ns(options.pids[i]);
    start_ns = now_ns();
}

static void end_measuring(void) {
    for (int i = 0; i < options.pid_count; i++) end_cpu[i] = cpu_ns(options.pids[i]);
    own_end = cpu_ns(0);
    end_counts_ns = now_ns();
    measuring = false;
}

static void run_until(uint64_t deadline_ns) {
    while (now_ns() < deadline_ns && !finished()) {
        uint64_t slice = start_ns + (uint64_t)(slice_count + 1) * NS_PER_S;
        turn(measuring && slice < deadline_ns ? slice : deadline_ns);
        if (measuring && now_ns() >= slice) take_slice();
    }
}

static void print_number(const char *name, uint64_t value) { printf("\"%s\":%lu,", name, (unsigned long)value); }

static void print_result(void) {
    struct counts *n = &now_counts, *s = &start_counts;
    printf("{\"seconds\":%.6f,\"opened\":%u,\"failed\":%u,\"closed\":%u,\"answered\":%u,\"resumed\":%u,",
           (double)(end_counts_ns - start_ns) / 1e9, opened, failed, closed, answered_all, resumed);
    print_number("tokens", n->tokens - s->tokens);
    print_number("slow_tokens", n->slow_tokens - s->slow_tokens);
    print_number("frames", n->frames - s->frames);
    print_number("received_bytes", n->bytes - s->bytes);
    print_number("chars", n->chars - s->chars);
    print_number("done", n->done - s->done);
    print_number("all_tokens", n->tokens);
    print_number("all_asked", n->asked);
    print_number("all_done", n->done);
    print_number("gaps", n->gaps);
    print_number("duplicates", n->duplicates);
    print_number("wrong_length", n->wrong_length);
    print_number("own_cpu_ns", own_end - own_start);
    printf("\"cpu_ns\":[");
    for (int i = 0; i < options.pid_count; i++) printf("%s%lu", i ? "," : "", (unsigned long)(end_cpu[i] - start_cpu[i]));
    printf("],\"slices\":[");
    for (int i = 0; i < slice_count; i++) {
        printf("%s{\"at_s\":%.3f,\"tokens\":%lu,\"cpu_ns\":[", i ? "," : "", slices[i].at_s, (unsigned long)slices[i].tokens);
        for (int k = 0; k < options.pid_count; k++) printf("%s%lu", k ? "," : "", (unsigned long)slices[i].cpu[k]);
        printf("]}");
    }
    printf("],\"errors\":{");
    for (int i = 0; i < CODES && errors[i].count; i++)
        printf("%s\"%s\":%lu", i ? "," : "", errors[i].code, (unsigned long)errors[i].count);
    printf("},");
    histogram_print("added", &added);
    putchar(',');
    histogram_print("slow_added", &slow_added);
    putchar(',');
    histogram_print("first_token", &first_token);
    putchar(',');
    histogram_print("all_first_token", &all_first_token);
    putchar(',');
    histogram_print("connected", &connected);
    puts("}");
    fflush(stdout);
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
            run_until(now_ns() + (uint64_t)(options.warmup_s * 1e9));
            begin_measuring();
        }
    }
    run_until(start_ns + (uint64_t)(options.seconds * 1e9));
    end_measuring();
    print_result();
    return 0;
}
