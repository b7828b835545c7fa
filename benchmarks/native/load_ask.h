/* What the load client says. */
#ifndef LOAD_ASK_H
#define LOAD_ASK_H
#include "load_state.h"

static void begin_turn(struct conversation *v, uint64_t now) {
    v->asked = true;
    v->begun = v->unchecked = false;
    v->tokens = v->chars = 0;
    v->asked_ns = now;
    now_counts.asked++;
}

static void request(struct connection *c, const char *method, const char *path, const char *body) {
    buffer_reserve(&c->out, strlen(path) + strlen(body) + 1024);
    c->out.end += (size_t)sprintf(c->out.data + c->out.end,
        "%s %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: text/event-stream\r\nContent-Type: application/json\r\n"
        "Content-Length: %zu\r\n%s%s\r\n%s",
        method, path, options.port, strlen(body), options.header, *options.header ? "\r\n" : "", body);
    c->responding = false;
    c->text.start = c->text.end = 0;
}

static void ask(struct connection *c, unsigned slot) {
    char frame[8192];
    struct conversation *v = &c->conversations[slot];
    int n;
    begin_turn(v, now_ns());
    if (options.fresh) {
        v->generation++;
        v->seq = 0;
    }
    unsigned number = (c->first + slot) % total + v->generation * total;
    if (options.mode == OPENAI) {
        snprintf(frame, sizeof frame,
                 "{\"model\":\"%s\",\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"%s\"}]}",
                 options.model, options.message);
        request(c, "POST", options.path, frame);
    } else if (options.mode == AISDK) {
        snprintf(frame, sizeof frame,
                 "{\"id\":\"%s-%u\",\"message\":{\"id\":\"m%lu\",\"role\":\"user\","
                 "\"parts\":[{\"type\":\"text\",\"text\":\"%s\"}]}}",
                 options.prefix, number, (unsigned long)now_counts.asked, options.message);
        request(c, "POST", options.path, frame);
    } else if (options.mode == SSE) {
        snprintf(frame, sizeof frame, "{\"conversation_id\":\"%s-%u\",\"message\":\"%s\"}", options.prefix, number,
                 options.message);
        request(c, "POST", options.path, frame);
    } else {
        bool sio = options.mode == SIO;
        n = snprintf(frame, sizeof frame,
                     "%s{\"type\":\"chat_message\",\"conversation_id\":\"%s-%u\",\"message\":\"%s\"}%s",
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
        if (over_http()) {
            char id[96];
            snprintf(id, sizeof id, "%s-%u", options.prefix, number);
            const char *resume = options.resume ? options.resume : "/api/chat/stream?conversation_id=%s&after=0";
            const char *hole = strstr(resume, "%s");
            int before = hole ? (int)(hole - resume) : (int)strlen(resume);
            snprintf(path, sizeof path, "%.*s%s%s", before, resume, hole ? id : "", hole ? hole + 2 : "");
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
#endif
