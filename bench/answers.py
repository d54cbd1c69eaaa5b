"""What the soak's models say, and each API's words for it, as little as makes an answer of it.

The text is a pure function of the model and the prompt (`words`), so whatever a client has can be checked.
"""

import json
from typing import Any

KEY = "open-sesame/1001"  # of no shape that a filter for keys would know
MARK = "quicksilver-lantern"  # in every prompt
VOICES = "abcd"
MODELS = [f"{voice}{number}" for voice in VOICES for number in range(8)]


def prompt_of(label: str, count: int, pad: int = 0) -> str:
    """Return a prompt to which every model has `count` words to say (half of them for a `d`), one `pad` longer."""
    return f"{MARK} {label} {count} {pad}"


def words(model: str, prompt: str) -> list[str]:
    """Return the deltas of a model's answer: `c` leaves what `a` says half-way, `d` ends there.

    Those of one voice say the same, but some word by word, others two at a time or in halves of words.
    """
    _, label, count, pad = prompt.split()
    most, voice = int(count), model[0]
    half = most // 2 + 1
    said = [f"{label}{'a' if voice in 'cd' and place < half else voice}{place} " for place in range(most)]
    said[::7] = [f"é☃🙂{word}" for word in said[::7]]
    said[most // 2] += "x" * int(pad)
    if voice == "d":
        del said[half:]
    manner = int(model[1:]) % 3
    if manner == 1:
        return ["".join(said[place : place + 2]) for place in range(0, len(said), 2)]
    return [part for word in said for part in (word[:2], word[2:])] if manner == 2 else said


def sse(data: Any, name: str = "") -> bytes:
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return f"event: {name}\ndata: {text}\n\n".encode() if name else f"data: {text}\n\n".encode()


class Dialect:
    provider: str
    whole_without_terminator = False

    def prompt(self, body: Any) -> str:
        content = body["messages"][-1]["content"]
        return str(content if isinstance(content, str) else content[0]["text"])

    def opening(self, model: str, read: int) -> list[bytes]:
        raise NotImplementedError

    def token(self, text: Any) -> bytes:
        raise NotImplementedError

    def ending(self, model: str, read: int, written: int) -> list[bytes]:
        """Return what follows the content; the last is the terminator."""
        raise NotImplementedError

    def error(self, words: str) -> bytes:
        raise NotImplementedError


class Chat(Dialect):
    provider = "openai"
    whole_without_terminator = True

    def _chunk(self, delta: Any, reason: str | None = None, **more: Any) -> bytes:
        return sse({"choices": [{"index": 0, "delta": delta, "finish_reason": reason}], **more})

    def opening(self, model: str, read: int) -> list[bytes]:
        return [self._chunk({"role": "assistant", "content": ""}, model=model)]

    def token(self, text: Any) -> bytes:
        return self._chunk({"content": text})

    def ending(self, model: str, read: int, written: int) -> list[bytes]:
        usage = {"prompt_tokens": read, "completion_tokens": written}
        return [self._chunk({}, "stop"), sse({"choices": [], "usage": usage, "model": model}), sse("[DONE]")]

    def error(self, words: str) -> bytes:
        return sse({"error": {"message": words, "type": "server_error", "code": None}})


class Responses(Dialect):
    provider = "openai_responses"

    def prompt(self, body: Any) -> str:
        return str(body["input"][-1]["content"][0]["text"])

    def _event(self, kind: str, **fields: Any) -> bytes:
        return sse({"type": kind, **fields}, kind)

    def opening(self, model: str, read: int) -> list[bytes]:
        return [self._event("response.created", response={"model": model})]

    def token(self, text: Any) -> bytes:
        return self._event("response.output_text.delta", output_index=0, delta=text)

    def ending(self, model: str, read: int, written: int) -> list[bytes]:
        usage = {"input_tokens": read, "output_tokens": written}
        return [self._event("response.completed", response={"model": model, "usage": usage})]

    def error(self, words: str) -> bytes:
        return self._event("error", code="server_error", message=words)


class Messages(Dialect):
    provider = "anthropic"

    def _event(self, kind: str, **fields: Any) -> bytes:
        return sse({"type": kind, **fields}, kind)

    def opening(self, model: str, read: int) -> list[bytes]:
        start = {"model": model, "usage": {"input_tokens": read, "output_tokens": 1}}
        block = {"type": "text", "text": ""}
        return [
            self._event("message_start", message=start),
            self._event("content_block_start", index=0, content_block=block),
        ]

    def token(self, text: Any) -> bytes:
        return self._event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})

    def ending(self, model: str, read: int, written: int) -> list[bytes]:
        usage = {"output_tokens": written}
        return [
            self._event("content_block_stop", index=0),
            self._event("message_delta", delta={"stop_reason": "end_turn"}, usage=usage),
            self._event("message_stop"),
        ]

    def error(self, words: str) -> bytes:
        return self._event("error", error={"type": "overloaded_error", "message": words})


DIALECTS: dict[str, Dialect] = {
    "/v1/chat/completions": Chat(),
    "/v1/responses": Responses(),
    "/v1/messages": Messages(),
}
PROVIDERS = [dialect.provider for dialect in DIALECTS.values()]
