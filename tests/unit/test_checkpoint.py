"""Saved and loaded to the rounding of bfloat16, or refused with a reason."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import cmt
from cmt import checkpoint
from cmt.checkpoint import from_pretrained, save_pretrained, start_from
from cmt.compressor import Compressor, CompressorConfig, prepare
from cmt.errors import CheckpointError, InputError
from tests import small, tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_pretrained(small.compressor(), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_round_trip_is_equal_to_the_rounding(family: str, tmp_path: Path) -> None:
    saved = small.compressor(family)
    save_pretrained(saved, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = from_pretrained(tiny.base_model(family), tmp_path)
    assert loaded.config == saved.config
    theirs = saved.state_dict()
    assert list(loaded.state_dict()) == list(theirs)
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, theirs[name].bfloat16().float()), name
    assert loaded.fingerprint() == saved.fingerprint()
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    batch = prepare(small.tokens(20), small.tokens(5), 4)
    with torch.no_grad():
        saved.load_state_dict({k: v.bfloat16().float() for k, v in theirs.items()})
        assert torch.equal(loaded(batch).stacked(), saved(batch).stacked())


def test_saving_leaves_the_compressor_as_it_is(tmp_path: Path) -> None:
    compressor = small.compressor()
    before = {name: tensor.clone() for name, tensor in compressor.state_dict().items()}
    save_pretrained(compressor, tmp_path)
    for name, tensor in compressor.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checkpoint.SHARD_BYTES < 16 * 2**20, "what the shipped checkpoint's files may have"
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 4000)
    saved = small.compressor(lora_rank=8)
    save_pretrained(saved, tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 5
    for shard in shards:
        assert sum(t.numel() * 2 for t in load_file(shard).values()) <= 4000
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(saved.state_dict())
    loaded = from_pretrained(tiny.base_model(), tmp_path)
    assert loaded.fingerprint() == saved.fingerprint()

    monkeypatch.undo()
    save_pretrained(saved, tmp_path)  # what is there of ours is replaced, to the last shard
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded.detach()
    assert from_pretrained(loaded.base, tmp_path).fingerprint() == saved.fingerprint()


def test_a_missing_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 4000)
    save_pretrained(small.compressor(), tmp_path)
    sorted(tmp_path.glob("*.safetensors"))[1].unlink()
    with pytest.raises(CheckpointError, match="expected readable weights in"):
        from_pretrained(tiny.base_model(), tmp_path)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoint in .*nowhere: no config\.json there"):
        from_pretrained(tiny.base_model(), tmp_path / "nowhere")


def test_another_base_model(folder: Path) -> None:
    base, other = tiny.base_model(), tiny.base_model(seed=1)
    message = (
        f"trained on base model {base.fingerprint[:16]} .tiny-llama., "
        f"got base model {other.fingerprint[:16]} .tiny-llama."
    )
    with pytest.raises(CheckpointError, match=message):
        from_pretrained(other, folder)


def test_a_base_model_under_a_compressor_already(folder: Path) -> None:
    compressor = small.compressor()
    with pytest.raises(InputError, match="under a compressor already"):
        from_pretrained(compressor.base, folder)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "3",
        '{"format": 1}',
        '{"format": 1, "base_model_fingerprint": "", "compressor": []}',
        '{"format": 1, "base_model_fingerprint": "", "compressor": {"memory_tokens": 0}}',
        '{"format": 1, "base_model_fingerprint": "", "compressor": {"colour": 3}}',
        b"\xff\xfe",
    ],
)
def test_a_configuration_that_cannot_be_read(folder: Path, text: str | bytes) -> None:
    (folder / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError, match=r"configuration in .*config\.json, got one that"):
        from_pretrained(tiny.base_model(), folder)


def test_another_format(folder: Path) -> None:
    edit(folder, lambda config: config.update(format=2))
    with pytest.raises(CheckpointError, match=r"checkpoint of format 1 in .*, got 2"):
        from_pretrained(tiny.base_model(), folder)


def test_a_fingerprint_that_is_none(folder: Path) -> None:
    edit(folder, lambda config: config.update(base_model_fingerprint=None))
    with pytest.raises(CheckpointError, match="was trained on base model None"):
        from_pretrained(tiny.base_model(), folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("key_head.bias"), r"Missing key.*key_head\.bias"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), r"Unexpected key.*extra"),
        (
            lambda tensors: tensors.update({"key_head.bias": torch.zeros(3)}),
            r"size mismatch for key_head\.bias",
        ),
    ],
)
def test_tensors_missing_left_over_or_misshaped(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    edit_weights(folder, change)
    base = tiny.base_model()
    before = list(base.model.state_dict())
    with pytest.raises(CheckpointError, match=f"(?s)expected the weights that .*{message}"):
        from_pretrained(base, folder)
    assert list(base.model.state_dict()) == before, "the base model is left as it was"
    Compressor(base, small.config())


def test_a_configuration_of_other_shapes(folder: Path) -> None:
    edit(folder, lambda config: config["compressor"].update(memory_tokens=5))
    with pytest.raises(CheckpointError, match="size mismatch for memory_embeddings"):
        from_pretrained(tiny.base_model(), folder)


@pytest.mark.parametrize("kept", [-1, -1000, 100, 5, 0])
def test_weights_cut_short(folder: Path, kept: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="expected readable weights in"):
        from_pretrained(tiny.base_model(), folder)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="expected readable weights in"):
        from_pretrained(tiny.base_model(), folder)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}']
)
def test_an_index_that_cannot_be_read(folder: Path, text: str) -> None:
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="expected readable weights in"):
        from_pretrained(tiny.base_model(), folder)


def test_saving_never_removes_another_models_files(tmp_path: Path) -> None:
    tiny.save(tmp_path)
    held = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match="holds something else called"):
        save_pretrained(small.compressor(), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == held
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="holds something else called"):
        save_pretrained(small.compressor(), tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match="holds something else called"):
        save_pretrained(small.compressor(), tmp_path)


def test_saving_beside_other_files(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}")
    save_pretrained(small.compressor(), tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == "{}"


def test_an_interrupted_save_can_be_saved_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(CheckpointError, match=r"expected to write to folder .* No space left"):
        save_pretrained(small.compressor(), tmp_path)
    with pytest.raises(CheckpointError, match="expected readable weights"):
        from_pretrained(tiny.base_model(), tmp_path)
    monkeypatch.undo()
    save_pretrained(small.compressor(), tmp_path)
    from_pretrained(tiny.base_model(), tmp_path)


def test_a_file_in_the_folders_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="expected to write to folder"):
        save_pretrained(small.compressor(), tmp_path / "file")


def test_sizes_are_saved_and_a_checkpoint_of_one_says_nothing_of_them(tmp_path: Path) -> None:
    for name, changes in {"one": {}, "three": {"memory_sizes": (1, 2)}}.items():
        saved = small.compressor(**changes)
        save_pretrained(saved, tmp_path / name)
        written = json.loads((tmp_path / name / "config.json").read_text())["compressor"]
        assert written.get("memory_sizes") == ([1, 2] if changes else None)
        loaded = from_pretrained(tiny.base_model(), tmp_path / name)
        assert loaded.config == saved.config
        assert loaded.fingerprint() == saved.fingerprint()


def test_the_shipped_checkpoint_serves_two_sizes() -> None:
    folder = Path(cmt.__file__).parent / "checkpoints" / "smollm2-135m"
    written = json.loads((folder / "config.json").read_text())["compressor"]
    config = CompressorConfig(**written)
    assert config.sizes == (16, 32)
    assert json.loads(json.dumps(config.described())) == written, "so that its banks open still"


def test_start_from_gives_the_weights_to_a_compressor_of_the_same_form(tmp_path: Path) -> None:
    first = small.compressor(seed=3)
    save_pretrained(first, tmp_path / "first")
    settings = {**small.SETTINGS, "memory_sizes": (2,)}
    fresh = Compressor(tiny.base_model(), CompressorConfig(**settings))
    start_from(fresh, tmp_path / "first")
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, first.state_dict()[name].bfloat16().float()), name
    assert fresh.config.sizes == (2, small.SETTINGS["memory_tokens"])
    assert all(parameter.requires_grad for parameter in fresh.parameters())


def test_start_from_another_form_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    save_pretrained(small.compressor(), tmp_path / "first")
    other = {**small.SETTINGS, "lora_rank": small.SETTINGS["lora_rank"] + 1}
    fresh = Compressor(tiny.base_model(), CompressorConfig(**other))
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"of the form .* to start from, got"):
        start_from(fresh, tmp_path / "first")
    assert all(torch.equal(before[name], tensor) for name, tensor in fresh.state_dict().items())


def test_what_answers_end_with_is_kept(tmp_path: Path) -> None:
    compressor = small.compressor()
    save_pretrained(compressor, tmp_path / "none")
    assert "end_token" not in json.loads((tmp_path / "none" / "config.json").read_text())
    assert from_pretrained(tiny.base_model(), tmp_path / "none").stop_tokens == ()
    compressor.end_token = 7
    save_pretrained(compressor, tmp_path / "own")
    loaded = from_pretrained(tiny.base_model(), tmp_path / "own")
    assert loaded.stop_tokens == (7,)
    assert loaded.fingerprint() == compressor.fingerprint()


def test_an_end_token_that_is_no_token_is_refused(folder: Path) -> None:
    edit(folder, lambda config: config.update(end_token="</s>"))
    with pytest.raises(CheckpointError, match="expected a token id as end_token, got '</s>'"):
        from_pretrained(tiny.base_model(), folder)
