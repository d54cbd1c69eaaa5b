/* Makes runs at one replica and lets viewers follow each of them there and at another; tells how late both are.
 * The text carries " @<mark>@" tokens (upstream.c writes them), of which every viewer checks every one, as load.c does.
 *
 *   cc -O2 -o follow follow.c
 *   ./follow -p PORT -b BODY -e TOKENS [-n RUNS] [-r RAMP_MS] [-v VIEWERS] [-q OTHER_PORT -x ITS_VIEWERS] [-t SECONDS]
 *            [-w NAME=PID]... [-a | -o]
 *
 * RUNS are made over RAMP_MS by POST /runs with BODY. As soon as one is there, VIEWERS follow it at PORT (place "here")
 * and ITS_VIEWERS at OTHER_PORT ("there"). Prints one JSON line, all of it of a window: from when every viewer had its
 * first token until the first had its last. What the processes -w spent, and by place: tokens and bytes, and the age
 * of tokens (now minus the mark). `behind` is how much later the first viewer there had a token than the first here.
 * -a: the window is from the first token of all until a while after the last one of all.
 * -o holds: when every viewer has its tokens it prints the line, waits for the end of stdin and hangs up.
 *
 * The exit code is 0 only if every stream was clean; else stderr says what was wrong first. A piece of a stream is
 * looked into without its HTTP chunks: the service puts no event into two of them. HTTP/1.1 over 127.0.0.1 only.
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
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define REMAINDERS 997 /* upstream.c knows it too */
#define SETTLE 300000000ull /* ns after the last token of all, in which what is behind it is done */
#define MOST_WATCHED 8

enum place { HERE, THERE, MAKER };
struct run {
    char path[160];
    uint64_t *seen[2]; /* when the first viewer at each place had each token */
};
struct stream {
    int fd;
    enum place place;
    struct run *run;
    uint64_t *seen;
    char head[4096], last[5];
    size_t head_n;
    int asked, has_head, in_mark, digits;
    uint64_t mark, last_mark;
    long tokens;
};
struct age {
    uint64_t at, ns;
};
struct ages {
    struct age *of;
    size_t n, cap;
};
struct point {
    uint64_t at, cpu[MOST_WATCHED];
    long tokens[2], bytes[2];
};

static int ports[2], viewers[2], ramp_ms, seconds = 60, runs = 1, is_all, hold, watched_n, ep;
static const char *body = "", *names[MOST_WATCHED];
static pid_t pids[MOST_WATCHED];
static long expected, tokens[2], bytes[2];
static int made, live, with_first, with_last;
static struct run *all;
static struct ages ages[2];
static struct point from, to;
static char *first_fault;

static uint64_t clock_ns(clockid_t clock) {
    struct timespec t;
    return clock_gettime(clock, &t) ? 0 : (uint64_t)t.tv_sec * 1000000000ull + t.tv_nsec;
}
static uint64_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

static void fault(const char *format, ...) {
    if (first_fault) return;
    va_list args;
    va_start(args, format);
    if (vasprintf(&first_fault, format, args) < 0) exit(2);
    va_end(args);
}

/* ---- what is measured ---- */

static int all_viewers(void) { return runs * (viewers[HERE] + viewers[THERE]); }

/* The processes' user + system time is on clocks of their own (the kernel's encoding of a pid). */
static void take(struct point *p) {
    p->at = now_ns();
    for (int i = 0; i < watched_n; i++) p->cpu[i] = clock_ns((clockid_t)(~(unsigned)pids[i] << 3 | 2));
    memcpy(p->tokens, tokens, sizeof tokens);
    memcpy(p->bytes, bytes, sizeof bytes);
}

static void put(struct ages *a, uint64_t at, uint64_t ns) {
    if (a->n == a->cap) a->of = realloc(a->of, (a->cap = a->cap ? a->cap * 2 : 65536) * sizeof *a->of);
    a->of[a->n++] = (struct age){at, ns};
}

static int by_size(const void *x, const void *y) {
    double a = *(const double *)x, b = *(const double *)y;
    return a < b ? -1 : a > b;
}

static void print_delays(const char *name, double *us, size_t n) {
    if (n) qsort(us, n, sizeof *us, by_size);
    printf("\"%s\":{\"n\":%zu,\"p50\":%.1f,\"p99\":%.1f,\"max\":%.1f}", name, n, n ? us[(n - 1) / 2] : 0,
           n ? us[(size_t)(.99 * (n - 1))] : 0, n ? us[n - 1] : 0);
}

static void print_ages(struct ages *a) {
    double *us = malloc((a->n + 1) * sizeof *us);
    size_t n = 0;
    for (size_t i = 0; i < a->n; i++)
        if (a->of[i].at >= from.at && a->of[i].at <= to.at) us[n++] = a->of[i].ns / 1e3;
    print_delays("age_us", us, n);
    free(us);
}

