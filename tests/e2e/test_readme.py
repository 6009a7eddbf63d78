"""What the README shows runs as written."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cmt.cli import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The README's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.e2e
def test_the_python_example_runs(tmp_path):
    (example,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "The lighthouse of Arbon was built in 1823" in done.stdout


def commands() -> list[list[str]]:
    """Every `cmt …` line of the README's shell blocks."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    parts = [part for line in lines for part in line.split("#")[0].split(";")]
    return [shlex.split(part) for part in parts if part.strip().startswith("cmt ")]


def test_every_command_shown_exists_with_its_options():
    shown = commands()
    assert len(shown) >= 8
    for _, command, *arguments in shown:
        help_text = CliRunner().invoke(main, [command, "--help"])
        assert help_text.exit_code == 0, command
        for argument in arguments:
            if argument.startswith("--"):
                assert argument in help_text.output, (command, argument)


def test_the_two_commands_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "\n".join(blocks("sh")), flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
