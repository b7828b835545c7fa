/* Looks into JSON text without copying it: walks the members of one object, or the items of one array. It expects
 * valid JSON; cut or broken text ends the walk and never reads past `end`. */
#ifndef JSON_H
#define JSON_H
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

struct span {
    const char *start, *end;
};

static inline size_t span_length(struct span s) { return (size_t)(s.end - s.start); }

static inline bool span_is(struct span s, const char *text) {
    size_t length = strlen(text);
    return span_length(s) == length && !memcmp(s.start, text, length);
}

static inline const char *json_space(const char *p, const char *end) {
    while (p < end && (*p == ' ' || *p == '\n' || *p == '\t' || *p == '\r')) p++;
    return p;
}

/* `p` is just behind the opening quote; returns the closing one, or `end`. */
static inline const char *json_string_end(const char *p, const char *end) {
    while (p < end && *p != '"') p += *p == '\\' ? 2 : 1;
    return p < end ? p : end;
}

/* Returns what follows the value at `p`. */
static inline const char *json_skip(const char *p, const char *end) {
    if (p < end && *p == '"') {
        p = json_string_end(p + 1, end);
        return p < end ? p + 1 : end;
    }
    if (p < end && (*p == '{' || *p == '[')) {
        int depth = 0;
        for (; p < end; p++) {
            if (*p == '"') p = json_string_end(p + 1, end);
            else if (*p == '{' || *p == '[') depth++;
            else if ((*p == '}' || *p == ']') && !--depth) return p + 1;
        }
        return end;
    }
    while (p < end && *p != ',' && *p != '}' && *p != ']' && *p != ' ' && *p != '\n' && *p != '\r' && *p != '\t') p++;
    return p;
}

/* The next member of an object. `*p` starts at the `{`. A string's span is what stands between its quotes, with its
 * escapes. False: there is none. */
static inline bool json_member(const char **p, const char *end, struct span *key, struct span *value) {
    const char *at = json_space(*p, end);
    if (at < end && (*at == '{' || *at == ',')) at = json_space(at + 1, end);
    if (at >= end || *at != '"') return false;
    key->start = at + 1;
    key->end = json_string_end(at + 1, end);
    if (key->end == end) return false;
    at = json_space(key->end + 1, end);
    if (at >= end || *at != ':') return false;
    at = json_space(at + 1, end);
    const char *after = json_skip(at, end);
    bool string = at < end && *at == '"';
    value->start = at + string;
    value->end = after - (string && after > at + 1);
    *p = json_space(after, end);
    return true;
}

/* The next item of an array; `*p` starts at the `[`. */
static inline bool json_item(const char **p, const char *end, struct span *value) {
    const char *at = json_space(*p, end);
    if (at < end && (*at == '[' || *at == ',')) at = json_space(at + 1, end);
    if (at >= end || *at == ']') return false;
    value->start = at;
    value->end = json_skip(at, end);
    *p = json_space(value->end, end);
    return value->end > value->start;
}

/* The member of this name; an empty span when there is none. */
static inline struct span json_get(struct span object, const char *name) {
    const char *p = object.start;
    struct span key, value;
    while (json_member(&p, object.end, &key, &value))
        if (span_is(key, name)) return value;
    return (struct span){object.end, object.end};
}

static inline uint64_t span_number(struct span s) {
    uint64_t number = 0;
    for (const char *p = s.start; p < s.end && *p >= '0' && *p <= '9'; p++) number = number * 10 + (uint64_t)(*p - '0');
    return number;
}
#endif
