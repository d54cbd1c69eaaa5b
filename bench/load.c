/* A load client for token streams whose text carries " @<mark>@" tokens (upstream.c writes them).
 * It finds the marks in any wire format, so one client measures every relay alike, and checks every one of them:
 * each must be later than the one before and have the remainder that follows it, so a lost, repeated, altered,
 * misplaced or foreign token is seen. A relay may merge tokens and split them wherever it likes.
 *
 *   cc -O2 -o load load.c
 *   ./load -p PORT -u /path [-b BODY] [-l EVENT_ID] -e TOKENS [-c CONCURRENT] [-n STREAMS] [-r RAMP_MS] [-t SECONDS]
 *          [-w PID]... [-o | -k]
 *
 * Asks by POST with BODY, or by GET where there is none; EVENT_ID is sent as Last-Event-ID.
 * Opens CONCURRENT streams at a time (the first ones spread over RAMP_MS) until STREAMS were started, each of which must
 * carry exactly TOKENS marks and end cleanly. Prints one JSON line: how the streams ended, per-token age (now minus the
 * mark), delay of the first token and of the last byte since the request, and what the processes -w PID spent in the
 * `steady` time in which all CONCURRENT streams flowed (from the last one's first token to the first end).
 * -o holds: once every stream has TOKENS marks it prints the line, waits for the end of stdin and hangs up.
 * -k keeps: answers are read to their end before any of them is looked into, so that the last byte's delay has none of
 * this client's work in it (a first token's delay then is the whole answer's, and so is a token's age).
 *
 * The exit code is 0 only if every stream was clean; else stderr says what was wrong with the first one that was not.
 * HTTP/1.1 over 127.0.0.1 only.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define REMAINDERS 997 /* upstream.c knows it too */

enum part { HEAD, CHUNK_SIZE, CHUNK, CHUNK_END, TRAILER, UNTIL_CLOSE };
struct stream {
    int fd, number, open;
    uint64_t asked; /* when the request went out, 0: not yet */
    uint64_t last;  /* when the last byte came */
    int at_end;     /* the peer has closed, and what it sent is kept, not yet looked into */
    char *kept;
    size_t kept_n, kept_cap;
    /* HTTP */
    enum part part;
    int status, chunked, complete;
    size_t chunk_left, line_n;
    char line[256];
    /* text */
    int in_mark, digits, differs;
    uint64_t mark, last_mark;
    long tokens;
};
struct numbers {
    double *at;
    size_t n, cap;
};

static int port, concurrent = 1, ramp_ms, seconds = 60, hold, keep, ep, live, opened, at_end;
static const char *path = "/", *body = "", *last_event_id;
static long streams = 1, expected = -1;
static pid_t watched[64];
static int watched_n;

static long started, clean, refused, broken, differing, tokens, with_first;
static struct stream *all;
static struct numbers ages_us, firsts_ms, lasts_ms;
static struct { uint64_t from, to, cpu_from, cpu_to; long tokens_from, tokens_to; } steady;
static char *request, *first_fault;

static uint64_t clock_ns(clockid_t clock) {
    struct timespec t;
    return clock_gettime(clock, &t) ? 0 : (uint64_t)t.tv_sec * 1000000000ull + t.tv_nsec;
}
static uint64_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

/* user + system time of the watched processes, from each one's own CPU clock (the kernel's encoding of a pid) */
static uint64_t cpu_ns(void) {
    uint64_t sum = 0;
    for (int i = 0; i < watched_n; i++) sum += clock_ns((clockid_t)(~(unsigned)watched[i] << 3 | 2));
    return sum;
}

static void put(struct numbers *a, double v) {
    if (a->n == a->cap) {
        a->cap = a->cap ? a->cap * 2 : 65536;
        a->at = realloc(a->at, a->cap * sizeof v);
    }
    a->at[a->n++] = v;
}
static int by_size(const void *x, const void *y) {
    double a = *(const double *)x, b = *(const double *)y;
    return a < b ? -1 : a > b;
}
static void sort(struct numbers *a) {
    if (a->n) qsort(a->at, a->n, sizeof(double), by_size);
}
static double quantile(struct numbers *a, double f) { return a->n ? a->at[(size_t)(f * (a->n - 1))] : -1; }

