/* A scripted LLM upstream: speaks OpenAI chat.completions, OpenAI Responses and Anthropic messages streams, one token
 * per HTTP chunk, at a fixed pace.
 *
 *   cc -O2 -o upstream upstream.c && ./upstream PORT
 *
 * The request's model name is the script:  n<tokens>-i<ms>[-f<ms>][-x<k>][-z<k>][-q<status>]
 *   n500   how many tokens            i20  milliseconds between tokens (0: as fast as the socket takes them)
 *   f300   wait before the first one  x7   cut the connection after token 7
 *   z7     fall silent after token 7  q429 answer this HTTP status with a JSON error, no stream
 *
 * Every token's text is " @<mark>@". The mark is the CLOCK_MONOTONIC time in ns at which the token was sent, so a client
 * on the same machine knows each token's age whatever wire format it arrives in. It is rounded up (by less than 1 us) so
 * that token k of a stream has the remainder (first + k) % 997 and `first` differs between neighbouring streams: a
 * client can tell a lost, repeated, altered, misplaced or foreign token from the text alone.
 *
 * GET /stats: {"started","active","completed","aborted","dropped","last_abort_ns","now_ns","tokens"};
 * aborted = the peer hung up early, dropped = cut by an x in the script.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define REMAINDERS 997     /* load.c knows it too */
#define FULL_SPEED_OUT 32768 /* bytes made ahead of the socket in a stream without a pace */

enum kind { CHAT, RESPONSES, MESSAGES };
struct conn {
    int fd, place; /* in `flowing`, -1: not there */
    int streaming; /* a scripted answer is on its way */
    int finished;  /* all of it is in `out` */
    int blocked;   /* the socket is full: epoll says when to go on */
    enum kind kind;
    char *in;
    size_t in_len, in_cap;
    char *out;
    size_t out_len, out_cap, out_off;
    long n, sent, cut, stall, first_remainder;
    uint64_t step, due, last_mark;
};
static struct conn **flowing; /* those that have tokens to come; others cost nothing, however many they are */
static int flowing_n, flowing_cap, ep;
static uint64_t last_abort;
static long started, completed, aborted, dropped, tokens;

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void out(struct conn *c, const char *s, size_t n) {
    if (c->out_len + n > c->out_cap) {
        c->out_cap = (c->out_len + n) * 2;
        c->out = realloc(c->out, c->out_cap);
    }
    memcpy(c->out + c->out_len, s, n);
    c->out_len += n;
}

static void chunk(struct conn *c, const char *body) {
    char head[32];
    size_t n = strlen(body);
    out(c, head, sprintf(head, "%zx\r\n", n));
    out(c, body, n);
    out(c, "\r\n", 2);
}

static void watch(struct conn *c, int operation, int blocked) {
    struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP | (blocked ? EPOLLOUT : 0), .data.ptr = c};
    c->blocked = blocked;
    epoll_ctl(ep, operation, c->fd, &e);
}

static void join(struct conn *c) {
    if (flowing_n == flowing_cap) {
        flowing_cap = flowing_cap ? flowing_cap * 2 : 64;
        flowing = realloc(flowing, flowing_cap * sizeof *flowing);
    }
    c->place = flowing_n;
    flowing[flowing_n++] = c;
}

static void leave(struct conn *c) {
    if (c->place < 0) return;
    flowing[c->place] = flowing[--flowing_n];
    flowing[c->place]->place = c->place;
    c->place = -1;
}

static void destroy(struct conn *c) {
    if (c->streaming && !c->finished) {
        aborted++;
        last_abort = now_ns();
    }
    close(c->fd);
    leave(c);
    free(c->in);
    free(c->out);
    free(c);
}

/* ---- the three formats ---- */

#define CHAT_CHUNK(choices, usage) \
    "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1760000000,\"model\":\"bench\"," \
    "\"service_tier\":\"default\",\"system_fingerprint\":\"fp_0\",\"choices\":[" choices "],\"usage\":" usage "}\n\n"
