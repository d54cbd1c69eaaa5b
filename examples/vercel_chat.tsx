// A chat of the Vercel AI SDK's in React: npm install ai @ai-sdk/react react react-dom, and bundle it as usual, with Vite or
// esbuild vercel_chat.tsx --bundle --format=esm --jsx=automatic --outfile=app.js
// The page says where the service is: ?url=http://127.0.0.1:8000, which must allow its origin where it is another one.

import { useChat } from "@ai-sdk/react";
import { DefaultChatTransport } from "ai";
import { useState } from "react";
import { createRoot } from "react-dom/client";

const query = new URLSearchParams(location.search);
const api = `${query.get("url") ?? "http://127.0.0.1:8000"}/ui/chat`;
const transport = new DefaultChatTransport({ api, body: { model: query.get("model") ?? "local" } });

function Chat() {
  const { messages, sendMessage, status, stop, error } = useChat({ transport });
  const [text, setText] = useState("");
  const send = () => { sendMessage({ text }); setText(""); };
  return (
    <form onSubmit={(event) => { event.preventDefault(); send(); }}>
      {messages.map(({ id, role, parts }) => (
        <p key={id} className={role}>{parts.map((part) => (part.type === "text" ? part.text : null))}</p>
      ))}
      {error && <p role="alert">{error.message}</p>}
      <input value={text} onChange={(event) => setText(event.target.value)} />
      {status === "ready" || status === "error" // two buttons by their keys: one that changes its type in a click would send
        ? <button key="send">Send</button>
        : <button key="stop" type="button" onClick={stop}>Stop</button>}
    </form>
  );
}

createRoot(document.getElementById("root")!).render(<Chat />);
