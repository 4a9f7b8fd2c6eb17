"""A report as one SVG: latency by percentile, throughput by second, and the stages of each run. Drawn by hand, no library."""

import math
from collections.abc import Sequence
from html import escape

from visionmesh.bench.measured import CURVE, Result
from visionmesh.bench.results import Report

WIDTH, PANEL_HEIGHT, LEFT, RIGHT, TOP, GAP = 900, 260, 70, 230, 50, 70
COLOURS = ("#1b6ca8", "#d1495b", "#2e933c", "#edae49", "#6a4c93", "#3d9a9a", "#8d6a4f", "#555555")

Points = list[tuple[float, float]]


def svg(report: Report) -> str:
    """The picture."""
    results = [result for result in report.results if result.good]
    panels = [
        ("latency, ms, by percentile", _curve, ("p0", "p50", "p90", "p99", "p99.9")),
        ("good answers a second, by second", _throughput, ()),
    ]
    height = TOP + len(panels) * (PANEL_HEIGHT + GAP) + 28 * len(results) + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12" fill="#222">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{LEFT}" y="24" font-size="16">visionmesh bench, {escape(report.mode)}, {escape(report.made_at)}</text>',
    ]
    for number, (title, of, ticks) in enumerate(panels):
        parts += _panel(title, [of(result) for result in results], results, TOP + number * (PANEL_HEIGHT + GAP), ticks)
    parts += _stages(results, TOP + len(panels) * (PANEL_HEIGHT + GAP))
    return "\n".join([*parts, "</svg>", ""])


def _curve(result: Result) -> Points:
    """Latency over percentile, the high ones spread out as by an HDR histogram: log10 of 1 / (1 - p)."""
    return [(_spread(at), value) for at, value in zip(CURVE, result.curve_ms, strict=True)]


def _spread(percentile: float) -> float:
    return min(-math.log10(max(1 - percentile / 100, 1e-9)), 3.5)


def _throughput(result: Result) -> Points:
    # The last second is not a whole one.
    whole = result.seconds[:-1] or result.seconds
    return [(number + 0.5, float(second.good)) for number, second in enumerate(whole)]


def _panel(title: str, lines: Sequence[Points], results: Sequence[Result], top: int, names: Sequence[str]) -> list[str]:
    right = WIDTH - RIGHT
    most_x = max((x for points in lines for x, _ in points), default=1.0) or 1.0
    most_y = _round_up(max((y for points in lines for _, y in points), default=1.0))

    def at(x: float, y: float) -> tuple[float, float]:
        return LEFT + x / most_x * (right - LEFT), top + PANEL_HEIGHT * (1 - y / most_y)

    parts = [f'<text x="{LEFT}" y="{top - 8}" font-weight="bold">{title}</text>']
    for share in (0, 0.25, 0.5, 0.75, 1):
        _, y = at(0, most_y * share)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{right}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{most_y * share:g}</text>')
    ticks = [(_spread(float(name[1:])), name) for name in names] or _seconds(most_x)
    for x, name in ticks:
        if x <= most_x:
            parts.append(f'<text x="{at(x, 0)[0]:.1f}" y="{top + PANEL_HEIGHT + 18}" text-anchor="middle">{name}</text>')
    for number, (points, result) in enumerate(zip(lines, results, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in (at(*point) for point in points))
        dash = ' stroke-dasharray="5 3"' if number >= len(COLOURS) else ""
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.8"{dash}/>')
        parts.append(f'<text x="{right + 12}" y="{top + 12 + number * 16}" fill="{colour}">{escape(_name(result))}</text>')
    return parts


def _seconds(most: float) -> list[tuple[float, str]]:
    step = _round_up(most / 6)
    return [(number * step, f"{number * step:g} s") for number in range(7)]


def _stages(results: Sequence[Result], top: int) -> list[str]:
    """A bar for each run: the median of each stage, one after the other."""
    parts = [f'<text x="{LEFT}" y="{top - 8}" font-weight="bold">stages, ms (p50)</text>']
    most = max((sum(_stage_values(result).values()) for result in results), default=0) or 1.0
    names = list(dict.fromkeys(stage for result in results for stage in _stage_values(result)))
    for row, result in enumerate(results):
        x, y = float(LEFT), top + 28 * row
        for stage, value in _stage_values(result).items():
            width = value / most * (WIDTH - RIGHT - LEFT)
            colour = COLOURS[names.index(stage) % len(COLOURS)]
            hint = f"<title>{escape(stage)} {value:g} ms</title>"
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="18" fill="{colour}">{hint}</rect>')
            x += width
        parts.append(f'<text x="{WIDTH - RIGHT + 12}" y="{y + 13}">{escape(_name(result))}</text>')
    x = float(LEFT)
    for number, stage in enumerate(names):
        y = top + 28 * len(results) + 16
        parts.append(f'<text x="{x:.0f}" y="{y}" fill="{COLOURS[number % len(COLOURS)]}">{escape(stage)}</text>')
        x += 8 * len(stage) + 12
    return parts


def _stage_values(result: Result) -> dict[str, float]:
    return {stage: latency.p50 for stage, latency in result.stages_ms.items() if stage != "total"}


def _name(result: Result) -> str:
    phase = result.phase
    load = f"{phase.rate:.0f}/s" if phase.rate else f"{phase.clients} clients"
    return f"{phase.name} {phase.model} {load}"


def _round_up(value: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if value <= step * power * (1 + 1e-9))