static void fault(struct stream *c, const char *format, ...) {
    if (first_fault) return;
    char *what;
    va_list args;
    va_start(args, format);
    if (vasprintf(&what, format, args) < 0 || asprintf(&first_fault, "stream %d: %s", c->number, what) < 0) exit(2);
    va_end(args);
    free(what);
}

/* ---- text ---- */

static void differ(struct stream *c, const char *what) {
    if (!c->differs) fault(c, "%s after %ld tokens", what, c->tokens);
    c->differs = 1;
}

static void on_first_token(struct stream *c, uint64_t at) {
    put(&firsts_ms, (at - c->asked) / 1e6);
    if (++with_first == concurrent) {
        steady.from = now_ns();
        steady.cpu_from = cpu_ns();
        steady.tokens_from = tokens;
    }
}

static void on_mark(struct stream *c, uint64_t at) {
    if (c->mark <= c->last_mark || c->mark > at)
        differ(c, "a mark out of order");
    else if (c->tokens && c->mark % REMAINDERS != (c->last_mark + 1) % REMAINDERS)
        differ(c, "a mark that does not follow the one before");
    c->last_mark = c->mark;
    c->tokens++;
    tokens++;
    put(&ages_us, ((double)at - c->mark) / 1e3);
    if (c->tokens == 1) on_first_token(c, at);
}

static void on_text(struct stream *c, const char *p, const char *end, uint64_t at) {
    while (p < end) {
        if (!c->in_mark) {
            p = memchr(p, '@', end - p);
            if (!p) return;
            c->in_mark = 1;
            c->digits = 0;
            c->mark = 0;
        } else if (*p >= '0' && *p <= '9' && c->digits < 19) {
            c->mark = c->mark * 10 + (*p - '0');
            c->digits++;
        } else {
            c->in_mark = 0;
            if (*p == '@' && c->digits)
                on_mark(c, at);
            else
                differ(c, "a broken mark");
        }
        p++;
    }
}

/* ---- HTTP ---- */

static void on_line(struct stream *c) {
    const char *l = c->line;
    int is_empty = !*l;
    if (c->part == HEAD && !c->status) {
        if (sscanf(l, "HTTP/1.%*d %d", &c->status) != 1) c->status = -1;
    } else if (c->part == HEAD) {
        if (!strncasecmp(l, "transfer-encoding:", 18) && strcasestr(l, "chunked")) c->chunked = 1;
        if (is_empty) c->part = c->chunked ? CHUNK_SIZE : UNTIL_CLOSE;
        if (is_empty && c->status != 200) c->complete = 1; /* the rest of a refusal does not matter */
    } else if (c->part == CHUNK_SIZE) {
        c->chunk_left = strtoul(l, 0, 16);
        c->part = c->chunk_left ? CHUNK : TRAILER;
    } else if (c->part == CHUNK_END) {
        c->part = CHUNK_SIZE;
    } else if (c->part == TRAILER && is_empty) {
        c->complete = 1;
    }
    c->line_n = 0;
}

static void on_bytes(struct stream *c, const char *p, const char *end, uint64_t at) {
    while (p < end && !c->complete) {
        if (c->part == CHUNK || c->part == UNTIL_CLOSE) {
            size_t n = end - p;
            if (c->part == CHUNK && n > c->chunk_left) n = c->chunk_left;
            on_text(c, p, p + n, at);
            if (c->part == CHUNK && !(c->chunk_left -= n)) c->part = CHUNK_END;
            p += n;
        } else if (*p == '\n') {
            c->line[c->line_n] = 0;
            on_line(c);
            p++;
        } else {
            if (*p != '\r' && c->line_n < sizeof c->line - 1) c->line[c->line_n++] = *p;
            p++;
        }
    }
}

