"""What is logged: one line a run, and what goes wrong. Never a prompt, an answer or a key.

Servers and SDKs log requests and bodies; here that is stopped. Where nobody has configured logging, what the service
says goes to stderr, as text or as one JSON object a line.
"""

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from .events import Cancelled, Done, Error
from .run import Run

Format = Literal["text", "json"]
PLAIN = re.compile(r"[\w.:/@+-]+")  # what needs no quotes in a line of text
logger = logging.getLogger("sidestream")


def log_run(run: Run) -> None:
    """Log the one line of a run that has ended."""
    if not logger.isEnabledFor(logging.INFO):
        return
    told = told_of(run)
    words = " ".join(f"{name}={_quoted(value)}" for name, value in told.items() if value is not None)
    logger.info("run ended: %s", words, extra={"told": {"event": "run_ended", **told}})


def told_of(run: Run) -> dict[str, Any]:
    """Return what is said of a run that has ended; times are milliseconds."""
    usage = run.terminal.usage if isinstance(run.terminal, Done | Error | Cancelled) else None
    return {
        "run": run.id,
        "owner": run.owner or None,
        "provider": run.answer.provider,
        "model": run.answer.model[:100],
        "outcome": run.terminal.name if run.terminal else None,
        "reason": reason_of(run),
        "tokens": run.log.deltas,
        "ttft_ms": run.ttft_ms,
        "latency_ms": run.latency_ms,
        "queued_ms": run.queued_ms,
        "input_tokens": usage.input_tokens if usage else None,
        "output_tokens": usage.output_tokens if usage else None,
        "retries": run.answer.retries,
        "failovers": run.answer.failovers,
        "resets": run.answer.resets,
    }


def reason_of(run: Run) -> str:
    """Return why a run ended: a finish reason, an error's code, or who stopped it."""
    match run.terminal:
        case Done(finish_reason=reason) | Error(code=reason) | Cancelled(reason=reason):
            return reason
    return ""


def _quoted(value: object) -> str:
    text = str(value)
    return text if PLAIN.fullmatch(text) else json.dumps(text)


class JSONLines(logging.Formatter):
    """A record as a JSON object: `time`, `level`, `logger`, `message`, and what else is told of it."""

    def format(self, record: logging.LogRecord) -> str:
        told = getattr(record, "told", None)
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": "run ended" if told else record.getMessage(),
            **(told or {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        try:
            return msgspec.json.encode(line).decode()
        except UnicodeEncodeError:  # half of a surrogate pair
            return json.dumps(line)


TEXT = logging.Formatter("%(levelname)s:     %(message)s")  # as uvicorn has it


def set_up(form: Format) -> None:
    """Say what there is to say, where nobody has configured it otherwise; uvicorn's own lines in the same form."""
    formatter = JSONLines() if form == "json" else TEXT
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(formatter)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    if form == "json":
        for name in ("uvicorn", "uvicorn.access"):
            for known in logging.getLogger(name).handlers:
                known.setFormatter(formatter)
    keep_prompts_out()


# Said by uvicorn of each WebSocket that is refused: it does not know that one can be answered.
NO_ERROR = "ASGI callable returned without completing handshake."


class NoPrompts(logging.Filter):
    """Keep prompts out of what uvicorn logs: query strings, and the WebSocket library's frames (at DEBUG)."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.msg == NO_ERROR:
            return False
        if record.exc_info and isinstance(record.exc_info[1], UnicodeDecodeError):
            record.exc_info = None  # of a client's frame: no error of ours
        if isinstance(record.args, tuple):
            record.args = tuple(arg.partition("?")[0] if isinstance(arg, str) else arg for arg in record.args)
        return record.levelno > logging.DEBUG or "websockets" not in record.pathname


def keep_prompts_out() -> None:
    """Make the loggers of others say less; once is enough, more does no harm."""
    for name in ("uvicorn.access", "uvicorn.error"):
        if not any(isinstance(known, NoPrompts) for known in logging.getLogger(name).filters):
            logging.getLogger(name).addFilter(NoPrompts())
    # They log bodies and scopes at DEBUG, and what a node has raised at INFO.
    talkative = "openai", "anthropic", "httpx2", "httpcore2", "langchain_core", "langgraph"
    for name in ("uvicorn.asgi", "sse_starlette", *talkative):
        logging.getLogger(name).setLevel(logging.WARNING)
