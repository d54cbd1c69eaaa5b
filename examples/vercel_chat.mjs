// The Vercel AI SDK's chat without a screen. `SIDESTREAM_URL` says where the service is. npm install ai

import { AbstractChat, DefaultChatTransport } from "ai";

const url = process.env.SIDESTREAM_URL ?? "http://127.0.0.1:8000";

class Chat extends AbstractChat { // as the SDK's packages for React, Vue and others make one
  constructor(init) {
    const state = { status: "ready", messages: [], snapshot: structuredClone };
    state.pushMessage = (message) => { state.messages.push(message); };
    state.replaceMessage = (index, message) => { state.messages[index] = structuredClone(message); };
    super({ ...init, state });
  }
}

const transport = new DefaultChatTransport({ api: `${url}/ui/chat`, body: { model: "local" } });
const chat = new Chat({ transport, onError: (error) => console.error(error.message) });
for (const text of ["What is the capital of France?", "And of Italy?"]) {
  await chat.sendMessage({ text });
  for (const part of chat.lastMessage.parts) if (part.type === "text") console.log(part.text);
  console.log(chat.lastMessage.metadata);
}