/* ---- streams ---- */

static void begin(struct stream *c) {
    int one = 1;
    memset(c, 0, sizeof *c);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0) {
        perror("load: socket");
        exit(2);
    }
    c->open = 1;
    c->number = started++;
    live++;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    connect(c->fd, (void *)&a, sizeof a); /* a failure shows at the send */
    struct epoll_event e = {.events = EPOLLOUT, .data.ptr = c};
    epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &e);
}

static void end(struct stream *c) {
    if (!steady.to) {
        steady.to = now_ns();
        steady.cpu_to = cpu_ns();
        steady.tokens_to = tokens;
    }
    int is_whole = c->complete || c->part == UNTIL_CLOSE;
    if (c->status != 200) {
        refused++;
        fault(c, c->status > 0 ? "HTTP status %d" : "no HTTP answer", c->status);
    } else if (!is_whole) {
        broken++;
        fault(c, "cut after %ld tokens", c->tokens);
    } else if (hold) {
        broken++;
        fault(c, "ended while it was held open");
    } else if (c->differs || c->in_mark || c->tokens != expected) {
        differing++;
        fault(c, "%ld tokens, not %ld", c->tokens, expected);
    } else {
        clean++;
        put(&lasts_ms, (c->last - c->asked) / 1e6);
    }
    free(c->kept);
    close(c->fd);
    c->open = 0;
    live--;
    if (!hold && started + (concurrent - opened) < streams) begin(c);
}

static void on_writable(struct stream *c) {
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    c->asked = now_ns();
    if (send(c->fd, request, strlen(request), MSG_NOSIGNAL) != (ssize_t)strlen(request))
        end(c);
    else
        epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &e);
}

/* Looks into what was kept once every open stream has come to its end. */
static void on_kept_end(struct stream *c) {
    c->at_end = 1;
    epoll_ctl(ep, EPOLL_CTL_DEL, c->fd, 0);
    if (++at_end < live || opened < concurrent) return;
    at_end = 0;
    for (c = all; c < all + opened; c++) {
        if (!c->open || !c->at_end) continue;
        on_bytes(c, c->kept, c->kept + c->kept_n, c->last);
        end(c);
    }
}

static void on_kept_readable(struct stream *c) {
    if (c->kept_n == c->kept_cap) {
        c->kept_cap = c->kept_cap ? c->kept_cap * 2 : 1 << 20;
        c->kept = realloc(c->kept, c->kept_cap);
    }
    ssize_t r = recv(c->fd, c->kept + c->kept_n, c->kept_cap - c->kept_n, 0);
    if (r < 0 && errno == EAGAIN) return;
    if (r > 0) {
        c->kept_n += r;
        c->last = now_ns();
    } else {
        if (r < 0) c->kept_n = 0; /* reset by the peer: no answer */
        on_kept_end(c);
    }
}

static void on_readable(struct stream *c) {
    static char buffer[262144];
    ssize_t r = recv(c->fd, buffer, sizeof buffer, 0);
    if (r < 0 && errno == EAGAIN) return;
    if (r > 0) on_bytes(c, buffer, buffer + r, c->last = now_ns());
    if (r < 0 && c->part == UNTIL_CLOSE) c->part = HEAD; /* reset by the peer is not a clean close */
    if (r <= 0 || c->complete) end(c);
}

static void turn(int wait_ms) {
    struct epoll_event evs[512];
    int k = epoll_wait(ep, evs, 512, wait_ms);
    for (int i = 0; i < k; i++) {
        struct stream *c = evs[i].data.ptr;
        if (!c)
            hold = 0; /* stdin ended */
        else if (c->open && !c->asked)
            on_writable(c);
        else if (c->open && keep)
            on_kept_readable(c);
        else if (c->open)
            on_readable(c);
    }
}

static int is_held(void) { return hold && with_first == concurrent && tokens == expected * concurrent; }

