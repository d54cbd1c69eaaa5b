// OpenAI's own SDK, whatever the model, by both APIs. `SIDESTREAM_URL` says where the service is. npm install openai

import OpenAI from "openai";

const client = new OpenAI({
  baseURL: `${process.env.SIDESTREAM_URL ?? "http://127.0.0.1:8000"}/v1`,
  apiKey: "none", // one of the service's, where it wants one
});
const question = "What is the capital of France?";

const messages = [{ role: "user", content: question }];
const chat = { model: "local", messages, temperature: 0, max_tokens: 100, stream: true };
for await (const chunk of await client.chat.completions.create(chat)) {
  process.stdout.write(chunk.choices[0].delta.content ?? "");
}
console.log();

const stream = client.responses.stream({ model: "local", input: question, temperature: 0, max_output_tokens: 100 });
stream.on("response.output_text.delta", ({ delta }) => process.stdout.write(delta));
const { status, usage } = await stream.finalResponse();
console.log(`\n[${status}: ${usage.input_tokens} tokens in, ${usage.output_tokens} out]`);
