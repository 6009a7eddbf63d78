"""Turns a GGUF file into a folder in transformers format: safetensors in bfloat16, tokenizer.

transformers can load a GGUF file by itself, but takes half a minute for it at every start.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cmt.errors import ModelError

VERSION = 2  # raise it when the same file is converted to something else than before

# A GGUF file's names of special tokens, and transformers'.
SPECIAL_TOKENS = {"bos": "bos", "eos": "eos", "padding": "pad", "unknown": "unk"}

# What transformers or gguf raise for a file they can't read.
UNREADABLE = (ValueError, LookupError, RuntimeError, ImportError, OSError, struct.error)


def convert_gguf(gguf: Path, folder: Path, *, progress: bool = True) -> None:
    """Write the model and tokenizer of a GGUF file to `folder`.

    Weights are unpacked to float32 first, so each is rounded to bfloat16 once.

    Raises:
        ModelError: The file is broken or of an architecture transformers can't read.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    with _progress_bars(shown=progress):
        try:
            tokenizer = AutoTokenizer.from_pretrained(**where)
            unpacked = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        except UNREADABLE as error:
            raise ModelError(
                f"Expected a GGUF file of a causal language model that transformers can read, "
                f"got {gguf} with: {error}"
            ) from error
        config = unpacked.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config  # what is saved is no longer quantised
        model = type(unpacked).from_pretrained(
            None, config=config, state_dict=unpacked.state_dict(), dtype=torch.bfloat16
        )
        model.generation_config = unpacked.generation_config
        model.save_pretrained(folder)
    _restore_digit_splitting(tokenizer, gguf)
    _restore_special_tokens(tokenizer, gguf)
    tokenizer.save_pretrained(folder)
    _let_others_read(folder)


def _restore_digit_splitting(tokenizer: object, gguf: Path) -> None:
    r"""Cut the text at every digit where the file says so (`tokenizer.ggml.pre` is "smollm").

    transformers reads past that field, and blank lines before a number would be cut otherwise
    than in training: "\n\n1990" as "\n", "\n", "1"... and not as "\n\n", "1"...
    """
    from gguf import GGUFReader
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import PreTrainedTokenizerFast

    field = GGUFReader(gguf).get_field("tokenizer.ggml.pre")
    kind = field.contents() if field is not None else None
    if kind == "smollm" and isinstance(tokenizer, PreTrainedTokenizerFast):
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        )


def _restore_special_tokens(tokenizer: Any, gguf: Path) -> None:
    """Give the tokenizer the special tokens that the file names.

    transformers 5.17 takes SmolLM2's beginning of a turn for its end token, so that what was
    trained there ended answers with another token than what was trained elsewhere.
    """
    from gguf import GGUFReader

    reader = GGUFReader(gguf)
    for name, attribute in SPECIAL_TOKENS.items():
        field = reader.get_field(f"tokenizer.ggml.{name}_token_id")
        if field is not None:
            token = tokenizer.convert_ids_to_tokens(int(field.contents()))
            setattr(tokenizer, f"{attribute}_token", token)


@contextmanager
def _progress_bars(*, shown: bool) -> Iterator[None]:
    from transformers.utils import logging

    were_shown = logging.is_progress_bar_enabled()
    if not shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_shown:
            logging.enable_progress_bar()


def _let_others_read(folder: Path) -> None:
    """Give the weights config.json's mode: safetensors makes files only their owner may read."""
    mode = (folder / "config.json").stat().st_mode & 0o777
    for file in folder.glob("*.safetensors"):
        file.chmod(mode)
