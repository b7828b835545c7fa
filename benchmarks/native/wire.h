/* As much of WebSocket (RFC 6455) and of HTTP/1.1 bodies as the tools speak. */
#ifndef WIRE_H
#define WIRE_H
#include "core.h"

enum opcode { WS_MORE = 0, WS_TEXT = 1, WS_BINARY = 2, WS_CLOSE = 8, WS_PING = 9, WS_PONG = 10 };

struct ws_frame {
    unsigned char opcode;
    bool final;
    char *payload;
    size_t length;
};

static inline void add_upgrade(struct buffer *out, const char *path, int port, const char *header) {
    buffer_reserve(out, 1024);
    out->end += (size_t)snprintf(out->data + out->end, 1024, "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: AAECAwQFBgcICQoLDA0ODw==\r\n"
        "Sec-WebSocket-Version: 13\r\n%s\r\n", path, port, header);
}

/* A frame from a client: masked, as it must be. */
static inline void add_masked(struct buffer *out, enum opcode opcode, const char *payload, size_t length) {
    static const unsigned char mask[4] = {0x37, 0xfa, 0x21, 0x3d};
    unsigned char head[8] = {(unsigned char)(0x80 | opcode)};
    size_t head_length = 2;
    if (length < 126) {
        head[1] = (unsigned char)(0x80 | length);
    } else if (length < 65536) {
        head[1] = 0x80 | 126;
        head[2] = (unsigned char)(length >> 8);
        head[3] = (unsigned char)length;
        head_length = 4;
    } else {
        die("a frame of 64 KiB isn't sent by these tools");
    }
    memcpy(head + head_length, mask, 4);
    buffer_add(out, head, head_length + 4);
    buffer_reserve(out, length);
    for (size_t i = 0; i < length; i++) out->data[out->end + i] = (char)(payload[i] ^ mask[i & 3]);
    out->end += length;
}

/* A frame from a server. */
static inline void add_unmasked(struct buffer *out, enum opcode opcode, const char *payload, size_t length) {
    unsigned char head[4] = {(unsigned char)(0x80 | opcode), (unsigned char)length};
    if (length >= 126) {
        if (length >= 65536) die("a frame of 64 KiB isn't sent by these tools");
        head[1] = 126;
        head[2] = (unsigned char)(length >> 8);
        head[3] = (unsigned char)length;
    }
    buffer_add(out, head, length < 126 ? 2 : 4);
    buffer_add(out, payload, length);
}

/* The frame at `*at`, unmasked in place; false: it isn't whole. */
static inline bool next_frame(char **at, char *end, struct ws_frame *frame) {
    unsigned char *p = (unsigned char *)*at;
    size_t have = (size_t)(end - *at), head = 2;
    if (have < 2) return false;
    uint64_t length = p[1] & 127;
    unsigned extra = length == 126 ? 2 : length == 127 ? 8 : 0;
    if (have < head + extra) return false;
    if (extra) length = 0;
    for (unsigned i = 0; i < extra; i++) length = length << 8 | p[head + i];
    head += extra;
    bool masked = p[1] & 128;
    if (have < head + 4 * masked || have - head - 4 * masked < length) return false;
    unsigned char *mask = p + head;
    head += 4 * masked;
    if (masked)
        for (uint64_t i = 0; i < length; i++) p[head + i] ^= mask[i & 3];
    *frame = (struct ws_frame){.opcode = p[0] & 15, .final = p[0] & 128, .payload = *at + head, .length = length};
    *at += head + length;
    return true;
}

/* The end of the head at `start`, behind its empty line; NULL: it isn't whole. */
static inline char *head_end(char *start, char *end) {
    char *found = end > start ? memmem(start, (size_t)(end - start), "\r\n\r\n", 4) : NULL;
    return found ? found + 4 : NULL;
}

/* The value of a header within a head, NULL: there is none. `name` in lower case, with its colon. */
static inline const char *header_value(const char *head, const char *end, const char *name) {
    size_t length = strlen(name);
    for (const char *line = head; line && line < end; line = memchr(line, '\n', (size_t)(end - line))) {
        line += *line == '\n';
        if ((size_t)(end - line) <= length) return NULL;
        if (strncasecmp(line, name, length)) continue;
        line += length;
        while (*line == ' ') line++;
        return line;
    }
    return NULL;
}

/* How the body of an answer goes on. */
struct body {
    bool chunked, whole;
    uint64_t left;  /* of this chunk, or of the body */
    bool in_chunk;
};

static inline void body_begin(struct body *body, const char *head, const char *end) {
    const char *length = header_value(head, end, "content-length:");
    const char *coding = header_value(head, end, "transfer-encoding:");
    *body = (struct body){.chunked = coding && !strncasecmp(coding, "chunked", 7)};
    if (body->chunked) return;
    body->left = length ? strtoull(length, NULL, 10) : UINT64_MAX; /* none told: until the connection ends */
    body->whole = !body->left;
}

/* Adds what is payload from `*at` on to `out`; stops where more is needed or the body is whole. */
static inline void body_take(struct body *body, char **at, char *end, struct buffer *out) {
    while (!body->whole && *at < end) {
        if (body->chunked && !body->in_chunk) {
            char *line = memchr(*at, '\n', (size_t)(end - *at));
            if (!line) return;
            body->left = strtoull(*at, NULL, 16);
            if (!body->left && end - line < 3) return; /* the empty line after the last chunk; no trailers */
            *at = line + 1 + (body->left ? 0 : 2);
            body->in_chunk = body->left > 0;
            body->whole = !body->left;
            continue;
        }
        uint64_t n = (uint64_t)(end - *at) < body->left ? (uint64_t)(end - *at) : body->left;
        buffer_add(out, *at, n);
        *at += n;
        body->left -= n;
        if (body->left) continue;
        if (body->chunked && end - *at < 2) return;
        if (body->chunked) *at += 2;
        body->whole = !body->chunked;
        body->in_chunk = false;
    }
}
#endif
