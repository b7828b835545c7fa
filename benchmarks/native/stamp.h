/* A token of the native upstream begins with the time at which it was due: `@` and five characters, microseconds of
 * the monotonic clock modulo 2^30 (18 minutes) in base 64. Short enough to be a usual token, and no JSON encoder
 * escapes it; nothing else in the text is an `@`, so a merged frame still tells each of its tokens apart. */
#ifndef STAMP_H
#define STAMP_H
#include <stddef.h>
#include <stdint.h>

#define STAMP_BYTES 6
#define STAMP_MASK ((1u << 30) - 1)

static const char STAMP_DIGITS[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_";

static inline void stamp_write(char *out, uint64_t ns) {
    uint32_t us = (uint32_t)(ns / 1000) & STAMP_MASK;
    out[0] = '@';
    for (int i = 5; i; i--, us >>= 6) out[i] = STAMP_DIGITS[us & 63];
}

static inline int stamp_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'Z') return c - 'A' + 10;
    if (c >= 'a' && c <= 'z') return c - 'a' + 36;
    return c == '-' ? 62 : c == '_' ? 63 : -1;
}

/* Microseconds from the stamp at `text` (its `@`) to `ns`; -1 when it is none. A stamp of the future gives 0. */
static inline int64_t stamp_age_us(const char *text, const char *end, uint64_t ns) {
    uint32_t us = 0;
    if (end - text < STAMP_BYTES) return -1;
    for (int i = 1; i < STAMP_BYTES; i++) {
        int digit = stamp_digit(text[i]);
        if (digit < 0) return -1;
        us = us << 6 | (uint32_t)digit;
    }
    uint32_t age = ((uint32_t)(ns / 1000) - us) & STAMP_MASK;
    return age > STAMP_MASK / 2 ? 0 : (int64_t)age;
}
#endif
