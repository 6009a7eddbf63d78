r"""The benchmark's results as Markdown and plots.

python benchmarks/report.py --out benchmarks/results/stream.md --plots benchmarks/results/plots
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cmt.evaluation.plots import draw
from cmt.evaluation.report import markdown
from cmt.evaluation.results import read_result

HERE = Path(__file__).parent


def main() -> None:
    """Read every result, write a table a dataset, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results/stream")
    parser.add_argument("--out", type=Path, default=HERE / "results/stream.md")
    parser.add_argument("--plots", type=Path, help="folder for the plots; default: none drawn")
    parser.add_argument("--dataset", help="only this one")
    options = parser.parse_args()
    records = [read_result(file) for file in sorted(options.results.glob("*.json"))]
    shown = [record for record in records if record["part"] != "choice"]  # on validation data
    datasets = sorted({record["settings"]["dataset"] for record in shown})
    chosen = [name for name in datasets if options.dataset in (None, name)]
    if not chosen:
        raise SystemExit(f"expected results in {options.results}, found none: {datasets}")
    options.out.write_text("\n".join(markdown(records, name) for name in chosen), encoding="utf-8")
    print(options.out)
    for name in chosen if options.plots else []:
        print("\n".join(str(file) for file in draw(records, name, options.plots)))


if __name__ == "__main__":
    main()
