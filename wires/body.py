"""A request's body, as JSON has it: not too large, and not for ever."""

import asyncio

from starlette.requests import Request

from streaming.errors import RequestError


async def read_json(request: Request, most: int, seconds: float, *, as_text: bool = False) -> bytes:
    """Read a body of `most` bytes at most, in `seconds`.

    Raises RequestError where it says to be something else (plain text may be JSON `as_text`), grows too large or does
    not come.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = content_type == "application/json" or content_type.endswith("+json")
    if not is_json and not (as_text and content_type == "text/plain"):
        raise RequestError("unsupported_media_type", "Send the body as Content-Type: application/json.")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared.lstrip("0") or 0) > most:
        raise _too_large(most)
    try:
        async with asyncio.timeout(seconds):
            return await _read(request, most)
    except TimeoutError:
        text = f"The body did not come within {seconds:g} s."
        headers = {"Connection": "close"}  # whose rest would be taken for the next request (RFC 9112, 9.3)
        raise RequestError("request_timeout", text, headers=headers, limit="body_timeout") from None


async def _read(request: Request, most: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise _too_large(most)
    return bytes(body)


def _too_large(most: int) -> RequestError:
    return RequestError("too_large", f"The body is larger than {most} bytes.", limit="max_body_bytes")
