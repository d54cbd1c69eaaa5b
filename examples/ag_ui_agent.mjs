// An agent of a front end, by AG-UI's own client: npm install @ag-ui/client, then node ag_ui_agent.mjs "Your question"
// Its URL names who answers: a model, a graph or an alias of Sidestream's. `SIDESTREAM_URL` says where that is.
import { HttpAgent } from "@ag-ui/client";

const [question = "What is the capital of France?", name = "local"] = process.argv.slice(2);
const base = process.env.SIDESTREAM_URL ?? "http://127.0.0.1:8000";

const agent = new HttpAgent({ url: `${base}/ag-ui/${name}` });
agent.addMessage({ id: crypto.randomUUID(), role: "user", content: question });

// What arrives, as it arrives; messages and state of the agent grow by themselves.
await agent.runAgent({}, {
  onTextMessageContentEvent: ({ event }) => { process.stdout.write(event.delta); },
  onToolCallEndEvent: ({ toolCallName, toolCallArgs }) => console.log(`[${toolCallName}`, toolCallArgs, "]"),
  onStepStartedEvent: ({ event }) => console.log(`[${event.stepName}]`),
  onRunErrorEvent: ({ event }) => console.error(`${event.code}: ${event.message}`),
  onRunFinishedEvent: ({ event }) => {
    for (const { message, metadata } of event.outcome?.interrupts ?? []) console.log(message ?? metadata.langgraph.raw);
    console.log(`\n(${event.usage?.[0]?.outputTokens} tokens)`);
  },
});

console.log(`${agent.messages.length} messages; the next question goes on from them.`);
