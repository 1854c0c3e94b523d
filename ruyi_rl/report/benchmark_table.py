"""What a benchmark came to, as a table and in lines. Importing this module imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

SHOWN_DIFFERENCES = 6
"""Most lines of differences of a metric; all are in `results.json`."""


def print_benchmarks(console: Console, benchmarks: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints the tables of what `ruyi_rl.benchmarks.results.benchmark_result` gives, each with its differences."""
    for name, result in benchmarks.items():
        console.print(f"\n{heading(name, result)}", style="italic", markup=False, soft_wrap=True)
        console.print(benchmark_table(result))
        for line in [*difference_lines(result), *routing_lines(result)]:
            console.print(f"  {line}", markup=False, soft_wrap=True, style="dim")
    if benchmarks:
        console.print("[95 % bootstrap interval over problems], * without 0 in it", style="dim", markup=False)


def heading(name: str, result: Mapping[str, Any]) -> str:
    """`gsm8k · 1319 problems · 8 samples at temperature 1`."""
    samples = f"{result['samples']} sample" + ("" if result["samples"] == 1 else "s")
    if not result["samples"]:
        samples = "greedy answers alone"
    heat = "" if result.get("temperature") is None else f" at temperature {result['temperature']:g}"
    left = f", {result['left_out']} left out" if result.get("left_out") else ""
    return f"{name} · {result['problems']} problems{left} · {samples}{heat}"


def benchmark_table(result: Mapping[str, Any]) -> Table:
    """One row a metric, one column an exit."""
    table = Table()
    table.add_column("", style="bold")
    for exit in result["exits"]:
        table.add_column(escape(exit), justify="right")
    for metric, cells in rows(result["exits"]):
        table.add_row(metric, *cells)
    return table


def rows(exits: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Metric -> a cell an exit; metrics that no exit has are left out."""
    metrics = dict.fromkeys(key for values in exits.values() for key, value in values.items() if is_estimate(value))
    found = [(key, [share(values.get(key)) for values in exits.values()]) for key in metrics]
    factor, unit = flop_unit([values["cost"] or 0.0 for values in exits.values()])
    plain = {
        "tokens": lambda values: figure(values["mean_tokens"], ".1f"),
        "truncated": lambda values: figure(values["truncated"], ".1%"),
        f"{unit} an answer": lambda values: figure(values["cost"] and factor * values["cost"], ".3g"),
        "seconds": lambda values: figure(values["seconds"], ".1f"),
        "not judged": lambda values: str(values["failures"]) if values["failures"] else "",
    }
    found += [(metric, [shown(values) for values in exits.values()]) for metric, shown in plain.items()]
    return [(metric, cells) for metric, cells in found if any(cell not in ("", "–") for cell in cells)]


def difference_lines(result: Mapping[str, Any]) -> list[str]:
    """`large - small, greedy: +12.3 points [+8.1, +16.4]`; ends with a star where 0 is outside the interval."""
    lines = []
    for metric in dict.fromkeys(each["metric"] for each in result["differences"]):
        own = [each for each in result["differences"] if each["metric"] == metric]
        for each in own[:SHOWN_DIFFERENCES]:
            deep, shallow = each["exits"]
            low, high = 100 * each["low"], 100 * each["high"]
            star = " *" if low > 0 or high < 0 else ""
            lines.append(
                f"{deep} - {shallow}, {metric}: {100 * each['value']:+.1f} points [{low:+.1f}, {high:+.1f}]{star}"
            )
        if len(own) > SHOWN_DIFFERENCES:
            lines.append(f"{len(own) - SHOWN_DIFFERENCES} more differences of {metric} are in results.json")
    return lines


def routing_lines(result: Mapping[str, Any]) -> list[str]:
    """What routing between exits could give, against the exits alone."""
    routing = result.get("routing")
    if routing is None:
        return []
    factor, unit = flop_unit([each["cost"] for each in routing["exits"].values()])

    def point(values: Mapping[str, float]) -> str:
        return f"{figure(values['accuracy'], '.1%')} at {factor * values['cost']:.3g} {unit}"

    best = max(routing["exits"], key=lambda exit: routing["exits"][exit]["accuracy"])
    solved, cost = share(routing["oracle"]["accuracy"]), factor * routing["oracle"]["cost"]
    alone = point(routing["exits"][best])
    lines = [f"routing, oracle: {solved} at {cost:.3g} {unit}; {best} alone {alone} (greedy answers)"]
    rule = routing["confidence"]
    if rule is not None:
        alone, chosen, problems = point(rule["exits"][rule["best_exit"]]), rule["chosen"], rule["problems"]
        shares = ", ".join(f"{exit} {part:.0%}".replace("%", " %") for exit, part in chosen["shares"].items())
        lines.append(
            f"routing by confidence: {point(chosen)}, answered by {shares}; {rule['best_exit']} alone {alone} "
            f"(thresholds from {problems['chosen_on']} problems, figures of the other {problems['reported_on']})"
        )
    return lines


def told_benchmark(name: str, result: Mapping[str, Any]) -> str:
    """One line: the exits' pass@1 and greedy shares."""
    exits = []
    for exit, values in result["exits"].items():
        shown = [
            f"{key} {share(values[key])}"
            for key in ("greedy", "pass@1")
            if values.get(key, {}).get("value") is not None
        ]
        exits.append(f"{exit} {', '.join(shown) or 'not judged'}")
    return f"{name}: {result['problems']} problems · {'  '.join(exits)}"


def share(estimate: Mapping[str, float | None] | None) -> str:
    """`41.2 % [38.9, 43.4]`, with the interval; a dash where it is not known."""
    if not estimate or estimate["value"] is None:
        return "–"
    value, low, high = (100 * estimate[key] for key in ("value", "low", "high"))
    return f"{value:.1f} % [{low:.1f}, {high:.1f}]"


def flop_unit(costs: Iterable[float]) -> tuple[float, str]:
    """The unit in which the largest of the costs, TFLOP, is a number from 1 on, and how many of it make a TFLOP."""
    largest = max(costs, default=0.0)
    units = ((1.0, "TFLOP"), (1e3, "GFLOP"), (1e6, "MFLOP"))
    return next((unit for unit in units if largest * unit[0] >= 1), units[-1])


def figure(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form).replace("%", " %")


def is_estimate(value: Any) -> bool:
    return isinstance(value, Mapping) and "low" in value
