/**
 * Sidestream in a page: ask a model, and follow its answer whatever becomes of the connection.
 *
 *     import { stream } from "/sidestream.js";
 *
 *     const answer = stream({ message: "What is the capital of France?" }, { onToken: (text) => print(text) });
 *     const { text, data } = await answer.result;
 *
 * A run is created by POST, under an Idempotency-Key: to ask again after a lost response does not pay twice. Then it is
 * followed by EventSource. The browser reconnects by itself, with the last id it saw; where it gives up (at any status
 * but 200), the run is asked how it stands, and a new EventSource goes on from there. So no text is lost, and none
 * comes twice. What has come is kept for iterators, without a bound. The types, and what each option does, are in
 * sidestream.d.ts. Not here: conversations (the caller sends the messages), and anything of the page.
 */

/** All that a run can say. An EventSource hears only the names it was told. */
const TERMINAL = ["done", "error", "cancelled"];
const EVENTS = [
  "queued", "start", "reset", "token", "reasoning", "tool_call_delta", "tool_call", "tool_result", "values", "updates",
  "custom", "tasks", "checkpoints", "debug", "events", "interrupt", "draining", ...TERMINAL];
const RETRIES = 6;              // in a row; with the waits between them some 12 s, about as long as a run lingers
const FIRST_WAIT = 250;         // ms; twice as long each further time
const LONGEST_WAIT = 60;        // s; a longer Retry-After is the caller's to wait for
const CLOSED = 2;               // EventSource.CLOSED, which not every implementation has
const HERE = import.meta.url;   // by a name of its own: bundlers make a file of `new URL(".", import.meta.url)`

/** Start a run and follow it. */
export function stream(request, options) {
  return new Answer({ request }, options);
}

/** Follow a run that there is: after a reload of its page, or as one more viewer. */
export function follow(run, options) {
  if (!run) throw new TypeError("There is no run to follow.");
  return new Answer({ run: typeof run === "string" ? { id: run } : run }, options);
}

/** Why there is no whole answer: the run ended otherwise (`data` says how), or a request for it came to nothing. */
export class StreamError extends Error {
  name = "StreamError";

  constructor(message, { code, retryable = true, status = 0, retryAfter = 0, data = null, cause }) {
    super(message, { cause });
    Object.assign(this, { code, retryable, status, retryAfter, data });
  }

  get usage() {
    return this.data?.usage;
  }
}

class Answer {
  text = "";
  #thread;               // of a graph that keeps one
  #interrupts = [];      // what it asks a person
  #options;
  #base;
  #run;
  #events = [];          // an iterator is a position in it
  #waiting = [];         // iterators that have come to its end
  #settle;               // resolve and reject of the result
  #source;
  #seen;                 // the last event's id
  #connection;
  #reopened = 0;         // times in a row
  #over = false;
  #stopped = Promise.resolve();
  #hurry = () => {};     // ends the pause that is under way
  #alive;                // keeps Node running while its EventSource waits to reconnect, whose own timer does not
  #abort = () => this.stop(this.#options.signal.reason);

