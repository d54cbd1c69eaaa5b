// What a caller may write, and (where the next line is said to be an error) may not. It is compiled, never run.

import { EventSource as NodeEventSource } from "eventsource";
import { follow, stream, StreamError } from "sidestream";
import type { Answer, ChatRequest, Done, ErrorCode, Interrupt, Result, Run, StreamEvent, Usage } from "sidestream";

type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
const same = <A, B>(_: Same<A, B>): void => {};

const request: ChatRequest = {
  messages: [
    { role: "system", content: "Be brief." },
    { role: "user", content: [{ type: "text", text: "What?" }, { type: "image_url", image_url: { url: "data:" } }] },
    { role: "assistant", tool_calls: [{ id: "1", function: { name: "look", arguments: "{}" } }] },
    { role: "tool", tool_call_id: "1", content: "A cat." },
  ],
  model: "openai/gpt-4o-mini",
  tools: [{ function: { name: "look", parameters: { type: "object" } } }],
  tool_choice: { function: { name: "look" } },
  response_format: { type: "json_schema", json_schema: { name: "cat", schema: {} } },
  provider_options: { store: false },
  linger: 30,
};

const graph: ChatRequest = {
  input: { topic: "streams" },
  model: "langgraph/agent",
  thread_id: "mine",
  stream_mode: ["messages", "updates"],
  config: { configurable: { user: "Anna" }, recursion_limit: 50 },
  context: { name: "Anna" },
};

export async function goesOn(): Promise<void> {
  const { interrupts, thread_id } = await stream(graph).result;
  same<typeof interrupts, Interrupt[]>(true);
  same<typeof thread_id, string | undefined>(true);
  if (thread_id === undefined) return;
  for await (const { event, data } of stream({ resume: { approved: true }, thread_id })) {
    if (event === "start") same<typeof data.thread_id, string | undefined>(true);
    else if (event === "interrupt") same<typeof data.value, unknown>(true);
    else if (event === "updates" || event === "events") same<typeof data.ns, string[]>(true);
    else if (event !== "tasks") continue;
    else if ("input" in data.data) same<typeof data.data.triggers, string[]>(true);
    else same<typeof data.data.error, string | null>(true);
  }
  await stream({ input: null, thread_id, events: true, include_types: ["tool"] }).result;
  await stream({ messages: [{ role: "user", content: "Hi" }], thread_id, stream_mode: "values" }).result;
}

export async function reads(): Promise<void> {
  const controller = new AbortController();
  const answer: Answer = stream(request, {
    onToken: (text) => same<typeof text, string>(true),
    onReset: (reason) => same<typeof reason, ErrorCode>(true),
    onEvent: (event) => same<typeof event, StreamEvent>(true),
    onConnection: (state) => same<typeof state, "open" | "lost">(true),
    signal: controller.signal,
    base: new URL("https://app.example/llm/"),
    headers: { "Idempotency-Key": "message 1" },
    withCredentials: true,
    EventSource,
    fetch,
  });
  for await (const { event, id, data } of answer) {
    same<typeof id, string>(true);
    if (event === "token") same<typeof data.token, string>(true);
    else if (event === "tool_call_delta") same<typeof data.tool, string | undefined>(true);
    else if (event === "done") same<typeof data.ttft_ms, number | null>(true);
    else if (event === "cancelled") same<typeof data.reason, "disconnected" | "requested" | "draining">(true);
    // @ts-expect-error: only a token has one
    data.token;
    // @ts-expect-error: there is no such event
    if (event === "message") return;
  }
  const { text, data }: Result = await answer.result;
  same<typeof text, string>(true);
  same<typeof data, Done>(true);
  same<typeof answer.text, string>(true);
  same<Awaited<typeof answer.run>, Run>(true);
  await answer.stop();
  await answer.stop(new Error("enough"));
  same<ReturnType<typeof answer.leave>, void>(true);
  const run = await answer.run;
  await follow(run).result;
  await follow(run.id, { lastEventId: `${run.id}-1`, base: "/", EventSource: NodeEventSource }).result;
  await follow(JSON.parse("{}") as { id: string; events_url: string }).result;
}

export function fails(error: unknown): Usage | undefined {
  if (!(error instanceof StreamError)) return undefined;
  if (error.code === "upstream_auth" || error.code === "draining" || error.code === "unreachable") return error.usage;
  same<typeof error.retryable, boolean>(true);
  same<typeof error.status, number>(true);
  // @ts-expect-error: there is no such code
  return error.code === "oops" ? undefined : error.usage;
}

// @ts-expect-error: neither a message nor messages
stream({ model: "local" });
// @ts-expect-error: both
stream({ message: "Hi", messages: [] });
// @ts-expect-error: both
stream({ message: "Hi", input: {} });
// @ts-expect-error: an answer without the thread that asked
stream({ resume: "yes" });
// @ts-expect-error: no such mode
stream({ message: "Hi", stream_mode: ["tokens"] });
// @ts-expect-error: no such field
stream({ message: "Hi", temprature: 1 });
// @ts-expect-error: of another type
stream({ message: "Hi", max_tokens: "many" });
// @ts-expect-error: no such role
stream({ messages: [{ role: "robot", content: "Hi" }] });
// @ts-expect-error: a run that is created has no event yet to go on from
stream({ message: "Hi" }, { lastEventId: "" });
// @ts-expect-error: no such callback
stream({ message: "Hi" }, { onDone() {} });
// @ts-expect-error: a run is named by its id
follow(1);
// @ts-expect-error: they are thrown, not made
new StreamError("Oh");
// @ts-expect-error: nobody else writes the text
stream({ message: "Hi" }).text = "";