#define CHOICE(delta, reason) "{\"index\":0,\"delta\":{" delta "},\"logprobs\":null,\"finish_reason\":" reason "}"
#define EVENT(name, fields) "event: " name "\ndata: {\"type\":\"" name "\"" fields "}\n\n"
#define RESPONSE(fields) \
    ",\"response\":{\"id\":\"resp_bench\",\"object\":\"response\",\"created_at\":1760000000,\"model\":\"bench\"," \
    "\"output\":[],\"parallel_tool_calls\":true,\"tool_choice\":\"auto\",\"tools\":[]," fields "}"
#define PART "\"item_id\":\"msg_bench\",\"output_index\":0,\"content_index\":0"

static void opening(struct conn *c) {
    const char *head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
                       "x-request-id: req_bench\r\nTransfer-Encoding: chunked\r\n\r\n";
    out(c, head, strlen(head));
    if (c->kind == CHAT) {
        chunk(c, CHAT_CHUNK(CHOICE("\"role\":\"assistant\",\"content\":\"\",\"refusal\":null", "null"), "null"));
    } else if (c->kind == MESSAGES) {
        chunk(c, EVENT("message_start",
                       ",\"message\":{\"id\":\"msg_bench\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"bench\","
                       "\"content\":[],\"stop_reason\":null,\"stop_sequence\":null,\"usage\":{\"input_tokens\":12,"
                       "\"cache_creation_input_tokens\":0,\"cache_read_input_tokens\":0,\"output_tokens\":1}}"));
        chunk(c, EVENT("content_block_start", ",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}"));
        chunk(c, EVENT("ping", ""));
    } else {
        chunk(c, EVENT("response.created", ",\"sequence_number\":0" RESPONSE("\"status\":\"in_progress\"")));
        chunk(c, EVENT("response.output_item.added",
                       ",\"sequence_number\":1,\"output_index\":0,\"item\":{\"id\":\"msg_bench\",\"type\":\"message\","
                       "\"status\":\"in_progress\",\"content\":[],\"role\":\"assistant\"}"));
        chunk(c, EVENT("response.content_part.added",
                       ",\"sequence_number\":2," PART ",\"part\":{\"type\":\"output_text\",\"annotations\":[],"
                       "\"logprobs\":[],\"text\":\"\"}"));
    }
}

static unsigned long long next_mark(struct conn *c) {
    uint64_t t = now_ns();
    if (t <= c->last_mark) t = c->last_mark + 1;
    long want = (c->first_remainder + c->sent) % REMAINDERS, have = t % REMAINDERS;
    return c->last_mark = t + (want - have + REMAINDERS) % REMAINDERS;
}

static void token(struct conn *c) {
    char b[700];
    unsigned long long mark = next_mark(c);
    if (c->kind == CHAT)
        sprintf(b, CHAT_CHUNK(CHOICE("\"content\":\" @%llu@\"", "null"), "null"), mark);
    else if (c->kind == MESSAGES)
        sprintf(b, EVENT("content_block_delta", ",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\" @%llu@\"}"),
                mark);
    else
        sprintf(b, EVENT("response.output_text.delta", ",\"sequence_number\":%ld," PART ",\"delta\":\" @%llu@\","
                         "\"logprobs\":[],\"obfuscation\":\"k3J9xQ\""), c->sent + 3, mark);
    chunk(c, b);
    c->sent++;
    tokens++;
}

static void closing(struct conn *c) {
    char b[1200];
    if (c->kind == CHAT) {
        chunk(c, CHAT_CHUNK(CHOICE("", "\"stop\""), "null"));
        sprintf(b, CHAT_CHUNK("", "{\"prompt_tokens\":12,\"completion_tokens\":%ld,\"total_tokens\":%ld}"),
                c->sent, c->sent + 12);
        chunk(c, b);
        chunk(c, "data: [DONE]\n\n");
    } else if (c->kind == MESSAGES) {
        chunk(c, EVENT("content_block_stop", ",\"index\":0"));
        sprintf(b, EVENT("message_delta", ",\"delta\":{\"stop_reason\":\"end_turn\",\"stop_sequence\":null},"
                         "\"usage\":{\"output_tokens\":%ld}"), c->sent);
        chunk(c, b);
        chunk(c, EVENT("message_stop", ""));
    } else {
        sprintf(b, EVENT("response.completed", ",\"sequence_number\":%ld" RESPONSE(
                         "\"status\":\"completed\",\"usage\":{\"input_tokens\":12,\"input_tokens_details\":{\"cached_tokens\":0},"
                         "\"output_tokens\":%ld,\"output_tokens_details\":{\"reasoning_tokens\":0},\"total_tokens\":%ld}")),
                c->sent + 4, c->sent, c->sent + 12);
        chunk(c, b);
    }
    out(c, "0\r\n\r\n", 5);
    c->finished = 1;
    completed++;
}

