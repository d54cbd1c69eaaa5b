"""LangGraph's own SDK with the sample agent, which asks a person before it sends a postcard.

pip install langgraph-sdk. `SIDESTREAM_URL` says where the service is; `make run` serves that agent.
"""

import os
from typing import Any

from langgraph_sdk import get_sync_client

client = get_sync_client(url=os.environ.get("SIDESTREAM_URL", "http://127.0.0.1:8000") + "/lg")
thread = client.threads.create()["thread_id"]


def run(**asked: Any) -> None:
    for part in client.runs.stream(thread, "agent", stream_mode=["messages-tuple", "updates"], **asked):
        if part.event == "messages" and part.data[0]["type"] == "AIMessageChunk":
            print(part.data[0]["content"], end="", flush=True)
        elif part.event == "updates" and "__interrupt__" in part.data:
            print(part.data["__interrupt__"][0]["value"]["question"], "yes")
            run(command={"resume": "yes"})


run(input={"messages": [{"role": "user", "content": "Send a postcard to Anna: see you on Sunday."}]})
print()
client.close()