static void run(void) {
    all = calloc(concurrent, sizeof *all);
    uint64_t t0 = now_ns(), stop = t0 + seconds * 1000000000ull, t;
    while ((live || started < streams) && (t = now_ns()) < stop && !is_held() && !(hold && first_fault)) {
        while (opened < concurrent && t >= t0 + ramp_ms * 1000000ull * opened / concurrent) begin(&all[opened++]);
        turn(opened < concurrent ? 1 : 100);
    }
}

static void wait_for_stdin_to_end(void) {
    struct epoll_event e = {.events = EPOLLIN | EPOLLHUP, .data.ptr = 0};
    if (epoll_ctl(ep, EPOLL_CTL_ADD, 0, &e)) hold = 0; /* a file or /dev/null: nothing to wait for */
    while (hold) turn(1000);
}

static void print_delays(const char *name, struct numbers *a) {
    sort(a);
    printf("\"%s\":{\"p50\":%.3f,\"p99\":%.3f,\"max\":%.3f},", name, quantile(a, .5), quantile(a, .99), quantile(a, 1));
}

static void print(double wall) {
    int is_steady = steady.from && steady.to > steady.from;
    printf("{\"started\":%ld,\"clean\":%ld,\"refused\":%ld,\"broken\":%ld,\"differing\":%ld,\"unfinished\":%d,"
           "\"tokens\":%ld,\"wall_s\":%.4f,",
           started, clean, refused, broken, differing, live, tokens, wall);
    print_delays("age_us", &ages_us);
    print_delays("first_ms", &firsts_ms);
    print_delays("last_ms", &lasts_ms);
    printf("\"steady\":{\"tokens\":%ld,\"wall_s\":%.4f,\"cpu_us\":%.1f}}\n",
           is_steady ? steady.tokens_to - steady.tokens_from : 0, is_steady ? (steady.to - steady.from) / 1e9 : 0.,
           is_steady ? (steady.cpu_to - steady.cpu_from) / 1e3 : 0.);
    fflush(stdout);
}

static void read_options(int argc, char **argv) {
    for (int o; (o = getopt(argc, argv, "p:u:b:l:e:c:n:r:t:w:ok")) > 0;) switch (o) {
        case 'p': port = atoi(optarg); break;
        case 'u': path = optarg; break;
        case 'b': body = optarg; break;
        case 'l': last_event_id = optarg; break;
        case 'e': expected = atol(optarg); break;
        case 'c': concurrent = atoi(optarg); break;
        case 'n': streams = atol(optarg); break;
        case 'r': ramp_ms = atoi(optarg); break;
        case 't': seconds = atoi(optarg); break;
        case 'w': if (watched_n < 64) watched[watched_n++] = atoi(optarg); break;
        case 'o': hold = 1; break;
        case 'k': keep = 1; break;
        default: exit(2);
    }
    if (!port || expected < 1) {
        fprintf(stderr, "load: -p PORT and -e TOKENS are needed\n");
        exit(2);
    }
    if (streams < concurrent) streams = concurrent;
}

static void make_request(void) {
    char seen[256] = "";
    if (last_event_id) snprintf(seen, sizeof seen, "Last-Event-ID: %s\r\n", last_event_id);
    const char *post = "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: close\r\n%s"
                       "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s";
    const char *get = "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: close\r\n%s\r\n";
    if (asprintf(&request, *body ? post : get, path, port, seen, strlen(body), body) < 0) exit(2);
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    ep = epoll_create1(0);
    make_request();
    uint64_t t0 = now_ns();
    run();
    int was_held = is_held();
    print((now_ns() - t0) / 1e9);
    if (was_held) wait_for_stdin_to_end();
    if (first_fault) fprintf(stderr, "load: %s\n", first_fault);
    if (!first_fault && live && !was_held) fprintf(stderr, "load: %d streams did not end in time\n", live);
    return first_fault || (live && !was_held) ? 1 : 0;
}
