/** Types of sidestream.js, the browser's client of Sidestream. */

/** Start a run and follow it. */
export function stream(request: ChatRequest, options?: StreamOptions): Answer;

/**
 * Follow a run that there is: after a reload of its page, or as one more viewer. `run` is what `Answer.run` gave (a run
 * that needs a signature needs its `events_url`), or a run's id.
 */
export function follow(run: string | Pick<Run, "id" | "events_url">, options?: FollowOptions): Answer;

export interface StreamOptions {
  /** Called with each piece of the answer's text. */
  onToken?(text: string): void;
  /** Called where what came so far is void, as another model begins anew: only where several were asked for. */
  onReset?(reason: ErrorCode): void;
  /** Called with each event, the last one too. */
  onEvent?(event: StreamEvent): void;
  /** Called when the connection is lost (it is then tried again) and when it is open, at each change. */
  onConnection?(state: "open" | "lost"): void;
  /** Stops the run, as `Answer.stop` does. */
  signal?: AbortSignal;
  /** Where the service is; by default the folder that this module was loaded from. */
  base?: string | URL;
  /**
   * Further headers of requests by fetch; an EventSource can send none. An `Idempotency-Key` among them takes the place
   * of a random one: asked again under the same key, the service answers with the same run, while that is kept.
   */
  headers?: Record<string, string>;
  /** Send cookies to another origin, too. */
  withCredentials?: boolean;
  /** Where there is none: in Node, that of the npm package `eventsource`. */
  EventSource?: EventSourceClass;
  fetch?: typeof globalThis.fetch;
}

export interface FollowOptions extends StreamOptions {
  /** Go on after this event. By default all is told from the start, what has come so far in one piece. */
  lastEventId?: string;
}

/**
 * An answer as it comes. Read its `result`, or its events in a `for await`, or both. A loop begins at the first event
 * and ends after `done`; without a whole answer it throws at its end what `result` rejects with. To break off such a
 * loop stops the run. What has come is kept until the answer is garbage, so a slow loop holds nobody up.
 */
export interface Answer extends AsyncIterable<StreamEvent> {
  /** The run: store it to `follow` it later. Rejects where it could not be created. */
  readonly run: Promise<Run>;
  /** The whole answer. Rejects with a StreamError, or with the reason for which the caller stopped or left it. */
  readonly result: Promise<Result>;
  /** The text so far. */
  readonly text: string;
  /**
   * Stop the run: here at once, `result` rejects with `reason` (by default an AbortError); and by a DELETE at the
   * service, even where it is still being created. Resolves when its upstream is closed, or the service cannot be told.
   */
  stop(reason?: unknown): Promise<void>;
  /** Follow no longer, and let the run go on: for its `linger` where nobody else follows it. */
  leave(): void;
}

/** What created a run says of it. The URLs are signed, for who can send no headers, until `expires` (Unix seconds). */
export interface Run {
  id: string;
  events_url: string;
  status_url: string;
  expires: number;
}

export interface Result {
  /** All text that came: of a run followed from a `lastEventId`, what came after it. */
  text: string;
  /** The thread of a graph that keeps one: the next request may go on with it. */
  thread_id: string | undefined;
  /** What a graph waits for a person to answer: by a request with its `thread_id` and a `resume`. */
  interrupts: Interrupt[];
  event: "done";
  id: string;
  data: Done;
}

/** Why there is no whole answer. */
export class StreamError extends Error {
  private constructor();
  readonly name: "StreamError";
  /** Of the run's `error`, the `reason` of its `cancelled`, of the service's refusal, or one of this client's own. */
  readonly code: ErrorCode | CancelReason | ClientErrorCode;
  /** Whether trying again may help. */
  readonly retryable: boolean;
  /** Of the HTTP response that was a refusal, else 0. */
  readonly status: number;
  /** Seconds after which the service wants to be asked again, else 0. */
  readonly retryAfter: number;
  /** The run's last event's, or the refusal's problem (RFC 9457). */
  readonly data: Failed | Cancelled | Problem | null;
  /** What the run has used until its end, where it had begun. */
  readonly usage: Usage | undefined;
}

// ---- what a run says -----------------------------------------------------------------------------------------------

/** `event` tells which; `id` is the place in the run. */
export type StreamEvent = { [Name in keyof Events]: { event: Name; id: string; data: Events[Name] } }[keyof Events];

