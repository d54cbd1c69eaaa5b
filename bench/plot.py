"""The picture of the results: `python bench/plot.py` draws results.svg from results.json; so does a full run.

Small multiples of bars, each with a linear scale of its own from 0. No library: the SVG is put together as text.
"""

import json
from collections.abc import Iterator
from xml.sax.saxutils import escape

from relays import BENCH, WIRES
from report import SHOWN, Results, median, number
from table import HEADLINES, is_saturated

PICTURE = BENCH / "results.svg"
PANELS = HEADLINES[:6]
TIMES = "\N{MULTIPLICATION SIGN}"
RELAYS = (("service", "Sidestream"), ("naive", "naive way"), ("raw", "nginx"))
WIDTH, MARGIN, GAP, COLUMNS = 960, 32, 36, 3
HEAD, PANEL_HEIGHT, FOOT = 104, 158, 52  # px: above the panels, each row of them, below
ROW_HEIGHT, BAR_HEIGHT, LABEL_WIDTH, VALUE_WIDTH = 29, 18, 86, 66
PANEL_WIDTH = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) / COLUMNS
# Its own ground under it: a page's theme and the reader's `prefers-color-scheme` need not be the same.
STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif; fill: #1f2328 }
.ground { fill: #fff; stroke: #d1d9e0 } .axis { stroke: #d1d9e0 }
.title { font-size: 20px; font-weight: 600 } .name { font-weight: 600 } .value { font-variant-numeric: tabular-nums }
.quiet { fill: #59636e } .small { font-size: 12px }
.service { fill: #0a7d5c } .naive { fill: #a9b3bd } .raw { fill: #d3d9df } text.service { font-weight: 600 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc } .ground { fill: #0d1117; stroke: #3d444d } .axis { stroke: #3d444d } .quiet { fill: #9198a1 }
  .service { fill: #2fbf91 } .naive { fill: #6a727d } .raw { fill: #424a54 }
}
"""


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def mean(found: Results, relay: str, key: str) -> float | None:
    """Of the medians of both wires."""
    medians = [value for wire in WIRES if (value := median(found, wire, relay, key)) is not None]
    return sum(medians) / len(medians) if medians else None


def compared(ours: float | None, naive: float | None) -> str:
    if not ours or not naive:
        return ""
    return f"{naive / ours:.1f}{TIMES} less" if naive >= ours else f"{ours / naive:.1f}{TIMES} more"


def bars(found: Results, key: str, unit: str, x: float, y: float) -> Iterator[str]:
    """One bar a relay, its number at its end."""
    values = [(relay, label, value) for relay, label in RELAYS if (value := mean(found, relay, key)) is not None]
    longest = max((value for _, _, value in values), default=1)
    left = x + LABEL_WIDTH
    for row, (relay, label, value) in enumerate(values):
        middle = y + row * ROW_HEIGHT + ROW_HEIGHT / 2
        length = max(2, value / longest * (PANEL_WIDTH - LABEL_WIDTH - VALUE_WIDTH))
        kind = "name" if relay == "service" else ""
        at = f'x="{left:g}" y="{middle - BAR_HEIGHT / 2:g}" width="{length:.1f}" height="{BAR_HEIGHT}"'
        yield text(x, middle + 4.5, label, kind)
        yield f'<rect class="{relay}" {at} rx="2"/>'
        told = f"{number(value)} {unit}" + ("*" if any(is_saturated(found, wire, relay, key) for wire in WIRES) else "")
        yield text(left + length + 7, middle + 4.5, told, f"value {kind}")
    yield f'<path class="axis" d="M{left:g} {y:g}v{len(values) * ROW_HEIGHT}"/>'


def panel(found: Results, index: int) -> Iterator[str]:
    key, title, unit = PANELS[index]
    x = MARGIN + index % COLUMNS * (PANEL_WIDTH + GAP)
    y = HEAD + index // COLUMNS * PANEL_HEIGHT
    what, _, load = title.partition(", ")
    yield text(x, y, what, "name")
    yield text(x, y + 18, load, "quiet small")
    shorter = compared(mean(found, "service", key), mean(found, "naive", key))
    yield text(x + PANEL_WIDTH, y, shorter, "service", "end")
    yield from bars(found, key, unit, x, y + 28)


def footnotes(found: Results) -> Iterator[str]:
    about, libraries = found["machine"], found["machine"]["libraries"]
    if any(is_saturated(found, wire, relay, key) for key, _, _ in PANELS for wire in WIRES for relay, _ in RELAYS):
        yield "* saturated: a core is not enough for the load; tokens wait and come in lumps, which are cheaper each"
    named = ("uvicorn", "starlette", "sse-starlette", "openai", "anthropic")
    versions = [f"{name} {libraries[name]}" for name in named if name in libraries]
    machine = f"{about['cores']} cores, {about['cpu']}, Python {about['python']}"
    yield ", ".join([machine, *versions, f"nginx {about['nginx']}"])


def svg(found: Results) -> str:
    height = HEAD + -(-len(PANELS) // COLUMNS) * PANEL_HEIGHT + FOOT - 16
    title = "What streaming costs: Sidestream beside the naive way"
    how = "Shorter is better. nginx only passes bytes on: the floor."
    how += f" Medians of {found['scale']['repeats']}, mean of the OpenAI and the Anthropic wire."
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="ground" x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
        text(MARGIN, 40, title, "title"),
        text(MARGIN, 63, how, "quiet"),
        *(part for index in range(len(PANELS)) for part in panel(found, index)),
        *(text(MARGIN, height - 40 + 20 * line, note, "quiet small") for line, note in enumerate(footnotes(found))),
        "</svg>\n",
    ]
    return "\n".join(parts)


def draw() -> None:
    PICTURE.write_text(svg(json.loads(SHOWN.read_text())))


if __name__ == "__main__":
    draw()
