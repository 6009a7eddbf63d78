"""What a run leaves to be resumed, whole even when saving is cut short."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from cmt.errors import CheckpointError
from cmt.training.state import has_training_state, load_training_state, save_training_state


def run(seed: int = 0, width: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    module = nn.Linear(width, 2)
    module.register_buffer("stale", torch.rand(4))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    for _ in range(3):
        module(torch.randn(5, width)).pow(2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return module, optimizer


def moments(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [
        values[name]
        for _, values in sorted(optimizer.state_dict()["state"].items())
        for name in sorted(values)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_training_state(tmp_path / "state", *run(), step=3, seconds=1.5)
    return tmp_path / "state"


def test_round_trip_to_the_bit(folder: Path) -> None:
    saved, saved_optimizer = run()
    module, optimizer = run(seed=1)
    assert load_training_state(folder, module, optimizer) == (3, 1.5)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, saved.state_dict()[name])
    for ours, theirs in zip(moments(optimizer), moments(saved_optimizer), strict=True):
        assert torch.equal(ours, theirs)
    assert len(moments(optimizer)) == 2 * 3
    for one, other in ((module, optimizer), (saved, saved_optimizer)):  # and the next step too
        one(torch.ones(1, 3)).sum().backward()
        other.step()
    assert torch.equal(module.weight, saved.weight)


def test_a_parameter_that_never_had_a_gradient(tmp_path: Path) -> None:
    module = nn.ParameterDict({"a": torch.ones(2), "b": torch.ones(2)})
    optimizer = torch.optim.AdamW(module.parameters())
    module["a"].sum().backward()
    optimizer.step()
    save_training_state(tmp_path / "state", module, optimizer, 1, 0.0)
    load_training_state(tmp_path / "state", module, optimizer)
    assert set(optimizer.state_dict()["state"]) == {0}


def test_a_later_state_replaces_an_earlier_one(folder: Path) -> None:
    save_training_state(folder, *run(seed=2), step=9, seconds=4.0)
    assert load_training_state(folder, *run()) == (9, 4.0)
    assert [path.name for path in folder.parent.iterdir()] == ["state"]


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    save_training_state(tmp_path / "state", *run(), step=3, seconds=1.5, process=1)
    assert list(tmp_path.iterdir()) == []


def test_a_save_cut_short_leaves_the_previous_state(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed: list[Path] = []
    rename = Path.rename

    def cut(self: Path, target: Path) -> Path:
        renamed.append(self)
        if len(renamed) == 2:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", cut)
    with pytest.raises(KeyboardInterrupt):
        save_training_state(folder, *run(seed=2), step=9, seconds=4.0)
    monkeypatch.undo()
    assert not folder.exists()
    assert has_training_state(folder)
    assert load_training_state(folder, *run()) == (3, 1.5)
    monkeypatch.setattr(Path, "rename", lambda *_: pytest.fail("cut short before the first rename"))
    with pytest.raises(pytest.fail.Exception):
        save_training_state(folder, *run(seed=2), step=9, seconds=4.0)
    monkeypatch.undo()
    assert load_training_state(folder, *run()) == (3, 1.5)  # still, in the sibling
    save_training_state(folder, *run(seed=2), step=10, seconds=5.0)
    assert load_training_state(folder, *run()) == (10, 5.0)
    assert [path.name for path in folder.parent.iterdir()] == ["state"]


def test_nothing_to_resume(tmp_path: Path) -> None:
    assert not has_training_state(tmp_path / "state")
    (tmp_path / "state.new").mkdir()  # the first save was cut short
    assert not has_training_state(tmp_path / "state")
    with pytest.raises(CheckpointError, match=r"training state in .*state to resume, found none"):
        load_training_state(tmp_path / "state", *run())


def test_the_state_of_another_run(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"(?s)run with this configuration .*size mismatch"):
        load_training_state(folder, *run(width=4))


def cut_weights(folder: Path) -> None:
    file = folder / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def no_weights(folder: Path) -> None:
    (folder / "state.safetensors").unlink()


def broken_json(folder: Path) -> None:
    (folder / "state.json").write_text('{"step": ')


def no_step(folder: Path) -> None:
    (folder / "state.json").write_text('{"seconds": 1}')


def odd_json(folder: Path) -> None:
    (folder / "state.json").write_text("[]")


@pytest.mark.parametrize("damage", [cut_weights, no_weights, broken_json, no_step, odd_json])
def test_a_damaged_state(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=r"training state in .* that can be read, got"):
        load_training_state(folder, *run())
