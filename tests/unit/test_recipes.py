"""The recipes behind the shipped compressor: what ran, and commands that the scripts understand."""

from __future__ import annotations

import ast
import json
import re
import runpy
import shlex
from pathlib import Path

import pytest

from cmt.training import learning_rate_factor

ROOT = Path(__file__).parents[2]
RUNS = {
    "smollm2_135m": "first",
    "smollm2_135m_further": "further",
    "smollm2_135m_third": "third",
    "smollm2_135m_fourth": "fourth",
    "smollm2_135m_fifth": "fifth",
}


@pytest.mark.parametrize(("recipe", "run"), RUNS.items())
def test_a_recipe_says_how_long_its_run_took(recipe: str, run: str) -> None:
    """The learning rate was on the clock, so the metrics tell for how long a run was meant."""
    made = runpy.run_path(str(ROOT / "recipes" / f"{recipe}.py"))["recipe"]()
    metrics = (ROOT / f"benchmarks/results/checkpoint_training_{run}.jsonl").read_text()
    lines = [json.loads(line) for line in metrics.splitlines()]
    for line in lines[len(lines) // 4 :: 10]:
        done = line["seconds"] / (60 * made.minutes)
        expected = made.learning_rate * learning_rate_factor(line["step"], done, made.warmup_steps)
        assert line["learning_rate"] == pytest.approx(expected, rel=0.02, abs=5e-6)
    assert lines[-1]["seconds"] == pytest.approx(60 * made.minutes, rel=0.02)


@pytest.mark.parametrize("recipe", RUNS)
def test_the_commands_of_a_recipe_name_options_that_there_are(recipe: str) -> None:
    told = ast.get_docstring(ast.parse((ROOT / "recipes" / f"{recipe}.py").read_text()))
    assert told is not None
    lines = [line for line in told.splitlines() if line.startswith("    ")]
    variables: dict[str, str] = {}
    scripts = 0
    for line in map(str.strip, lines):
        assert "…" not in line
        command = line
        if loop := re.fullmatch(r"for (\w+) in (\S+).*?; do *(.*?)(; done)?", line):
            variables[loop[1]], command = loop[2], loop[3]
        if command in ("", "done"):
            continue
        text = re.sub(r"\$(\w+)", lambda match: variables[match[1]], command)
        if name := re.match(r"(\w+)=", text):
            variables[name[1]] = shlex.split(text)[0].partition("=")[2]
            continue
        words = shlex.split(text)
        if words[0] == "python":
            code = (ROOT / words[1]).read_text()
            if "tuned_copies" in code:
                code += (ROOT / "benchmarks" / "tuned_copies.py").read_text()
        else:
            assert words[:2] == ["cmt", "train"]
            assert (ROOT / words[2]).exists()
            code = (ROOT / "cmt" / "commands" / "train.py").read_text()
        for option in (word for word in words if word.startswith("--")):
            assert f'"{option}"' in code, (words[1], option)
        scripts += 1
    assert scripts >= 1
