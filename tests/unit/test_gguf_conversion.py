"""Converting a GGUF file: the same weights, rounded once, and the same tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from cmt import gguf_conversion
from cmt.errors import ModelError
from cmt.gguf_conversion import convert_gguf
from tests import tiny
from tests.unit.wheels import CHAT_TEMPLATE, write_gguf


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    convert_gguf(write_gguf(folder / "tiny.gguf"), folder / "model", progress=False)
    return folder / "model"


def test_weights_are_the_originals_in_bfloat16(converted):
    original = tiny.model("llama").state_dict()
    model = AutoModelForCausalLM.from_pretrained(converted)
    assert model.state_dict().keys() == original.keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, original[name].bfloat16()), name


def test_the_output_head_stays_tied(converted):
    model = AutoModelForCausalLM.from_pretrained(converted)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert model.config.tie_word_embeddings


def test_special_tokens_and_chat_template_are_the_files(converted):
    model = AutoModelForCausalLM.from_pretrained(converted)
    tokenizer = AutoTokenizer.from_pretrained(converted)
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert ids == (0, 1, 1)
    generation = model.generation_config
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == ids
    assert tokenizer.chat_template == CHAT_TEMPLATE


def test_special_tokens_that_were_misread_are_put_right(tmp_path):
    """transformers 5.17 takes SmolLM2's beginning of a turn for its end."""
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = "<bos>"
    gguf_conversion._restore_special_tokens(tokenizer, write_gguf(tmp_path / "a.gguf"))
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<bos>", "<eos>", "<eos>",
    )  # fmt: skip
    assert tokenizer.eos_token_id == 1


def test_digits_stand_alone_where_the_file_says_so(converted):
    """Blank lines before a number stay together, as SmolLM2's own tokenizer has it."""
    splitter = AutoTokenizer.from_pretrained(converted).backend_tokenizer.pre_tokenizer
    assert [word for word, _ in splitter.pre_tokenize_str("\n\n19")] == ["ĊĊ", "1", "9"]


def test_text_is_cut_as_before_where_the_file_says_nothing_of_digits(tmp_path):
    convert_gguf(write_gguf(tmp_path / "a.gguf", pre="gpt-2"), tmp_path / "model", progress=False)
    text = " ".join(tiny.TEXTS) + " größer 🙂\n\n1823"
    expected = tiny.tokenizer()(text, add_special_tokens=False)["input_ids"]
    assert AutoTokenizer.from_pretrained(tmp_path / "model")(text)["input_ids"] == expected


def test_others_may_read_the_weights_as_they_may_the_rest(converted):
    mode = (converted / "config.json").stat().st_mode
    assert (converted / "model.safetensors").stat().st_mode == mode


def test_progress_bars_are_as_they_were_afterwards(converted, tmp_path):
    assert logging.is_progress_bar_enabled()


@pytest.mark.parametrize("content", [b"GGUF", b"GGUF" + bytes(100), b"not a model"])
def test_a_broken_file_is_refused(tmp_path, content):
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"Expected a GGUF file of a causal .*got .*broken\.gguf"):
        convert_gguf(path, tmp_path / "model", progress=False)


def test_a_truncated_file_is_refused(tmp_path):
    path = write_gguf(tmp_path / "cut.gguf")
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ModelError, match=r"Expected a GGUF file of a causal .*got .*cut\.gguf"):
        convert_gguf(path, tmp_path / "model", progress=False)
