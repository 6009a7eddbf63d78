"""The example method of docs/benchmark.md does what the page says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from cmt.methods import Method, Stored
from tests import small
from tests.unit import method_pieces

PAGE = Path(__file__).parents[2] / "docs" / "benchmark.md"


def test_the_example_is_a_method(tmp_path: Path) -> None:
    code, line = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    file = tmp_path / "lead.py"
    file.write_text(f"{code}\nfrom cmt.methods import Row\nROWS = {{{line}}}\n")
    method: Method = method_pieces.build(runpy.run_path(str(file))["ROWS"]["lead"], tmp_path)
    data = small.dataset(20)
    method.learn(data.documents)
    asked = [question.text for question in data.questions][:5]
    replies = method.answer(asked)
    assert [len(reply.documents) for reply in replies] == [5] * len(asked)
    assert replies[0].text_tokens > 0
    assert method.stored().documents > 0
    method.reset()
    assert method.stored() == Stored(documents=0, fixed=0)
