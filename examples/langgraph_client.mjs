// LangGraph's own SDK with the sample agent, which asks a person before it sends a postcard. `SIDESTREAM_URL` says where
// the service is; `make run` serves that agent. npm install @langchain/langgraph-sdk

import { Client } from "@langchain/langgraph-sdk";

const client = new Client({ apiUrl: `${process.env.SIDESTREAM_URL ?? "http://127.0.0.1:8000"}/lg` });
const { thread_id: thread } = await client.threads.create();

async function run(asked) {
  const stream = client.runs.stream(thread, "agent", { streamMode: ["messages-tuple", "updates"], ...asked });
  for await (const { event, data } of stream) {
    if (event === "messages" && data[0].type === "AIMessageChunk") {
      process.stdout.write(data[0].content);
    } else if (event === "updates" && data.__interrupt__) {
      console.log(data.__interrupt__[0].value.question, "yes");
      await run({ command: { resume: "yes" } });
    }
  }
}

await run({ input: { messages: [{ role: "user", content: "Send a postcard to Anna: see you on Sunday." }] } });
console.log();
