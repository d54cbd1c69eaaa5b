// Anthropic's own SDK, whatever the model. `SIDESTREAM_URL` says where the service is. npm install @anthropic-ai/sdk

import Anthropic from "@anthropic-ai/sdk";

const client = new Anthropic({
  baseURL: process.env.SIDESTREAM_URL ?? "http://127.0.0.1:8000",
  apiKey: "none", // one of the service's, where it wants one
});

const stream = client.messages.stream({
  model: "local",
  max_tokens: 100,
  messages: [{ role: "user", content: "What is the capital of France?" }],
});
stream.on("text", (text) => process.stdout.write(text));
const message = await stream.finalMessage();

console.log(`\n[${message.stop_reason}: ${message.usage.input_tokens} tokens in, ${message.usage.output_tokens} out]`);
