"""Plots of the benchmark: retention, robustness, accuracy against bytes and against tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cmt.evaluation.published import RETENTION, ROBUSTNESS
from cmt.evaluation.report import Record, newest, place, title
from cmt.methods import ABLATIONS
from cmt.methods.retrievers import imported

HALF = 0.5  # of the width: names of points further right stand left of them
WIDE, LINE = 0.15, 0.022  # of width and height: names so near each other stand one above the other


def draw(records: Sequence[Record], dataset: str, folder: Path) -> list[Path]:
    """Every plot for which there are results, as PNG files in `folder`.

    Raises:
        InputError: matplotlib isn't installed.
    """
    imported("matplotlib", "drawing the report")
    folder.mkdir(parents=True, exist_ok=True)
    drawn: list[Path] = []
    for part, along, published in (
        ("retention", "documents", RETENTION),
        ("robustness", "share", ROBUSTNESS),
    ):
        curves = newest(records, part, dataset)
        if curves:
            drawn.append(_curves(curves, along, published, folder / f"{dataset}-{part}.png"))
    streams = newest(records, "stream", dataset)
    methods = {name: record for name, record in streams.items() if name not in ABLATIONS}
    if methods:
        bytes_file, tokens_file = (folder / f"{dataset}-{kind}.png" for kind in ("bytes", "tokens"))
        _against(methods, "bytes stored a document", _bytes, bytes_file)
        _against(methods, "tokens and memory places read a question", _tokens, tokens_file)
        drawn += [bytes_file, tokens_file]
    return drawn


def _curves(
    curves: Mapping[str, Record],
    along: str,
    published: Mapping[str, Mapping[Any, float]],
    file: Path,
) -> Path:
    """Share of the first point's F1 along a curve; published ones dashed."""
    figure, axes = _figure()
    for name, record in curves.items():
        points = [(place(point, along), point["scores"]["f1"]) for point in record["result"]]
        first = points[0][1]
        if first:
            axes.plot([x for x, _ in points], [100 * y / first for _, y in points], "o-",
                      label=title(name))  # fmt: skip
    for method, shares in published.items():
        axes.plot(list(shares), list(shares.values()), "--", linewidth=1,
                  label=f"published {method}, Llama-2-7B, StreamingQA")  # fmt: skip
    label = "documents learned" if along == "documents" else "unrelated documents, share of stream"
    axes.set(xlabel=label, ylabel="share of the first F1 kept, percent")
    if along != "documents":
        axes.set_xscale("symlog", linthresh=1)
    figure.legend(fontsize=7, loc="outside lower center", ncols=2)  # not on the lines
    figure.savefig(file, dpi=120)
    return file


def _against(methods: Mapping[str, Record], label: str, measure: Any, file: Path) -> None:
    """F1 against a cost, logarithmic, a point a method."""
    figure, axes = _figure()
    points = [
        (title(name), measure(record["result"]["costs"]), record["result"]["scores"]["f1"])
        for name, record in methods.items()
    ]
    for _, x, y in points:
        axes.scatter(x, y)
    axes.set_xscale("symlog", linthresh=1)
    axes.set(xlabel=label, ylabel="F1, percent", ylim=(0, None))
    figure.draw_without_rendering()  # settles where points lie
    named: list[tuple[float, float]] = []
    for name, x, y in sorted(points, key=lambda point: point[2]):
        across, up = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))
        side, away = ("right", -4) if across > HALF else ("left", 4)
        height = up
        while any(abs(across - a) < WIDE and height < b + LINE for a, b in named):
            height = min(b + LINE for a, b in named if abs(across - a) < WIDE and height < b + LINE)
        named.append((across, height))
        points_up = 2 + (height - up) * axes.get_window_extent().height * 72 / figure.dpi
        axes.annotate(
            name, (x, y), fontsize=6, ha=side, xytext=(away, points_up), textcoords="offset points"
        )
    figure.savefig(file, dpi=120)


def _bytes(costs: Mapping[str, float]) -> float:
    return costs["bytes_stored"]


def _tokens(costs: Mapping[str, float]) -> float:
    return costs["text_tokens"] + costs["memory_tokens"]


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    return figure, figure.add_subplot()
