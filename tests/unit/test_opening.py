import pytest
import torch
from transformers.utils import logging as transformers_logging

from cmt import opening
from cmt.checkpoint import save_pretrained
from cmt.compressor import Compressor, CompressorConfig
from cmt.errors import CheckpointError, InputError
from tests import tiny

SMALL = CompressorConfig(
    memory_tokens=4, key_size=16, lora_rank=2, lora_alpha=4, max_piece_tokens=48, overlap_tokens=8
)


def test_a_given_checkpoint_is_taken_for_any_model(tmp_path):
    assert opening.find_checkpoint("whatever", tmp_path) == tmp_path


def test_the_shipped_checkpoint_is_found_by_its_model(tmp_path, monkeypatch):
    (tmp_path / "checkpoints/tiny").mkdir(parents=True)
    (tmp_path / "checkpoints/tiny/config.json").write_text("{}")
    monkeypatch.setattr(opening.resources, "files", lambda package: tmp_path)
    assert opening.find_checkpoint("tiny", None) == tmp_path / "checkpoints/tiny"
    with pytest.raises(
        CheckpointError, match=r"shipped compressor \(tiny\), got 'other'.*cmt train"
    ):
        opening.find_checkpoint("other", None)


def test_no_shipped_checkpoint_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(opening.resources, "files", lambda package: tmp_path)
    with pytest.raises(CheckpointError, match="none is"):
        opening.find_checkpoint("smollm2-135m", None)


def test_a_folder_without_checkpoint_is_refused_before_the_model_is_loaded(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json there"):
        opening.load_compressor("no/such/model", tmp_path)


@pytest.mark.parametrize("device", ["toaster", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(InputError, match=f"expected a device of this machine.*{device}"):
        opening.checked_device(device)


def test_loading_shows_no_bar_and_puts_transformers_setting_back(tmp_path, capfd):
    folder = tiny.save(tmp_path / "model")
    base = tiny.base_model()
    save_pretrained(Compressor(base, SMALL), tmp_path / "checkpoint")
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.enable_progress_bar()
    try:
        compressor = opening.load_compressor(
            str(folder), tmp_path / "checkpoint", device="cpu", dtype=torch.float32
        )
        assert transformers_logging.is_progress_bar_enabled()
    finally:
        if not shown:
            transformers_logging.disable_progress_bar()
    assert "Loading" not in capfd.readouterr().err
    own = opening.fingerprint(compressor)
    assert own.base_model == base.fingerprint
    assert own.compressor == compressor.fingerprint()


@pytest.mark.parametrize(
    ("multiplies", "asked", "expected"),
    [
        (True, None, torch.bfloat16),
        (False, None, torch.float32),
        (True, torch.float32, torch.float32),
        (False, torch.bfloat16, torch.bfloat16),
    ],
)
def test_a_cpu_that_multiplies_bfloat16_reads_in_it(
    tmp_path, monkeypatch, multiplies, asked, expected
):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: multiplies, raising=False)
    folder = tiny.save(tmp_path / "model")
    save_pretrained(Compressor(tiny.base_model(), SMALL), tmp_path / "checkpoint")
    compressor = opening.load_compressor(
        str(folder), tmp_path / "checkpoint", device="cpu", dtype=asked
    )
    assert compressor.base.dtype == expected
    assert compressor.key_head.weight.dtype == torch.float32
