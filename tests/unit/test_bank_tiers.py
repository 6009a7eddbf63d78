"""Banks that store memories in eight and in four bits."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from cmt import transfer
from cmt.bank import Bank
from cmt.bank.tensor_bytes import memory_from_bytes
from cmt.checkpoint import save_pretrained
from cmt.cli import main
from cmt.errors import BankError, InputError
from cmt.quantization import dequantize, dequantize4, quantize, quantize4
from cmt.records import Document
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


def stored(path) -> list[tuple[object, ...]]:
    """What a bank's file holds of its memories, all bytes."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(
            "SELECT tokens, dtype, shape, memory_bytes, checksum, key, vectors, data "
            "FROM memories JOIN tensors USING (memory_id) ORDER BY memory_id"
        ).fetchall()


def run(*arguments, stdin=None):
    return CliRunner().invoke(main, [str(one) for one in arguments], input=stdin)


@pytest.fixture(params=["bf16", "int8", "int4"])
def tier(request):
    return request.param


@pytest.fixture
def exported(path, tmp_path, tier):
    with Bank.open(path, FINGERPRINT, tier=tier) as bank:
        for seed in range(40):
            add(bank, f"sand {seed}", seed)
    done = run("export", tmp_path / "out", "--bank", path)
    assert done.exit_code == 0
    return tmp_path / "out"


def test_an_export_comes_back_byte_for_byte_in_its_tier(exported, path, tmp_path, tier):
    copy = tmp_path / "copy.sqlite"
    copy.touch()  # an empty file is a bank to be made
    assert run("import", exported, "--bank", copy).exit_code == 0
    assert stored(copy) == stored(path)
    with Bank.open(copy, FINGERPRINT, tier=tier) as bank, Bank.open(path, FINGERPRINT) as own:
        assert bank.verify() == []
        assert bank.stats().memory_bytes == own.stats().memory_bytes
        assert list(keys_of(bank)) == list(keys_of(own))
        for (_, (one,)), (_, (two,)) in zip(bank.entries(), own.entries(), strict=True):
            assert torch.equal(one.memory, two.memory)
            assert torch.equal(one.key, two.key)


def test_an_export_takes_no_more_bytes_than_the_bank_does(exported, tier):
    kinds = {
        tensor.dtype
        for file in exported.glob("*.safetensors")
        for name, tensor in load_file(file).items()
        if name.startswith("memory.")
    }
    assert kinds == {torch.bfloat16 if tier == "bf16" else torch.uint8}


@pytest.mark.parametrize("other", ["bf16", "int8", "int4"])
def test_the_tier_asked_for_or_the_banks_own_wins(exported, path, tmp_path, tier, other):
    asked, there = tmp_path / "asked.sqlite", tmp_path / "there.sqlite"
    Bank.open(there, FINGERPRINT, tier=other).close()
    assert run("import", exported, "--bank", asked, "--tier", other).exit_code == 0
    assert run("import", exported, "--bank", there).exit_code == 0
    assert stored(asked) == stored(there)
    assert {row[1] for row in stored(there)} == {"bfloat16" if other == "bf16" else other}
    if other == tier:
        assert stored(there) == stored(path)
    refused = run("import", exported, "--bank", there, "--tier", "int8")
    assert refused.exit_code == (0 if other == "int8" else 4)


def test_an_export_from_before_tiers_were_told_is_taken(path, tmp_path):
    """It has memories in float32, wherever they came from, and no tier in its manifest."""
    with Bank.open(path, FINGERPRINT) as bank:
        piece = make_piece("sand", 1)
        numbers = dequantize(*quantize(piece.memory))
        bank.add([(Document(text="sand"), [replace(piece, memory=numbers)])])
        transfer.export_bank(bank, tmp_path / "out")
    file = tmp_path / "out" / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["tier"]
    file.write_text(json.dumps({**manifest, "version": 1}))
    assert run("import", tmp_path / "out", "--bank", tmp_path / "copy.sqlite").exit_code == 0
    with Bank.open(tmp_path / "copy.sqlite", FINGERPRINT, tier="bf16") as copy:
        ((_, (one,)),) = copy.entries()
        assert torch.equal(one.memory, numbers)
    eight = tmp_path / "eight.sqlite"
    assert run("import", tmp_path / "out", "--bank", eight, "--tier", "int8").exit_code == 0
    assert [row[1] for row in stored(eight)] == ["int8"]


@pytest.mark.parametrize(("dtype", "expected"), [("int8", 20), ("int4", 16)])
def test_too_few_bytes_are_refused(dtype, expected):
    with pytest.raises(ValueError, match=f"expected {expected} bytes for {dtype}"):
        memory_from_bytes(b"x", [1, 2, 1, 3, 2], dtype)


def test_the_commands_make_and_show_a_tier(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.save(tmp_path / "base")
    save_pretrained(small.compressor(), tmp_path / "checkpoint")
    model = ["--model", str(tmp_path / "base"), "--checkpoint", str(tmp_path / "checkpoint")]

    assert run("add", "-", "--tier", "int8", *model, stdin="Ann is the mayor.").exit_code == 0
    assert json.loads(run("stats", "--json").stdout)["tier"] == "int8"
    assert "a document, int8)" in run("stats").stdout
    assert run("ask", "Who is the mayor?", *model).exit_code == 0
    refused = run("add", "-", "--tier", "bf16", *model, stdin="Bob is.")
    assert (refused.exit_code, "expected a bank of tier 'bf16'" in refused.stderr) == (4, True)
