"""How long a run may take, and how much it may say. Where the numbers come from is settings' and wires' business."""

from msgspec import Struct


class Limits(Struct, frozen=True):
    """When a run is over. Seconds, and bytes as `streaming.log.size_of` counts them."""

    run_timeout: float
    first_token_timeout: float
    idle_timeout: float
    max_run_bytes: int
    linger: float = 0.0
    queue_timeout: float = 60.0
    max_viewers: int = 10_000