static void print_behind(void) {
    double *us = malloc(((size_t)runs * expected + 1) * sizeof *us);
    size_t n = 0;
    for (int r = 0; r < runs; r++)
        for (long k = 0; k < expected; k++) {
            uint64_t here = all[r].seen[HERE][k], there = all[r].seen[THERE][k];
            if (here && there && here >= from.at && there >= from.at && here <= to.at) us[n++] = ((double)there - here) / 1e3;
        }
    print_delays("behind_us", us, n);
    free(us);
}

static void print(void) {
    if (!from.at || to.at < from.at) from = to; /* none: the first had all before the last had one */
    printf("{\"window_s\":%.4f,\"cpu_us\":{", (to.at - from.at) / 1e9);
    for (int i = 0; i < watched_n; i++)
        printf("%s\"%s\":%.1f", i ? "," : "", names[i], (to.cpu[i] - from.cpu[i]) / 1e3);
    printf("},");
    for (enum place p = HERE; p <= THERE; p++) {
        printf("\"%s\":{\"all_tokens\":%ld,\"tokens\":%ld,\"bytes\":%ld,", p ? "there" : "here", tokens[p],
               to.tokens[p] - from.tokens[p], to.bytes[p] - from.bytes[p]);
        print_ages(&ages[p]);
        printf("},");
    }
    print_behind();
    printf("}\n");
    fflush(stdout);
}

/* ---- text ---- */

static void on_mark(struct stream *c, uint64_t at) {
    if (c->mark <= c->last_mark || c->mark > at)
        fault("%s: a mark out of order after %ld tokens", c->run->path, c->tokens);
    else if (c->tokens && c->mark % REMAINDERS != (c->last_mark + 1) % REMAINDERS)
        fault("%s: a mark that does not follow the one before, after %ld tokens", c->run->path, c->tokens);
    if (c->tokens >= expected) {
        fault("%s: more than %ld tokens", c->run->path, expected);
        return;
    }
    if (is_all && !from.at) take(&from);
    if (c->seen && !c->seen[c->tokens]) c->seen[c->tokens] = at;
    put(&ages[c->place], at, at - c->mark);
    c->last_mark = c->mark;
    tokens[c->place]++;
    if (++c->tokens == 1 && ++with_first == all_viewers() && !is_all) take(&from);
    if (c->tokens == expected && ++with_last && !is_all && !to.at && !hold) take(&to);
}

static void on_text(struct stream *c, const char *p, const char *end, uint64_t at) {
    while (p < end) {
        if (!c->in_mark) {
            if (!(p = memchr(p, '@', end - p))) return;
            c->in_mark = 1;
            c->digits = 0;
            c->mark = 0;
        } else if (*p >= '0' && *p <= '9' && c->digits < 19) {
            c->mark = c->mark * 10 + (*p - '0');
            c->digits++;
        } else {
            c->in_mark = 0;
            if (*p != '@' || !c->digits) fault("%s: a broken mark after %ld tokens", c->run->path, c->tokens);
            else on_mark(c, at);
        }
        p++;
    }
}

/* ---- streams ---- */

static void begin(enum place place, struct run *r, int is_first) {
    int one = 1, port = ports[place == THERE];
    struct stream *c = calloc(1, sizeof *c);
    c->place = place;
    c->run = r;
    c->seen = is_first ? r->seen[place] : 0;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0) {
        perror("follow: socket");
        exit(2);
    }
    live++;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    connect(c->fd, (void *)&a, sizeof a); /* a failure shows at the send */
    struct epoll_event e = {.events = EPOLLOUT, .data.ptr = c};
    epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &e);
}

static void on_writable(struct stream *c) {
    char *request;
    const char *rest = "Host: 127.0.0.1\r\nConnection: close\r\n";
    int n = c->place == MAKER ? asprintf(&request, "POST /runs HTTP/1.1\r\n%sContent-Type: application/json\r\n"
                                                   "Content-Length: %zu\r\n\r\n%s", rest, strlen(body), body)
                              : asprintf(&request, "GET %s/events HTTP/1.1\r\n%s\r\n", c->run->path, rest);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    if (send(c->fd, request, n, MSG_NOSIGNAL) != n) fault("no connection");
    epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &e);
    free(request);
    c->asked = 1;
}

/* Looks into an answer's head once it is whole. */
static void on_head(struct stream *c) {
    int status = 0;
    c->has_head = 1;
    sscanf(c->head, "HTTP/1.1 %d", &status);
    if (status != (c->place == MAKER ? 201 : 200)) fault("%s: HTTP status %d", c->run->path, status);
    if (c->place != MAKER) return;
    char *at = strcasestr(c->head, "\r\nlocation: ");
    if (!at || sscanf(at, "\r\n%*s %159[^\r]", c->run->path) != 1) fault("a run without its path");
    for (enum place p = HERE; p <= THERE; p++)
        for (int i = 0; i < viewers[p]; i++) begin(p, c->run, !i);
}

