/* The little language of `benchmarks.upstream`, in the last user message: words `name=value`, in any order. */
#ifndef SCRIPT_H
#define SCRIPT_H
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"

struct script {
    int tokens;
    double rate;  /* tokens a second; 0: as fast as the socket takes them */
    int size;     /* characters of a token */
    double delay; /* seconds before the first token */
    double start; /* the moment before which no token is sent, in seconds of the monotonic clock; 0: none */
    double hold;  /* seconds between the last token and the end of the answer */
    bool stamp;   /* tokens begin with their due time, see stamp.h; needs a size of 6 */
};

static const struct script SCRIPT_DEFAULT = {.tokens = 20, .size = 6};

static inline void script_word(struct script *s, const char *name, size_t length, double value) {
    if (!strncmp(name, "tokens", length)) s->tokens = (int)value;
    if (!strncmp(name, "rate", length)) s->rate = value;
    if (!strncmp(name, "size", length)) s->size = (int)value;
    if (!strncmp(name, "delay", length)) s->delay = value;
    if (!strncmp(name, "start", length)) s->start = value;
    if (!strncmp(name, "hold", length)) s->hold = value;
    if (!strncmp(name, "stamp", length)) s->stamp = value != 0;
}

/* Unknown words are ignored; sizes are held within 1 to 4096 characters. */
static inline struct script script_parse(struct script s, struct span text) {
    const char *p = text.start;
    while (p < text.end) {
        const char *word = p;
        while (p < text.end && *p != ' ') p++;
        const char *equals = memchr(word, '=', (size_t)(p - word));
        char number[32] = "";
        if (equals && (size_t)(p - equals) < sizeof number && equals - word >= 4) {
            memcpy(number, equals + 1, (size_t)(p - equals - 1));
            script_word(&s, word, (size_t)(equals - word), atof(number));
        }
        while (p < text.end && *p == ' ') p++;
    }
    if (s.size < 1) s.size = 1;
    if (s.size > 4096) s.size = 4096;
    if (s.tokens < 0) s.tokens = 0;
    return s;
}

/* The content of the last message with role `user`: its text, or the first text part of it. */
static inline struct span last_question(struct span body) {
    struct span messages = json_get(body, "messages"), item, question = {body.end, body.end};
    const char *p = messages.start;
    while (json_item(&p, messages.end, &item))
        if (span_is(json_get(item, "role"), "user")) question = json_get(item, "content");
    if (span_length(question) && *question.start == '[') {
        p = question.start;
        if (json_item(&p, question.end, &item)) question = json_get(item, "text");
    }
    return question;
}
#endif
