"""The geometry of a line chart; the template draws it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ruyi_rl.report.html.scales import Scale, plain, span, ticks

WIDTH, HEIGHT = 380.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 78.0, 12.0, 34.0
"""Margins: the values' labels, the lines' names, nothing, the steps' labels."""
LINE_HEIGHT = 13.0
"""Least distance of two names at the lines' ends."""
NAME = 11
"""Characters of a name that the right margin has room for."""
NEAR = 60.0
"""A line that ends this close to the margin has its name there."""
POINTED = 30
"""A line of at most this many points has them drawn."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One exit's, or the only one."""

    name: str
    colour: int
    """Number of the exit in the family; the page's style has a colour and a dash for each."""
    strong: Points
    faint: Points = ()
    errors: Sequence[float | None] = ()
    """Of each strong point: half the length of its bar."""


@dataclass(frozen=True)
class DrawnLine:
    """A line in the chart's coordinates."""

    name: str
    colour: int
    strong: str
    """`x,y x,y …`"""
    faint: str
    dots: list[tuple[float, float]]
    bars: list[tuple[float, float, float]]
    """(x, y of one end, y of the other)"""
    end: tuple[float, float]
    label: str
    label_y: float
    outside: bool
    """Whether the label stands in the margin; else right behind the line's end."""


@dataclass(frozen=True)
class Tick:
    place: float
    text: str


@dataclass(frozen=True)
class Chart:
    """What the template draws."""

    title: str
    """Its accessible name, with what a reader who does not see it should know."""
    x_name: str
    across: list[Tick]
    up: list[Tick]
    lines: list[DrawnLine]
    x: Scale
    y: Scale
    width: float = WIDTH
    height: float = HEIGHT

    @property
    def right(self) -> float:
        return self.x.end

    @property
    def bottom(self) -> float:
        return self.y.start


def line_chart(
    title: str,
    lines: Sequence[Line],
    x_name: str,
    *,
    bounds: tuple[float | None, float | None] = (None, None),
    text: Callable[[float], str] = plain,
    x_text: Callable[[float], str] = plain,
    across: Sequence[float] | None = None,
    named: bool = True,
    size: tuple[float, float] = (WIDTH, HEIGHT),
) -> Chart:
    """A chart of lines over a shared axis.

    Args:
        bounds: see `scales.span`.
        text, x_text: a value as a tick's label.
        across: where ticks stand; None: at round whole numbers.
        named: names stand at the lines' ends; without, the right margin is small.
        size: width and height in the chart's own units, about pixels on a phone.
    """
    points = [point for line in lines for point in (*line.strong, *line.faint)]
    tops = [y + error for line in lines for (_, y), error in zip(line.strong, line.errors) if error is not None]
    lows = [y - error for line in lines for (_, y), error in zip(line.strong, line.errors) if error is not None]
    low, high = span([*(y for _, y in points), *tops, *lows], bounds)
    first, last = min((x for x, _ in points), default=0.0), max((x for x, _ in points), default=1.0)
    width, height = size
    x = Scale(first, last if last > first else first + 1, LEFT, width - (RIGHT if named else 14))
    y = Scale(low, high, height - BOTTOM, TOP)
    if across is None:
        across = [place for place in ticks(first, last, 4) if place == round(place)] if last > first else [first]
    up = ticks(low, high)
    return Chart(
        title=title,
        x_name=x_name,
        across=[Tick(round(x(place), 1), x_text(place)) for place in across],
        up=[Tick(round(y(place), 1), text(place)) for place in up],
        lines=_drawn(lines, x, y, named),
        x=x,
        y=y,
        width=width,
        height=height,
    )


def shortened(name: str, most: int = NAME) -> str:
    """A name that fits, with its end: names of exits often differ there."""
    return name if len(name) <= most else f"{name[: most - 5]}…{name[-4:]}"


def spread(wanted: Sequence[float], least: float, low: float, high: float) -> list[float]:
    """Places near the wanted ones, at least `least` apart and inside [low, high] where there is room for all."""
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    places = [0.0] * len(wanted)
    before = low - least
    for number in order:
        before = places[number] = max(wanted[number], before + least)
    after = high + least
    for number in reversed(order):
        after = places[number] = min(places[number], after - least)
    return places


def _drawn(lines: Sequence[Line], x: Scale, y: Scale, named: bool) -> list[DrawnLine]:
    shown = [line for line in lines if line.strong]
    ends = [(round(x(line.strong[-1][0]), 1), round(y(line.strong[-1][1]), 1)) for line in shown]
    # Names stand in the margin, but for lines that end long before it.
    outside = [number for number, (place, _) in enumerate(ends) if place > x.end - NEAR]
    heights = dict(zip(outside, spread([ends[number][1] for number in outside], LINE_HEIGHT, y.end, y.start)))
    return [
        DrawnLine(
            name=line.name,
            colour=line.colour,
            strong=_path(line.strong, x, y),
            faint=_path(line.faint, x, y),
            dots=_dots(line, x, y),
            bars=[
                (round(x(at), 1), round(y(value - error), 1), round(y(value + error), 1))
                for (at, value), error in zip(line.strong, line.errors)
                if error
            ],
            end=ends[number],
            label=shortened(line.name) if named else "",
            label_y=round(heights.get(number, ends[number][1]), 1),
            outside=number in heights,
        )
        for number, line in enumerate(shown)
    ]


def _dots(line: Line, x: Scale, y: Scale) -> list[tuple[float, float]]:
    few = line.strong if len(line.strong) <= POINTED else ()
    return [(round(x(at), 1), round(y(value), 1)) for at, value in few]


def _path(points: Points, x: Scale, y: Scale) -> str:
    return " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in points)
