"""Anthropic's own SDK, whatever the model: pip install anthropic. `SIDESTREAM_URL` says where the service is."""

import os

from anthropic import Anthropic

client = Anthropic(
    base_url=os.environ.get("SIDESTREAM_URL", "http://127.0.0.1:8000"),
    api_key="none",  # one of the service's, where it wants one
)

with client.messages.stream(
    model="local",
    max_tokens=100,
    messages=[{"role": "user", "content": "What is the capital of France?"}],
) as stream:
    for text in stream.text_stream:
        print(text, end="", flush=True)
    message = stream.get_final_message()

print(f"\n[{message.stop_reason}: {message.usage.input_tokens} tokens in, {message.usage.output_tokens} out]")