export interface Events {
  /** The run waits for a place; told anew as it moves up. */
  queued: Queued;
  /** At once, before the model answers; and again where another model takes over. */
  start: Start;
  /** What was said so far is void: another model begins anew. */
  reset: Reset;
  /** A piece of the answer's text. */
  token: Token;
  /** A piece of the model's thinking, where it shows it. */
  reasoning: Reasoning;
  /** A tool call as it is written. */
  tool_call_delta: ToolCallDelta;
  /** A whole tool call. */
  tool_call: ToolCall;
  /** What a tool answered. */
  tool_result: ToolResult;
  /** The whole state of a graph after a step; of a chain, its output so far. */
  values: GraphEvent;
  /** What nodes have changed, by node; of a chain, what its output has grown by. */
  updates: GraphEvent;
  /** What a node wrote to its stream. */
  custom: GraphEvent;
  /** A node begins, or has ended. */
  tasks: GraphEvent<TaskBegins | TaskEnded>;
  /** A checkpoint was made. */
  checkpoints: GraphEvent;
  /** A step in all detail. */
  debug: GraphEvent;
  /** One event of LangChain's `astream_events`. */
  events: GraphEvent;
  /** A graph waits for a person. */
  interrupt: Interrupt;
  /** This replica goes, and another has the run: its `id` is that of the event before. */
  draining: Draining;
  /** The last event: the answer is whole. */
  done: Done;
  /** The last event: it failed. */
  error: Failed;
  /** The last event: it was stopped. */
  cancelled: Cancelled;
}

export interface Draining {
  /** Milliseconds until the EventSource reconnects by itself. */
  retry_ms: number;
}

export interface Queued {
  /** In the line, from 1. */
  position: number;
}

export interface Start {
  run: string;
  provider: string;
  model: string;
  /** Unix seconds. */
  created: number;
  /** Of a graph that keeps threads: given, or made up. */
  thread_id?: string;
}

export interface Reset {
  /** Why the answer so far was left. */
  reason: ErrorCode;
}

/** Where in a graph an event comes from, if from one. */
export interface FromGraph {
  node?: string;
  ns?: string[];
}

export interface Token extends FromGraph {
  token: string;
}

export interface Reasoning extends FromGraph {
  reasoning: string;
  /** Closes what was thought: some upstreams sign it. */
  signature?: string;
}

export interface ToolCallDelta extends FromGraph {
  /** Which of the calls of this answer. */
  index: number;
  args_delta: string;
  /** On the first of a call, as `tool`. */
  id?: string;
  tool?: string;
}

export interface ToolCall extends FromGraph {
  id: string;
  tool: string;
  /** Parsed; what is not JSON is the text that the model wrote. */
  args: unknown;
}

export interface ToolResult extends FromGraph {
  id: string;
  tool: string;
  content: unknown;
}

/** What a graph or a chain tells of itself, in its own words. */
export interface GraphEvent<Data = unknown> {
  /** The path of subgraphs it comes from, each `<node>:<task id>`; empty for the graph itself. */
  ns: string[];
  data: Data;
}

/** Has an `input`, as what ended has a `result`. */
export interface TaskBegins {
  id: string;
  name: string;
  input: unknown;
  triggers: string[];
}

export interface TaskEnded {
  id: string;
  name: string;
  /** What it raised, by its type's name. */
  error: string | null;
  result: unknown;
  interrupts: Interrupt[];
}

export interface Interrupt {
  id: string;
  /** What the graph asks, as it has put it. */
  value: unknown;
}

export interface Done {
  done: true;
  finish_reason: FinishReason;
  model: string;
  usage: Usage;
  /** How many pieces of content there were. */
  tokens: number;
  /** Milliseconds to the first content, null without any; and to the end. */
  ttft_ms: number | null;
  latency_ms: number;
  /** What the upstream sent and could not be read, if anything: something may lack. */
  skipped_chunks?: number;
}

export interface Failed {
  done: true;
  /** For a person. */
  error: string;
  code: ErrorCode;
  retryable: boolean;
  usage: Usage;
}

export interface Cancelled {
  done: true;
  reason: CancelReason;
  usage: Usage;
}

/** Tokens, as the upstream counted them; `estimated` where it did not. */
export interface Usage {
  input_tokens: number;
  output_tokens: number;
  cached_tokens?: number;
  reasoning_tokens?: number;
  estimated?: boolean;
}

export type FinishReason = "stop" | "length" | "tool_calls" | "content_filter" | "interrupt";
export type CancelReason = "disconnected" | "requested" | "draining";

export type ErrorCode =
  | "invalid_request" | "invalid_input" | "unauthorized" | "forbidden" | "not_found" | "unknown_model"
  | "method_not_allowed" | "not_acceptable" | "request_timeout" | "conflict" | "cancelled" | "interrupted" | "too_large" | "unsupported_media_type" | "rate_limited"
  | "upstream_auth" | "upstream_rejected" | "upstream_rate_limited" | "upstream_unavailable" | "upstream_incomplete"
  | "upstream_invalid" | "content_filtered" | "context_length" | "graph_failed"
  | "first_token_timeout" | "idle_timeout" | "run_timeout" | "output_limit" | "overloaded" | "shutting_down"
  | "unavailable" | "run_lost" | "internal";

