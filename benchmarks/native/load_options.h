/* What the load client is asked to do. */
#ifndef LOAD_OPTIONS_H
#define LOAD_OPTIONS_H
#include <getopt.h>

#include "core.h"

#define PIDS 64

enum mode { WS, SIO, SSE, OPENAI, AISDK };

static struct options {
    enum mode mode;
    int port, connections, conversations, readers, slow, receive_buffer, in_flight, pid_count;
    pid_t pids[PIDS];
    const char *path, *message, *prefix, *header, *model, *resume;
    double ramp_s, warmup_s, seconds, slow_rate;
    long after, expect;
    bool once, fresh, connect_only;
} options = {
    .connections = 1, .conversations = 1, .in_flight = 256, .message = "tokens=400 rate=50 size=6 stamp=1",
    .prefix = "c", .header = "", .model = "bench", .ramp_s = 1, .warmup_s = 1, .seconds = 5, .after = -1,
};

/* A request for each answer, instead of a connection for all. */
static inline bool over_http(void) { return options.mode >= SSE; }

static const char USAGE[] =
    "wsload --port N --mode ws|sio|sse|openai|aisdk [--path P] [--header 'Name: value']\n"
    "  --connections N --conversations M   M conversations on each connection (SSE: one)\n"
    "  --message TEXT                      what is asked, again as soon as it is answered; see script.h\n"
    "  --once                              each conversation asks once; ends when all are answered\n"
    "  --fresh                             every question in a new conversation\n"
    "  --ramp S --warmup S --seconds S     questions begin spread over the ramp; the warm-up begins when all of them\n"
    "                                      have had a token, or after 20 s; then what is measured\n"
    "  --prefix P                          of the conversations' ids: P-0, P-1 …\n"
    "  --readers N                         further connections that follow M conversations each, and ask nothing\n"
    "  --slow N [--slow-rate B]            the first N connections read B bytes a second (0: nothing)\n"
    "  --receive-buffer BYTES              of the slow ones' sockets\n"
    "  --expect TOKENS                     ends when each conversation has had so many\n"
    "  --after CURSOR                      ask nothing, resume each conversation there; needs --expect\n"
    "  --resume PATH                       where SSE resumes; %s stands for the conversation's id\n"
    "  --connect-only                      connect all, tell so in one line, and stay until the input ends\n"
    "  --in-flight N                       connections being opened at a time\n"
    "  --pid N …                           processes whose CPU time is read at both ends of what is measured\n"
    "  --model NAME                        for --mode openai\n";

static void options_read(int count, char **words) {
    enum {
        PORT = 1, MODE, PATH, HEADER, CONNECTIONS, CONVERSATIONS, MESSAGE, ONCE, FRESH, RAMP, WARMUP, SECONDS,
        PREFIX, READERS, SLOW, SLOW_RATE, RECEIVE, AFTER, EXPECT, RESUME, CONNECT_ONLY, IN_FLIGHT, PID, MODEL,
    };
    static const struct option known[] = {
        {"port", 1, 0, PORT}, {"mode", 1, 0, MODE}, {"path", 1, 0, PATH}, {"header", 1, 0, HEADER},
        {"connections", 1, 0, CONNECTIONS}, {"conversations", 1, 0, CONVERSATIONS}, {"message", 1, 0, MESSAGE},
        {"once", 0, 0, ONCE}, {"fresh", 0, 0, FRESH}, {"ramp", 1, 0, RAMP}, {"warmup", 1, 0, WARMUP},
        {"seconds", 1, 0, SECONDS}, {"prefix", 1, 0, PREFIX}, {"readers", 1, 0, READERS}, {"slow", 1, 0, SLOW},
        {"slow-rate", 1, 0, SLOW_RATE}, {"receive-buffer", 1, 0, RECEIVE}, {"after", 1, 0, AFTER},
        {"expect", 1, 0, EXPECT}, {"resume", 1, 0, RESUME}, {"connect-only", 0, 0, CONNECT_ONLY},
        {"in-flight", 1, 0, IN_FLIGHT}, {"pid", 1, 0, PID}, {"model", 1, 0, MODEL},
        {0},
    };
    static const char *modes[] = {"ws", "sio", "sse", "openai", "aisdk"};
    static const char *paths[] = {"/chat", "/socket.io/?EIO=4&transport=websocket", "/api/chat/stream",
                                  "/v1/chat/completions", "/api/chat"};
    bool mode_known = false;
    for (int name; (name = getopt_long(count, words, "", known, NULL)) != -1;) {
        switch (name) {
        case PORT: options.port = atoi(optarg); break;
        case MODE:
            for (int i = 0; i < 5; i++)
                if (!strcmp(optarg, modes[i])) options.mode = (enum mode)i, mode_known = true;
            break;
        case PATH: options.path = optarg; break;
        case HEADER: options.header = optarg; break;
        case CONNECTIONS: options.connections = atoi(optarg); break;
        case CONVERSATIONS: options.conversations = atoi(optarg); break;
        case MESSAGE: options.message = optarg; break;
        case ONCE: options.once = true; break;
        case FRESH: options.fresh = true; break;
        case RAMP: options.ramp_s = atof(optarg); break;
        case WARMUP: options.warmup_s = atof(optarg); break;
        case SECONDS: options.seconds = atof(optarg); break;
        case PREFIX: options.prefix = optarg; break;
        case READERS: options.readers = atoi(optarg); break;
        case SLOW: options.slow = atoi(optarg); break;
        case SLOW_RATE: options.slow_rate = atof(optarg); break;
        case RECEIVE: options.receive_buffer = atoi(optarg); break;
        case AFTER: options.after = atol(optarg); break;
        case EXPECT: options.expect = atol(optarg); break;
        case RESUME: options.resume = optarg; break;
        case CONNECT_ONLY: options.connect_only = true; break;
        case IN_FLIGHT: options.in_flight = atoi(optarg); break;
        case PID:
            if (options.pid_count < PIDS) options.pids[options.pid_count++] = atoi(optarg);
            break;
        case MODEL: options.model = optarg; break;
        default: fputs(USAGE, stderr), exit(2);
        }
    }
    if (!options.port || !mode_known || options.connections < 1 || options.conversations < 1 || optind < count ||
        (over_http() && options.conversations > 1) || (options.after >= 0 && !options.expect) ||
        strlen(options.message) > 4096 || strlen(options.prefix) > 64 || strlen(options.header) > 512)
        fputs(USAGE, stderr), exit(2);
    if (!options.path) options.path = paths[options.mode];
}
#endif
