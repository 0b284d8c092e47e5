"""Lines over a logarithmic axis as an SVG picture, which needs nothing but a viewer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 60, 110, 50, 50  # margins
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee8866", "#44bb99")
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #333 } .title { font-size: 15px }
.grid { stroke: #ddd } .line { fill: none; stroke-width: 2 } rect { fill: #fff }
@media (prefers-color-scheme: dark) {
  text { fill: #ddd } .grid { stroke: #444 } rect { fill: #161616 }
}
"""


@dataclass(frozen=True, slots=True)
class Chart:
    """Shares (0 to 1) over budgets, a line for each name; `limit` is the name of a dashed one."""

    title: str
    x_label: str
    budgets: Sequence[int]
    lines: Mapping[str, Sequence[float]]
    limit: str

    def svg(self) -> str:
        """The picture as a document of its own."""
        top = _ceiling(max(max(values) for values in self.lines.values()))
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{escape(self.title)}">',
            f"<style>{_STYLE}</style>",
            f'<rect width="{WIDTH}" height="{HEIGHT}"/>',
            _text(LEFT, 26, self.title, "title"),
            _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, self.x_label, anchor="middle"),
            *self._grid(top),
            *self._lines(top),
            "</svg>\n",
        ]
        return "\n".join(parts)

    def _x(self, budget: float) -> float:
        low, high = math.log(min(self.budgets)), math.log(max(self.budgets))
        share = (math.log(budget) - low) / (high - low) if high > low else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    @staticmethod
    def _y(value: float, top: float) -> float:
        return HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM)

    def _grid(self, top: float) -> list[str]:
        parts = []
        for tick in range(6):
            value = top * tick / 5
            y = self._y(value, top)
            parts.append(_line("grid", [(LEFT, y), (WIDTH - RIGHT, y)]))
            parts.append(_text(LEFT - 8, y + 4, f"{100 * value:.0f} %", anchor="end"))
        for budget in self.budgets:
            x = self._x(budget)
            parts.append(_line("grid", [(x, TOP), (x, HEIGHT - BOTTOM)]))
            parts.append(_text(x, HEIGHT - BOTTOM + 18, f"{budget:,}", anchor="middle"))
        return parts

    def _lines(self, top: float) -> list[str]:
        parts = []
        labels = _apart({name: self._y(values[-1], top) for name, values in self.lines.items()})
        for number, (name, values) in enumerate(self.lines.items()):
            colour = "#888888" if name == self.limit else _COLOURS[number % len(_COLOURS)]
            style = f'stroke="{colour}"' + (' stroke-dasharray="5 4"' if name == self.limit else "")
            points = [
                (self._x(budget), self._y(value, top))
                for budget, value in zip(self.budgets, values, strict=True)
            ]
            parts.append(_line("line", points, style))
            x, y = WIDTH - RIGHT + 8, labels[name] + 4
            parts.append(_text(x, y, name, style=f"fill: {colour}; font-weight: 600"))
        return parts


def _ceiling(value: float) -> float:
    """The next multiple of a twentieth, at least one."""
    return max(math.ceil(value * 20), 1) / 20


def _apart(heights: Mapping[str, float], gap: float = 15) -> dict[str, float]:
    """The heights of labels, moved down where they would overlap."""
    placed: dict[str, float] = {}
    lowest = -math.inf
    for name in sorted(heights, key=lambda each: heights[each]):
        lowest = placed[name] = max(heights[name], lowest + gap)
    excess = max(0.0, lowest - (HEIGHT - 10))
    return {name: height - excess for name, height in placed.items()}


def _line(kind: str, points: Sequence[tuple[float, float]], style: str = "") -> str:
    where = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="{kind}" points="{where}" {style}/>'


def _text(
    x: float, y: float, text: str, kind: str = "", *, anchor: str = "start", style: str = ""
) -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {where} style="{style}">{escape(text)}</text>'
