"""OpenAI's own SDK, whatever the model, by both its APIs: pip install openai.

`SIDESTREAM_URL` says where the service is.
"""

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("SIDESTREAM_URL", "http://127.0.0.1:8000") + "/v1",
    api_key="none",  # one of the service's, where it wants one
)

question = "What is the capital of France?"
for chunk in client.chat.completions.create(
    model="local", messages=[{"role": "user", "content": question}], temperature=0, max_tokens=100, stream=True
):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()

with client.responses.stream(model="local", input=question, temperature=0, max_output_tokens=100) as stream:
    for event in stream:
        if event.type == "response.output_text.delta":
            print(event.delta, end="", flush=True)
    response = stream.get_final_response()

if response.usage:
    print(f"\n[{response.status}: {response.usage.input_tokens} tokens in, {response.usage.output_tokens} out]")
