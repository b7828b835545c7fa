/* The load client's connections, what it counts, and the line that it prints at its end. */
#ifndef LOAD_STATE_H
#define LOAD_STATE_H
#include "histogram.h"
#include "load_options.h"
#include "wire.h"

#define SLICES 3600
#define CODES 64

enum stage { CONNECTING, HANDSHAKE, GREETING, OPEN, CLOSED };

struct conversation {
    uint64_t asked_ns;
    uint64_t seq, tokens, chars; /* the last seq seen; of this turn */
    unsigned generation;         /* how often it was made anew, with --fresh */
    bool asked, begun, ever_begun, answered, unchecked, had_all;
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
static unsigned total, opened, failed, had_all, answered_all, all_begun, closed;
static int epoll_fd, connection_count, slice_count;
static bool measuring;

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
    for (int i = 0; i < options.pid_count; i++) {
        end_cpu[i] = cpu_ns(options.pids[i]);
        if (end_cpu[i] >= start_cpu[i]) continue;
        count_error("PROCESS_ENDED", 13);
        end_cpu[i] = start_cpu[i];
    }
    own_end = cpu_ns(0);
    end_counts_ns = now_ns();
    measuring = false;
}

static void print_number(const char *name, uint64_t value) { printf("\"%s\":%lu,", name, (unsigned long)value); }

static void print_result(void) {
    struct counts *n = &now_counts, *s = &start_counts;
    printf("{\"seconds\":%.6f,\"opened\":%u,\"failed\":%u,\"closed\":%u,\"answered\":%u,\"had_all\":%u,",
           (double)(end_counts_ns - start_ns) / 1e9, opened, failed, closed, answered_all, had_all);
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
    for (int i = 0; i < options.pid_count; i++)
        printf("%s%lu", i ? "," : "", (unsigned long)(end_cpu[i] - start_cpu[i]));
    printf("],\"slices\":[");
    for (int i = 0; i < slice_count; i++) {
        printf("%s{\"at_s\":%.3f,\"tokens\":%lu,\"cpu_ns\":[", i ? "," : "", slices[i].at_s,
               (unsigned long)slices[i].tokens);
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
#endif