/* ---- sending ---- */

/* Returns 0 if the connection is gone. */
static int flush(struct conn *c) {
    while (c->out_off < c->out_len) {
        ssize_t w = send(c->fd, c->out + c->out_off, c->out_len - c->out_off, MSG_NOSIGNAL);
        if (w < 0) {
            if (errno == EINTR) continue;
            if (errno != EAGAIN) {
                destroy(c);
                return 0;
            }
            if (!c->blocked) watch(c, EPOLL_CTL_MOD, 1);
            return 1;
        }
        c->out_off += w;
    }
    c->out_off = c->out_len = 0;
    if (c->blocked) watch(c, EPOLL_CTL_MOD, 0);
    if (c->finished) c->streaming = 0;
    return 1;
}

static int is_over(struct conn *c, long mark) { return mark >= 0 && c->sent >= mark; }

/* Writes what is due into `out`. */
static void produce(struct conn *c) {
    if (c->step == 0) {
        while (c->sent < c->n && c->out_len < FULL_SPEED_OUT && !is_over(c, c->cut) && !is_over(c, c->stall)) token(c);
        if (c->sent >= c->n && !is_over(c, c->stall)) closing(c);
        return;
    }
    if (c->sent < c->n && !is_over(c, c->cut)) {
        token(c);
        c->due += c->step;
    }
    if (c->sent >= c->n && !is_over(c, c->cut) && !is_over(c, c->stall)) closing(c);
}

/* One turn over all streams that flow; returns when the next token is due. */
static uint64_t pace(uint64_t t) {
    uint64_t next = t + 1000000000ull;
    for (int i = 0; i < flowing_n; i++) {
        struct conn *c = flowing[i];
        if (c->finished || is_over(c, c->stall)) {
            leave(c);
            i--;
            continue;
        }
        if (c->blocked) continue;
        if (t >= c->due) {
            produce(c);
            if (!flush(c)) {
                i--;
                continue;
            }
            if (is_over(c, c->cut) && !c->blocked) {
                c->finished = 1;
                dropped++;
                destroy(c);
                i--;
                continue;
            }
        }
        if (!c->finished && c->due < next) next = c->due;
    }
    return next;
}

/* ---- requests ---- */

static long knob(const char *m, const char *end, char key, long otherwise) {
    for (const char *p = m; p < end; p++)
        if (*p == key && (p == m || p[-1] == '-') && p[1] >= '0' && p[1] <= '9') return atol(p + 1);
    return otherwise;
}

