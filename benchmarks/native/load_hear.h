/* What the load client hears: frames, events, tokens. */
#ifndef LOAD_HEAR_H
#define LOAD_HEAR_H
#include "json.h"
#include "load_ask.h"
#include "stamp.h"

static struct conversation *conversation_of(struct connection *c, struct span id) {
    const char *digits = id.end;
    while (digits > id.start && digits[-1] >= '0' && digits[-1] <= '9') digits--;
    unsigned number = (unsigned)span_number((struct span){digits, id.end});
    unsigned slot = digits == id.end ? 0 : (number + total - c->first) % total;
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
        all_begun += !v->ever_begun;
        v->ever_begun = true;
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
    if (options.expect && !v->had_all && v->tokens >= (uint64_t)options.expect) {
        v->had_all = true;
        had_all++;
        if (options.after >= 0) histogram_add(&connected, (now - c->connect_ns) / NS_PER_US);
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
    struct span id = none, content = none, seq = none, first = none;
    struct span error = none, length = none, after = none, turn = none;
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
    if (over_http()) return hear_http(c, at, end, now);
    if (c->stage == HANDSHAKE) at = hear_upgrade(c, at, end, now);
    struct ws_frame frame;
    while (c->stage >= GREETING && c->stage < CLOSED && next_frame(&at, end, &frame)) hear_frame(c, &frame, now);
    return at;
}
#endif