static void on_bytes(struct stream *c, const char *p, const char *end, uint64_t at) {
    if (c->place != MAKER) bytes[c->place] += end - p;
    for (; p < end && !c->has_head; p++) {
        if (c->head_n == sizeof c->head - 1) fault("a head without an end");
        else c->head[c->head_n++] = *p;
        if (*p == '\n' && strstr(c->head, "\r\n\r\n")) on_head(c);
    }
    if (c->place == MAKER) return;
    on_text(c, p, end, at);
    for (p = end - p > 5 ? end - 5 : p; p < end; p++) {
        memmove(c->last, c->last + 1, 4);
        c->last[4] = *p;
    }
}

static void end(struct stream *c) {
    if (!c->has_head) fault("no HTTP answer");
    if (c->place != MAKER && (c->tokens != expected || c->in_mark || memcmp(c->last, "0\r\n\r\n", 5)))
        fault("%s: cut after %ld tokens", c->run->path, c->tokens);
    close(c->fd);
    free(c);
    live--;
}

static void on_readable(struct stream *c) {
    static char buffer[262144];
    ssize_t r = recv(c->fd, buffer, sizeof buffer, 0);
    if (r < 0 && errno == EAGAIN) return;
    if (r > 0) on_bytes(c, buffer, buffer + r, now_ns());
    else end(c);
}

static void turn(int wait_ms) {
    struct epoll_event evs[512];
    int k = epoll_wait(ep, evs, 512, wait_ms);
    for (int i = 0; i < k; i++) {
        struct stream *c = evs[i].data.ptr;
        if (!c) hold = 0; /* stdin ended */
        else if (!c->asked) on_writable(c);
        else on_readable(c);
    }
}

static int is_held(void) { return hold && with_last == all_viewers(); }

static void play(void) {
    uint64_t t0 = now_ns(), stop = t0 + seconds * 1000000000ull, over = 0, t;
    while ((t = now_ns()) < stop && (live || made < runs || over) && !first_fault && !is_held()) {
        for (; made < runs && t >= t0 + ramp_ms * 1000000ull * made / runs; made++) begin(MAKER, &all[made], 0);
        turn(made < runs || over ? 1 : 100);
        if (is_all && !over && !to.at && with_last == all_viewers()) over = now_ns() + SETTLE;
        if (over && now_ns() > over) {
            take(&to);
            over = 0;
        }
    }
    if (live && !is_held()) fault("%d streams did not end in time", live);
}

static void wait_for_stdin_to_end(void) {
    struct epoll_event e = {.events = EPOLLIN | EPOLLHUP, .data.ptr = 0};
    if (epoll_ctl(ep, EPOLL_CTL_ADD, 0, &e)) hold = 0; /* a file or /dev/null: nothing to wait for */
    while (hold) turn(1000);
}

static void watch(char *what) {
    char *pid = strchr(what, '=');
    if (!pid || watched_n == MOST_WATCHED) exit(2);
    *pid = 0;
    names[watched_n] = what;
    pids[watched_n++] = atoi(pid + 1);
}

static void read_options(int argc, char **argv) {
    for (int o; (o = getopt(argc, argv, "p:q:b:e:n:r:v:x:t:w:ao")) > 0;) switch (o) {
        case 'p': ports[HERE] = atoi(optarg); break;
        case 'q': ports[THERE] = atoi(optarg); break;
        case 'b': body = optarg; break;
        case 'e': expected = atol(optarg); break;
        case 'n': runs = atoi(optarg); break;
        case 'r': ramp_ms = atoi(optarg); break;
        case 'v': viewers[HERE] = atoi(optarg); break;
        case 'x': viewers[THERE] = atoi(optarg); break;
        case 't': seconds = atoi(optarg); break;
        case 'w': watch(optarg); break;
        case 'a': is_all = 1; break;
        case 'o': hold = 1; break;
        default: exit(2);
    }
    if (!ports[HERE] || expected < 1 || runs < 1 || !all_viewers() || (viewers[THERE] && !ports[THERE])) {
        fprintf(stderr, "follow: -p PORT, -e TOKENS and viewers are needed\n");
        exit(2);
    }
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    ep = epoll_create1(0);
    all = calloc(runs, sizeof *all);
    for (int r = 0; r < runs; r++)
        for (enum place p = HERE; p <= THERE; p++) all[r].seen[p] = calloc(expected, sizeof(uint64_t));
    play();
    int was_held = is_held();
    print();
    if (was_held && !first_fault) wait_for_stdin_to_end();
    if (first_fault) fprintf(stderr, "follow: %s\n", first_fault);
    return first_fault ? 1 : 0;
}
