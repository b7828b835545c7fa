/* A wheel of timers: starting, stopping and firing one costs a few writes, however many there are. */
#ifndef WHEEL_H
#define WHEEL_H
#include <stddef.h>
#include <stdint.h>

#define TICK_NS 250000ull
#define SLOTS 16384u /* 4 s; a timer that is due later fires early, and is started again by its owner */

struct timer {
    struct timer *next, **link; /* in a slot; `link` NULL: it isn't running */
};

static struct timer *wheel[SLOTS];
static uint64_t occupied[SLOTS / 64], tick;

static inline void wheel_begin(uint64_t now_ns) { tick = now_ns / TICK_NS; }

static inline void timer_stop(struct timer *t) {
    if (!t->link) return;
    *t->link = t->next;
    if (t->next) t->next->link = t->link;
    t->link = NULL;
}

/* Fires in the tick after `due_ns`, or in the next one if that is over. */
static inline void timer_start(struct timer *t, uint64_t due_ns) {
    timer_stop(t);
    uint64_t at = due_ns / TICK_NS + 1;
    if (at <= tick) at = tick + 1;
    if (at > tick + SLOTS - 1) at = tick + SLOTS - 1;
    unsigned slot = (unsigned)(at % SLOTS);
    t->next = wheel[slot];
    if (t->next) t->next->link = &t->next;
    t->link = &wheel[slot];
    wheel[slot] = t;
    occupied[slot / 64] |= 1ull << slot % 64;
}

/* When the next slot is due that may hold a timer; 0: none does. */
static inline uint64_t wheel_next_ns(void) {
    for (unsigned i = 1; i < SLOTS;) {
        unsigned slot = (unsigned)((tick + i) % SLOTS);
        uint64_t word = occupied[slot / 64] >> slot % 64;
        if (word) return (tick + i + (unsigned)__builtin_ctzll(word)) * TICK_NS;
        i += 64 - slot % 64;
    }
    return 0;
}

/* Fires what is due by now; `fired` may start and stop any timer. */
static inline void wheel_turn(uint64_t now_ns, void (*fired)(struct timer *)) {
    for (uint64_t to = now_ns / TICK_NS; tick < to;) {
        unsigned slot = (unsigned)(++tick % SLOTS);
        if (!(occupied[slot / 64] >> slot % 64 & 1)) continue;
        occupied[slot / 64] &= ~(1ull << slot % 64);
        while (wheel[slot]) {
            struct timer *t = wheel[slot];
            timer_stop(t);
            fired(t);
        }
    }
}
#endif
