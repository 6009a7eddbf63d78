r"""The benchmark's results as Markdown and plots.

Only results that can be compared stand in a table; the others are told, each with the reason.

python benchmarks/report.py --out benchmarks/results/stream.md --plots benchmarks/results/plots
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from cmt.evaluation.comparable import Table, sift
from cmt.evaluation.plots import draw
from cmt.evaluation.report import markdown
from cmt.evaluation.results import read_result

HERE = Path(__file__).parent


def main() -> None:
    """Read every result, write a table a dataset, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=HERE / "results/stream")
    parser.add_argument("--out", type=Path, default=HERE / "results/stream.md")
    parser.add_argument("--plots", type=Path, help="folder for the plots; default: none drawn")
    parser.add_argument("--dataset", help="only this one")
    parser.add_argument("--model", default=Table().base_model, help="base model of the rows")
    parser.add_argument("--seed", type=int, default=Table().seed, help="of the rows")
    parser.add_argument("--recipe", default=Table().recipe, help="file name of key/value rows'")
    drafts = "show what is left out too: changed code, other settings, fewer questions"
    parser.add_argument("--drafts", action="store_true", help=drafts)
    options = parser.parse_args()
    records = [read_result(file) for file in sorted(options.results.glob("*.json"))]
    shown = [record for record in records if record["part"] != "choice"]  # on validation data
    if not options.drafts:
        table = Table(base_model=options.model, seed=options.seed, recipe=options.recipe)
        shown, left_out = sift(shown, table)
        print("".join(f"left out: {what}\n" for what in left_out), end="")
    counts = Counter(record["settings"]["dataset"] for record in shown)
    datasets = sorted(counts, key=lambda name: (-counts[name], name))  # the fullest table first
    chosen = [name for name in datasets if options.dataset in (None, name)]
    if not chosen:
        raise SystemExit(f"expected results in {options.results}, found none: {datasets}")
    options.out.write_text("\n".join(markdown(shown, name) for name in chosen), encoding="utf-8")
    print(options.out)
    for name in chosen if options.plots else []:
        print("\n".join(str(file) for file in draw(shown, name, options.plots)))


if __name__ == "__main__":
    main()
