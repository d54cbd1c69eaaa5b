"""A response that outlives its connection: its events are numbered, and who comes back names the last one it has seen.

pip install openai. `SIDESTREAM_URL` says where the service is.
"""

import os

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("SIDESTREAM_URL", "http://127.0.0.1:8000") + "/v1", api_key="none")
linger = {"sidestream": {"linger": 10}}  # how long it goes on without anybody, seconds

response_id = ""
with client.responses.create(
    model="local", input="What is the capital of France?", temperature=0, stream=True, extra_body=linger
) as stream:
    for event in stream:
        if event.type == "response.created":
            response_id = event.response.id
        elif event.type == "response.output_text.delta":
            print(event.delta, end=" | ")  # one word, and the connection is gone
            break

for later in client.responses.retrieve(response_id, stream=True, starting_after=event.sequence_number):
    if later.type == "response.output_text.delta":
        print(later.delta, end="", flush=True)
print(f"\n[{client.responses.retrieve(response_id).status}]")
