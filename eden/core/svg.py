"""Plots in SVG, in the colours of the page they stand in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

MOST_DOTS = 24
"""Points of a line, above which it has no dots."""


def lines(series: Mapping[str, Sequence[tuple[float, ...]]], height: int) -> str:
    """Each series of points (x, y) as a line, or of points (x, y, radius in pixels) as dots; none is empty."""
    width, left, right, top, bottom = 720, 64, 16, 28, 28
    xs = [x for points in series.values() for x, *_ in points]
    ys = [y for points in series.values() for _, y, *_ in points]
    x_ticks, y_ticks = _ticks(min(0.0, *xs), max(xs)), _ticks(min(0.0, *ys), max(ys))
    x_low, x_high, y_low, y_high = x_ticks[0], x_ticks[-1], y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = left + (x - x_low) / (x_high - x_low) * (width - left - right)
        return across, height - bottom - (y - y_low) / (y_high - y_low) * (height - top - bottom)

    out = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{", ".join(series)}">']
    for tick in y_ticks:
        _, y = place(x_low, tick)
        out.append(f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>')
        out.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    for tick in x_ticks:
        x, _ = place(tick, y_low)
        anchor = "end" if tick == x_ticks[-1] else "middle"
        out.append(f'<text x="{x:.1f}" y="{height - 8}" text-anchor="{anchor}">{tick:,.4g}</text>')
    for index, (name, points) in enumerate(series.items(), 1):
        colour, spots = f"var(--series-{index})", [place(*point[:2]) for point in points]
        if len(points[0]) == 2:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
            out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if len(spots) <= MOST_DOTS:
            radii = [point[2] if len(point) > 2 else 3 for point in points]
            out += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.3g}" fill="{colour}" fill-opacity=".8"/>'
                for (x, y), radius in zip(spots, radii, strict=True)
            ]
        x = left + 130 * (index - 1)
        out.append(f'<rect x="{x}" y="6" width="14" height="4" rx="2" fill="{colour}"/>')
        out.append(f'<text x="{x + 20}" y="12">{name}</text>')
    return "".join(out) + "</svg>"


def histogram(bars: Sequence[Mapping[str, int]], label: str, height: int = 220) -> str:
    """A histogram in SVG: `from`, `to` and `samples` of each bar; the bars stand side by side, whatever their width."""
    width, left, right, top, bottom = 720, 64, 16, 12, 28
    ticks = _ticks(0.0, float(max(bar["samples"] for bar in bars)))
    across, up = (width - left - right) / len(bars), (height - top - bottom) / ticks[-1]
    out = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">']
    for tick in ticks:
        y = height - bottom - tick * up
        out.append(f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>')
        out.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:,.6g}</text>')
    labelled = math.ceil(len(bars) / 7)  # so that they have room on a phone, where they are drawn larger
    for index, bar in enumerate(bars):
        x, tall = left + index * across, bar["samples"] * up
        span = f"{bar['from']:,}" if bar["from"] == bar["to"] else f"{bar['from']:,} to {bar['to']:,}"
        out.append(
            f'<rect x="{x + 1:.1f}" y="{height - bottom - tall:.1f}" width="{max(across - 2, 1):.1f}" '
            f'height="{tall:.1f}" fill="var(--series-1)"><title>{span}: {bar["samples"]:,}</title></rect>'
        )
        if index % labelled == 0:
            out.append(f'<text x="{x + across / 2:.1f}" y="{height - 8}" text-anchor="middle">{bar["from"]:,}</text>')
    return "".join(out) + "</svg>"


def _ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers that enclose low to high."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / wanted
    unit = 10 ** math.floor(math.log10(rough))
    step = unit * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * unit >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]
