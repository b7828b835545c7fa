/* A log-linear histogram as HdrHistogram's: values up to 2048 are exact, larger ones are told apart to 1/1024.
 * Written out raw, as pairs of a bucket's middle and its count, so that Python can go on with it. */
#ifndef HISTOGRAM_H
#define HISTOGRAM_H
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define HISTOGRAM_HALF 1024
#define HISTOGRAM_BUCKETS (HISTOGRAM_HALF * 32)

struct histogram {
    uint64_t count, sum, max;
    uint64_t buckets[HISTOGRAM_BUCKETS];
};

static inline unsigned histogram_bucket(uint64_t value) {
    if (value < 2 * HISTOGRAM_HALF) return (unsigned)value;
    unsigned shift = 53 - (unsigned)__builtin_clzll(value); /* leaves 11 significant bits */
    unsigned bucket = shift * HISTOGRAM_HALF + (unsigned)(value >> shift);
    return bucket < HISTOGRAM_BUCKETS ? bucket : HISTOGRAM_BUCKETS - 1;
}

/* The middle of a bucket. */
static inline uint64_t histogram_value(unsigned bucket) {
    if (bucket < 2 * HISTOGRAM_HALF) return bucket;
    unsigned shift = bucket / HISTOGRAM_HALF - 1;
    return ((uint64_t)(bucket % HISTOGRAM_HALF + HISTOGRAM_HALF) << shift) + (1ull << shift) / 2;
}

static inline void histogram_add(struct histogram *h, uint64_t value) {
    h->count++;
    h->sum += value;
    if (value > h->max) h->max = value;
    h->buckets[histogram_bucket(value)]++;
}

static inline void histogram_print(const char *name, const struct histogram *h) {
    const char *comma = "";
    printf("\"%s\":{\"count\":%lu,\"sum\":%lu,\"max\":%lu,\"buckets\":[", name, (unsigned long)h->count,
           (unsigned long)h->sum, (unsigned long)h->max);
    for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
        if (!h->buckets[i]) continue;
        printf("%s[%lu,%lu]", comma, (unsigned long)histogram_value(i), (unsigned long)h->buckets[i]);
        comma = ",";
    }
    printf("]}");
}
#endif