static void answer_get(struct conn *c, const char *path) {
    char b[512], h[256];
    int n;
    if (strstr(path, "/stats"))
        n = sprintf(b, "{\"started\":%ld,\"active\":%ld,\"completed\":%ld,\"aborted\":%ld,\"dropped\":%ld,"
                       "\"last_abort_ns\":%llu,\"now_ns\":%llu,\"tokens\":%ld}\n",
                    started, started - completed - aborted - dropped, completed, aborted, dropped,
                    (unsigned long long)last_abort, (unsigned long long)now_ns(), tokens);
    else
        n = sprintf(b, "{\"object\":\"list\",\"data\":[{\"id\":\"bench\",\"object\":\"model\",\"created\":1760000000,"
                       "\"owned_by\":\"bench\"}]}\n");
    out(c, h, sprintf(h, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", n));
    out(c, b, n);
}

static void answer_status(struct conn *c, long status) {
    char h[256];
    const char *e = "{\"type\":\"error\",\"error\":{\"message\":\"scripted upstream error\",\"type\":\"scripted_error\","
                    "\"param\":null,\"code\":\"scripted\"}}";
    out(c, h, sprintf(h, "HTTP/1.1 %ld Scripted\r\nContent-Type: application/json\r\nretry-after: 0\r\n"
                         "Content-Length: %zu\r\n\r\n", status, strlen(e)));
    out(c, e, strlen(e));
}

static void answer_post(struct conn *c, const char *path, char *body, char *end) {
    char *m = memmem(body, end - body, "\"model\"", 7), *mend = end;
    if (m) {
        m += 7;
        while (m < end && *m != '"') m++;
        if (m < end) m++;
        mend = memchr(m, '"', end - m);
        if (!mend) mend = end;
    } else {
        m = end;
    }
    for (char *p = m; p < mend; p++)
        if (*p == '/') m = p + 1; /* openai/n500-i20 */
    long status = knob(m, mend, 'q', 0);
    if (status) {
        answer_status(c, status);
        return;
    }
    c->kind = strstr(path, "/messages") ? MESSAGES : strstr(path, "/responses") ? RESPONSES : CHAT;
    c->n = knob(m, mend, 'n', 200);
    c->step = knob(m, mend, 'i', 20) * 1000000ull;
    c->cut = knob(m, mend, 'x', -1);
    c->stall = knob(m, mend, 'z', -1);
    c->due = now_ns() + knob(m, mend, 'f', c->step / 1000000) * 1000000ull;
    c->sent = c->finished = 0;
    c->first_remainder = started * 131 % REMAINDERS;
    c->streaming = 1;
    started++;
    opening(c);
    leave(c); /* after an answer that has just ended it may still be there */
    join(c);
}

/* Answers one whole request from `in`; returns 0 if there is none yet. */
static int request(struct conn *c) {
    char *head_end = memmem(c->in, c->in_len, "\r\n\r\n", 4);
    if (!head_end) return 0;
    size_t head = head_end + 4 - c->in, body = 0;
    char path[256] = "";
    *head_end = 0;
    char *length = strcasestr(c->in, "\r\ncontent-length:");
    if (length) body = strtoul(length + 17, 0, 10);
    int get = !strncmp(c->in, "GET ", 4);
    sscanf(c->in, "%*s %255s", path);
    *head_end = '\r';
    if (c->in_len < head + body) return 0;
    if (get)
        answer_get(c, path);
    else
        answer_post(c, path, c->in + head, c->in + head + body);
    memmove(c->in, c->in + head + body, c->in_len - head - body);
    c->in_len -= head + body;
    return 1;
}

static void on_readable(struct conn *c) {
    if (c->in_len == c->in_cap) {
        c->in_cap *= 2;
        c->in = realloc(c->in, c->in_cap + 1);
    }
    ssize_t r = recv(c->fd, c->in + c->in_len, c->in_cap - c->in_len, 0);
    if (r == 0 || (r < 0 && errno != EAGAIN)) {
        destroy(c);
        return;
    }
    if (r > 0) {
        c->in_len += r;
        c->in[c->in_len] = 0;
        if (!c->streaming && request(c)) flush(c);
    }
}

static void accept_all(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, 0, 0, SOCK_NONBLOCK)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct conn *c = calloc(1, sizeof *c);
        c->fd = fd;
        c->in_cap = 8192;
        c->in = malloc(c->in_cap + 1);
        c->place = -1;
        watch(c, EPOLL_CTL_ADD, 0);
    }
}

static int listen_on(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(fd, (void *)&a, sizeof a) || listen(fd, 4096)) {
        perror("upstream: bind");
        exit(1);
    }
    return fd;
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: upstream PORT\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    int listener = listen_on(atoi(argv[1]));
    ep = epoll_create1(0);
    struct epoll_event on_listener = {.events = EPOLLIN, .data.ptr = 0}, evs[512];
    epoll_ctl(ep, EPOLL_CTL_ADD, listener, &on_listener);
    for (;;) {
        uint64_t next = pace(now_ns()), t = now_ns();
        /* rounded up to whole ms, so a pace never becomes a busy loop; a stream at full speed is due at once */
        int k = epoll_wait(ep, evs, 512, next > t ? (int)((next - t) / 1000000) + 1 : 0);
        for (int i = 0; i < k; i++) {
            struct conn *c = evs[i].data.ptr;
            if (!c)
                accept_all(listener);
            else if (evs[i].events & EPOLLOUT && !flush(c))
                continue;
            else if (evs[i].events & ~EPOLLOUT)
                on_readable(c);
        }
    }
}
