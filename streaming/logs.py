"""What may be logged: never a prompt. Servers and SDKs log requests and bodies; here that is stopped."""

import logging


class NoPrompts(logging.Filter):
    """Keep prompts out of what uvicorn logs: query strings, and the WebSocket library's frames (at DEBUG)."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(arg.partition("?")[0] if isinstance(arg, str) else arg for arg in record.args)
        return record.levelno > logging.DEBUG or "websockets" not in record.pathname


def keep_prompts_out() -> None:
    """Make the loggers of others say less; once is enough, more does no harm."""
    for name in ("uvicorn.access", "uvicorn.error"):
        if not any(isinstance(known, NoPrompts) for known in logging.getLogger(name).filters):
            logging.getLogger(name).addFilter(NoPrompts())
    # They log bodies at DEBUG, and what a node has raised at INFO.
    for name in ("sse_starlette", "openai", "anthropic", "httpx2", "httpcore2", "langchain_core", "langgraph"):
        logging.getLogger(name).setLevel(logging.WARNING)
