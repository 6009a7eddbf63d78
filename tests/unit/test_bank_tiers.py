"""Banks that store memories in eight and in four bits."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

from cmt import transfer
from cmt.bank import Bank
from cmt.bank.tensor_bytes import memory_from_bytes
from cmt.checkpoint import save_pretrained
from cmt.cli import main
from cmt.errors import BankError, InputError
from cmt.quantization import dequantize, dequantize4, quantize, quantize4
from tests import small, tiny
from tests.unit.bank_pieces import FINGERPRINT, add, keys_of, make_piece


@pytest.fixture
def eight(path):
    with Bank.open(path, FINGERPRINT, tier="int8") as bank:
        yield bank


def test_memories_are_read_back_as_quantised(eight, path):
    add(eight, "sand", 1)
    (memory,) = eight.memories(list(keys_of(eight)))
    expected = dequantize(*quantize(make_piece("", 1).memory))
    assert memory.memory.dtype == torch.float32
    assert torch.equal(memory.memory, expected)
    assert eight.verify() == []
    numbers, heads = 2 * 2 * 1 * 3 * 4, 2 * 2 * 1
    assert eight.stats().memory_bytes == numbers + 4 * heads
    with Bank.open(path, FINGERPRINT) as again:
        assert again.tier == "int8"
        add(again, "silt", 2)
        assert again.stats().memory_bytes == 2 * (numbers + 4 * heads)


def test_a_bank_is_of_one_tier(eight, path):
    with pytest.raises(BankError, match=r"expected a bank of tier 'bf16', got .* of 'int8'"):
        Bank.open(path, FINGERPRINT, tier="bf16")
    with pytest.raises(InputError, match="expected a tier out of bf16, int8, int4, got 'int2'"):
        Bank.open(path, FINGERPRINT, tier="int2")
    Bank.open(path, FINGERPRINT, tier="int8").close()


def test_memories_in_four_bits_are_read_back_as_quantised(path):
    with Bank.open(path, FINGERPRINT, tier="int4") as bank:
        add(bank, "sand", 1)
        (memory,) = bank.memories(list(keys_of(bank)))
        assert torch.equal(memory.memory, dequantize4(*quantize4(make_piece("", 1).memory)))
        numbers, channels, tokens = 2 * 2 * 1 * 3 * 4, 2 * 1 * 4, 2 * 1 * 3
        assert bank.stats().memory_bytes == numbers // 2 + 2 * channels + 2 * tokens
        assert bank.verify() == []


@pytest.mark.parametrize("tier", ["int8", "int4"])
def test_an_export_of_fewer_bits_comes_back_bit_for_bit(path, tmp_path, tier):
    with (
        Bank.open(path, FINGERPRINT, tier=tier) as bank,
        Bank.open(tmp_path / "copy.sqlite", FINGERPRINT, tier=tier) as copy,
    ):
        add(bank, "sand", 1, id="a")
        transfer.export_bank(bank, tmp_path / "out")
        transfer.import_bank(copy, tmp_path / "out")
        ((_, (one,)),), ((_, (two,)),) = bank.entries(), copy.entries()
        assert torch.equal(one.memory, two.memory)


@pytest.mark.parametrize(("dtype", "expected"), [("int8", 20), ("int4", 16)])
def test_too_few_bytes_are_refused(dtype, expected):
    with pytest.raises(ValueError, match=f"expected {expected} bytes for {dtype}"):
        memory_from_bytes(b"x", [1, 2, 1, 3, 2], dtype)


def test_the_commands_make_and_show_a_tier(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.save(tmp_path / "base")
    save_pretrained(small.compressor(), tmp_path / "checkpoint")
    model = ["--model", str(tmp_path / "base"), "--checkpoint", str(tmp_path / "checkpoint")]

    def run(*arguments, stdin=None):
        return CliRunner().invoke(main, list(arguments), input=stdin)

    assert run("add", "-", "--tier", "int8", *model, stdin="Ann is the mayor.").exit_code == 0
    assert json.loads(run("stats", "--json").stdout)["tier"] == "int8"
    assert "a document, int8)" in run("stats").stdout
    assert run("ask", "Who is the mayor?", *model).exit_code == 0
    refused = run("add", "-", "--tier", "bf16", *model, stdin="Bob is.")
    assert (refused.exit_code, "expected a bank of tier 'bf16'" in refused.stderr) == (4, True)