  constructor(what, options = {}) {
    const { EventSource = globalThis.EventSource, fetch = globalThis.fetch, signal } = options;
    if (!EventSource) throw new TypeError("There is no EventSource here: give one as an option (npm: eventsource).");
    this.#options = { ...options, EventSource, fetch };
    this.#base = folder(options.base);
    this.#alive = setInterval(() => {}, 2 ** 30);
    this.#seen = options.lastEventId;
    this.result = new Promise((resolve, reject) => { this.#settle = { resolve, reject }; });
    this.result.catch(() => {});    // who only iterates is told there
    this.run = "request" in what ? this.#create(what.request) : Promise.resolve(what.run);
    this.run.then((run) => { this.#run = run; this.#listen(); }).catch((error) => this.#end(error));
    signal?.addEventListener("abort", this.#abort);
    if (signal?.aborted) this.#abort();
  }

  /** Stop the run. Resolves when its upstream is closed, or when the service cannot be told. */
  stop(reason = new DOMException("The answer was stopped.", "AbortError")) {
    if (this.#over) return this.#stopped;
    this.#quit(reason);
    // Told once: where that is lost, the run has no viewer either, and ends when it has lingered.
    const tell = (run) => this.#fetch("DELETE", this.#urlOf(run), { keepalive: true });
    return this.#stopped = this.run.then(tell).then(() => {}, () => {});
  }

  /** Follow no longer, and let the run go on: for its `linger` where nobody else follows it. */
  leave() {
    this.#quit(new DOMException("The answer was left.", "AbortError"));
  }

  /** The events, from the first on. A loop that breaks off stops the run; one that ends has seen a whole answer. */
  [Symbol.asyncIterator]() {
    const last = { value: undefined, done: true };
    let at = 0;
    return {
      next: async () => {
        while (at >= this.#events.length && !this.#over) await new Promise((go) => this.#waiting.push(go));
        if (at < this.#events.length) return { value: this.#events[at++], done: false };
        await this.result;
        return last;
      },
      return: async () => {
        this.stop();
        return last;
      },
    };
  }

  async #create(request) {
    this.#options.signal?.throwIfAborted();
    const headers = new Headers(this.#options.headers);
    headers.set("Content-Type", "application/json");
    if (!headers.has("Idempotency-Key")) headers.set("Idempotency-Key", randomKey());
    return this.#ask("POST", new URL("runs", this.#base), { headers, body: JSON.stringify(request) });
  }

  #listen() {
    if (this.#over) return;
    const { EventSource, withCredentials = false } = this.#options, url = this.#urlOf(this.#run, "/events");
    if (this.#seen) url.searchParams.set("last_event_id", this.#seen);
    const source = this.#source = new EventSource(url.href, { withCredentials });
    // `error` is both an event of the run's, which has data, and the browser's own word for a connection that is lost.
    const hear = (event) => typeof event.data === "string" ? this.#take(event) : this.#lost(source);
    for (const name of EVENTS) source.addEventListener(name, hear);
    source.addEventListener("open", () => {
      this.#reopened = 0;
      this.#connected("open");
    });
  }

  #take({ type: event, lastEventId, data: json }) {
    const id = lastEventId || this.#seen;    // who is sent away at once was told none by this EventSource
    const data = JSON.parse(json), told = { event, id, data }, { onEvent, onToken, onReset } = this.#options;
    this.#seen = id;
    this.#events.push(told);
    if (event === "start") this.#thread = data.thread_id;
    if (event === "reset") [this.text, this.#interrupts] = ["", []];
    if (event === "token") this.text += data.token;
    if (event === "interrupt") this.#interrupts.push(data);
    if (TERMINAL.includes(event)) this.#conclude(told);
    this.#wake();
    onEvent?.(told);
    if (event === "token") onToken?.(data.token);
    if (event === "reset") onReset?.(data.reason);
  }

  async #lost(source) {
    this.#connected("lost");
    if (source.readyState !== CLOSED || source !== this.#source) return;    // it reconnects by itself, or was told of
    this.#source = undefined;
    try {
      const { state, ending, last_event_id: last } = await this.#ask("GET", this.#urlOf(this.#run));
      if (ending && last === this.#seen) return this.#conclude({ event: state, id: last, data: ending });
      if (this.#reopened === RETRIES) throw unreachable();
      await this.#pause(this.#reopened++);
      this.#listen();
    } catch (error) {
      this.#end(error);
    }
  }

  #conclude({ event, id, data }) {
    const graph = { thread_id: this.#thread, interrupts: this.#interrupts };
    if (event === "done") return this.#end(null, { text: this.text, ...graph, event, id, data });
    const { error = `The run was cancelled: ${data.reason}.`, code = data.reason, retryable } = data;
    this.#end(new StreamError(error, { code, retryable, data }));
  }

  #quit(reason) {
    if (!this.#over) this.#events = [];    // who quits wants to see no more
    this.#end(reason);
  }

  /** Settle the result, once, and hear no more. */
  #end(error, result) {
    if (this.#over) return;
    this.#over = true;
    this.#source?.close();
    clearInterval(this.#alive);
    this.#options.signal?.removeEventListener("abort", this.#abort);
    if (result) this.#settle.resolve(result);
    else this.#settle.reject(error);
    this.#hurry();
    this.#wake();
  }

  #wake() {
    for (const go of this.#waiting.splice(0)) go();
  }

  #connected(state) {
    if (this.#over || this.#connection === state) return;
    this.#connection = state;
    this.#options.onConnection?.(state);
  }

  /** Ask the service, and again while it is not reached or not ready. */
  async #ask(method, url, init) {
    for (let tries = 0; ; tries++) {
      try {
        return await bodyOf(this.#fetch(method, url, init));
      } catch (error) {
        if (!error.retryable || error.retryAfter > LONGEST_WAIT || tries === RETRIES) throw error;
        this.#connected("lost");
        await this.#pause(tries, error.retryAfter);
        if (this.#over) throw error;
      }
    }
  }

  #fetch(method, url, init) {
    const { fetch, headers, withCredentials } = this.#options;
    return fetch(url, { method, headers, credentials: withCredentials ? "include" : "same-origin", ...init });
  }

  async #pause(tries, atLeast = 0) {
    if (this.#over) return;
    const wait = Math.max(FIRST_WAIT * 2 ** tries * (1 + Math.random()) / 2, atLeast * 1000);
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, wait);
      this.#hurry = () => { clearTimeout(timer); resolve(); };
    });
  }

  /** A URL of the run: below our own base, as the service may not know under which prefix it is, signed as it said. */
  #urlOf({ id, events_url = "" }, path = "") {
    const url = new URL(`runs/${encodeURIComponent(id)}${path}`, this.#base);
    url.search = new URL(events_url, this.#base).search;
    return url;
  }
}

function folder(base) {
  if (base !== undefined) return new URL(`${base}`.replace(/\/*$/, "/"), globalThis.location?.href);
  if (!HERE.startsWith("http")) throw new TypeError("Say as `base` where the service is.");
  return new URL(".", HERE);
}

/** The JSON of a response. Throws a StreamError where it is a refusal, or none of the service's. */
async function bodyOf(fetching) {
  let response, content, body;
  try {
    response = await fetching;
    content = await response.text();
  } catch (cause) {
    throw unreachable({ cause });
  }
  try { body = JSON.parse(content); } catch { /* not of the service's making: a proxy's page */ }
  if (response.ok && body) return body;
  const { status, headers } = response, retryable = [408, 425, 429].includes(status) || status > 500;
  const { detail, code = retryable ? "unreachable" : "unexpected_response" } = body ?? {};
  const retryAfter = seconds(headers.get("Retry-After")), text = `The service answered ${status}.`;
  throw new StreamError(detail ?? text, { code, retryable, status, retryAfter, data: body });
}

const unreachable = (why) => new StreamError("The service cannot be reached.", { code: "unreachable", ...why });

/** The seconds of a Retry-After: it has a number of them, or a date (RFC 9110, 10.2.3). */
function seconds(header) {
  return header === null ? 0 : Math.max(0, Number(header) || (Date.parse(header) - Date.now()) / 1000 || 0);
}

/** 128 random bits. crypto.randomUUID is there in secure contexts only. */
function randomKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