/** The service was not reached, or a proxy said so; or what answered is no Sidestream. */
export type ClientErrorCode = "unreachable" | "unexpected_response";

/** A refusal (RFC 9457). `field` is what of the request it is about. */
export interface Problem {
  type: string;
  title: string;
  status: number;
  detail: string;
  code: ErrorCode;
  field?: string;
}

// ---- what it is asked ----------------------------------------------------------------------------------------------

/** One `message`, or the conversation as `messages`; or what a chain or graph takes of its own. */
export type ChatRequest = ChatSettings & GraphSettings & (
  | Only<{ message: string }>
  | Only<{ messages: Message[] }>
  /** The input of a chain or graph; null lets the thread go on from its last checkpoint. */
  | Only<{ input: {} | null }>
  /** The answer to an interrupt; to several, an object of them by their ids. */
  | Only<{ resume: {} | null; thread_id: string }>
);

type Only<Given> = Given & { [Other in Exclude<"message" | "messages" | "input" | "resume", keyof Given>]?: undefined };

/** For chains and graphs, which take no model's settings. */
export interface GraphSettings {
  /** Of a graph with a checkpointer: the thread that goes on, whose memory of the conversation is its own. */
  thread_id?: string;
  /** What shall be told; else messages and updates. Not of a chain. */
  stream_mode?: StreamMode | StreamMode[];
  config?: RunnableConfig;
  /** What a graph's nodes find in `runtime.context`. */
  context?: Record<string, unknown>;
  /** Tell the events of `astream_events` instead. */
  events?: boolean;
  /** Which of these. */
  include_names?: string[];
  include_types?: string[];
  include_tags?: string[];
}

export type StreamMode = "values" | "updates" | "messages" | "custom" | "tasks" | "checkpoints" | "debug";

/** LangChain's, as far as a request may say it. */
export interface RunnableConfig {
  configurable?: Record<string, unknown>;
  tags?: string[];
  metadata?: Record<string, unknown>;
  run_name?: string;
  recursion_limit?: number;
  max_concurrency?: number;
}

/** As OpenAI has them, translated for the others; without one, what the model's provider does by itself. */
export interface ChatSettings {
  /** `provider/model`, a provider's name, a model's, an alias, or several; without it the service's default. */
  model?: string | string[] | Fallbacks;
  /** Instructions. */
  system?: string;
  max_tokens?: number;
  temperature?: number;
  top_p?: number;
  stop?: string | string[];
  seed?: number;
  tools?: Tool[];
  tool_choice?: "auto" | "none" | "required" | { type?: "function"; function: { name: string } };
  parallel_tool_calls?: boolean;
  response_format?: ResponseFormat;
  /** Put into the upstream's request as it is. */
  provider_options?: Record<string, unknown>;
  /** Seconds, up to the service's own. */
  run_timeout?: number;
  first_token_timeout?: number;
  idle_timeout?: number;
  /** Seconds that the run goes on without a viewer. */
  linger?: number;
}

/** Models to ask one after the other until one answers. */
export interface Fallbacks {
  models: string[];
  /** Refusals of the request that are the next one's turn, too. */
  on?: ("upstream_auth" | "upstream_rejected" | "content_filtered" | "context_length")[];
}

export interface Message {
  role: "system" | "developer" | "user" | "assistant" | "tool";
  content?: string | (TextPart | ImagePart)[] | null;
  name?: string;
  tool_calls?: MessageToolCall[];
  tool_call_id?: string;
}

export interface TextPart {
  type: "text";
  text: string;
}

export interface ImagePart {
  type: "image_url";
  /** An https URL, or the image itself as `data:image/png;base64,...`. */
  image_url: { url: string; detail?: "auto" | "low" | "high" };
}

export interface MessageToolCall {
  id: string;
  type?: "function";
  /** `arguments` is JSON. */
  function: { name: string; arguments: string };
}

export interface Tool {
  type?: "function";
  function: { name: string; description?: string; parameters?: Record<string, unknown>; strict?: boolean };
}

export type ResponseFormat =
  | { type: "text" }
  | { type: "json_object" }
  | {
      type: "json_schema";
      json_schema: { name: string; schema: Record<string, unknown>; description?: string; strict?: boolean };
    };

/** As much of an EventSource's class as is used. */
export type EventSourceClass = new (url: string, init: { withCredentials: boolean }) => {
  readonly readyState: number;
  addEventListener(type: string, listener: (event: any) => void): void;
  close(): void;
};
