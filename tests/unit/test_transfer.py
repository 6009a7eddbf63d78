"""Export and import: everything comes back, and what is wrong is said."""

from __future__ import annotations

import json
import sqlite3

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from cmt import transfer
from cmt.bank import Bank, Counts
from cmt.cli import main
from cmt.errors import CorruptRecordError, FingerprintMismatchError, InputError
from cmt.records import Document, Fingerprint
from tests.unit.bank_pieces import FINGERPRINT, add, keys_of, make_entry, make_piece

OTHER = Fingerprint(base_model="c" * 64, compressor="d" * 64)


@pytest.fixture
def filled(bank):
    add(bank, "Ann is the mayor.", 1, id="mayor", date="2020-01-01", metadata={"page": 3})
    add(bank, "Bob is the mayor.", 2, id="mayor", date="2024-01-01", supersede=True)
    add(bank, "Sänd.", 3, namespace="news", tags=["a", "b"], expires_at="2999-01-01")
    two = [make_piece("sand and silt", 4, end=5), make_piece("sand and silt", 5, start=5)]
    bank.add([(Document(text="sand and silt", id="two"), two)])
    return bank


@pytest.fixture
def exported(filled, tmp_path):
    folder = tmp_path / "export"
    report = transfer.export_bank(filled, folder)
    assert (report.documents, report.memories, report.damaged) == (4, 5, ())
    return folder


def everything(bank: Bank) -> list[tuple[object, ...]]:
    return [
        (document, [(p.start, p.end, p.tokens, p.key.tolist(), p.memory.tolist()) for p in pieces])
        for document, pieces in bank.entries()
    ]


@pytest.mark.parametrize("shard_bytes", [1, 1 << 20])
def test_everything_comes_back_history_and_dates_too(filled, tmp_path, monkeypatch, shard_bytes):
    monkeypatch.setattr(transfer, "SHARD_BYTES", shard_bytes)
    transfer.export_bank(filled, tmp_path / "export")
    shards = len(list((tmp_path / "export").glob("*.safetensors")))
    assert shards == (4 if shard_bytes == 1 else 1)
    with Bank.open(tmp_path / "copy.sqlite", FINGERPRINT) as copy:
        report = transfer.import_bank(copy, tmp_path / "export")
        assert (report.documents, report.memories, report.unchanged) == (4, 5, 0)
        assert everything(copy) == everything(filled)
        assert copy.verify() == []
        again = transfer.import_bank(copy, tmp_path / "export")
        assert (again.documents, again.unchanged) == (0, 4)
        assert [v.superseded_at for v in copy.history("mayor")] == ["2024-01-01", None]


def test_a_text_that_came_again_comes_back_as_often(bank, tmp_path, monkeypatch):
    monkeypatch.setattr("cmt.bank.write.now", lambda: "2025-01-01T12:00:00+00:00")
    for text, date in (("A", "2020"), ("B", "2022"), ("A", "2024"), ("B", None), ("A", None)):
        add(bank, text, 1, id="a", date=date, supersede=True)
    assert len(bank.history("a")) == 5
    transfer.export_bank(bank, tmp_path / "export")
    with Bank.open(tmp_path / "copy.sqlite", FINGERPRINT) as copy:
        report = transfer.import_bank(copy, tmp_path / "export")
        assert (report.documents, report.unchanged) == (5, 0)
        assert everything(copy) == everything(bank)
        assert transfer.import_bank(copy, tmp_path / "export").unchanged == 5
        monkeypatch.undo()
        add(copy, "C", 2, id="a", supersede=True)  # the export's latest is history now
        assert transfer.import_bank(copy, tmp_path / "export").unchanged == 5


@pytest.mark.parametrize("held", [["2020-05"], ["2026"], ["2020", "2023"]])
def test_versions_that_hold_at_the_time_of_others_are_refused(bank, tmp_path, held):
    for text, date in (("A", "2020"), ("B", "2022"), ("A", "2024")):
        add(bank, text, 1, id="a", date=date, supersede=True)
    transfer.export_bank(bank, tmp_path / "export")
    with Bank.open(tmp_path / "copy.sqlite", FINGERPRINT) as copy:
        for date in held:
            add(copy, "A", 1, id="a", date=date, supersede=True)
        versions = copy.history("a")
        with pytest.raises(InputError, match=r"document 'a': expected an id .* got another "):
            transfer.import_bank(copy, tmp_path / "export")
        assert copy.history("a") == versions


def test_the_only_version_with_another_date_is_unchanged(bank, tmp_path):
    add(bank, "A", 1, id="a", date="2020")
    transfer.export_bank(bank, tmp_path / "export")
    with Bank.open(tmp_path / "copy.sqlite", FINGERPRINT) as copy:
        add(copy, "A", 1, id="a", date="2021")
        assert transfer.import_bank(copy, tmp_path / "export").unchanged == 1
        assert copy.get("a").date == "2021"


def test_a_date_that_is_none_of_an_old_bank_comes_along(bank, tmp_path):
    add(bank, "sand", 1, id="a")
    folder = tmp_path / "export"
    transfer.export_bank(bank, folder)
    lines = folder / "documents.jsonl"
    lines.write_text(lines.read_text().replace('"date": null', '"date": "31.01.2020"'))
    resign(folder, lines.name)
    with Bank.open(tmp_path / "copy.sqlite", FINGERPRINT) as copy:
        transfer.import_bank(copy, folder)
        assert copy.get("a").date == "31.01.2020"
        assert copy.verify() == []


def test_others_can_read_the_files(exported):
    lines = [json.loads(line) for line in (exported / "documents.jsonl").open()]
    assert [line["text"] for line in lines][:2] == ["Ann is the mayor.", "Bob is the mayor."]
    (piece,) = lines[0]["pieces"]
    tensors = load_file(exported / piece["file"])
    expected = make_piece("", 1)
    assert torch.equal(tensors[f"memory.{piece['number']}"], expected.memory)
    assert torch.equal(tensors[f"key.{piece['number']}"], expected.key)
    manifest = json.loads((exported / "manifest.json").read_text())
    assert (manifest["base_model"], manifest["documents"]) == ("a" * 64, 4)


def test_an_interrupted_import_goes_on(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "_DOCUMENTS_AT_ONCE", 1)
    with Bank.open(tmp_path / "copy.sqlite", FINGERPRINT) as copy:
        seen = []

        def stop():
            seen.append(1)
            if len(seen) == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            transfer.import_bank(copy, exported, on_document=stop)
        report = transfer.import_bank(copy, exported)
        assert (report.documents, report.unchanged) == (2, 2)


def test_an_export_of_other_weights_is_refused(exported, tmp_path):
    with Bank.open(tmp_path / "other.sqlite", OTHER) as other:
        with pytest.raises(FingerprintMismatchError, match="expected an export of memories made"):
            transfer.import_bank(other, exported)


@pytest.mark.parametrize("name", ["documents.jsonl", "memories-00001.safetensors"])
def test_a_changed_file_is_refused_before_anything_is_imported(exported, tmp_path, name):
    content = bytearray((exported / name).read_bytes())
    content[-3] ^= 1
    (exported / name).write_bytes(content)
    with Bank.open(tmp_path / "copy.sqlite", FINGERPRINT) as copy:
        with pytest.raises(CorruptRecordError, match=rf"{name} as it was exported, got other"):
            transfer.import_bank(copy, exported)
        assert copy.count() == Counts(0, 0)


def test_a_missing_file_is_refused(exported, filled):
    (exported / "memories-00001.safetensors").unlink()
    with pytest.raises(CorruptRecordError, match="memories-00001"):
        transfer.import_bank(filled, exported)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "zip"}, "expected an export of format 'cmt-export' .* got 'zip'"),
        ({"version": 3}, "expected an export of version 1 to 2, got 3: upgrade"),
        ({"version": None}, "expected an export of version 1 to 2, got None: upgrade"),
        ({"files": None}, "expected the files of the export"),
        ({"files": {"documents.jsonl": {}, "../x": {}}}, "as it was exported|the name of a file"),
    ],
)
def test_a_wrong_manifest_is_refused(exported, filled, change, message):
    file = exported / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises((InputError, CorruptRecordError), match=message):
        transfer.import_bank(filled, exported)


def test_what_is_no_export_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"expected an export with a manifest\.json"):
        transfer.export_fingerprint(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": "cmt-export", "version": 1}')
    with pytest.raises(InputError, match="expected 'base_model' in"):
        transfer.export_fingerprint(tmp_path)


def test_a_tier_that_there_is_not_is_refused(exported):
    assert transfer.export_tier(exported) == "bf16"
    file = exported / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "tier": "int2"}))
    with pytest.raises(InputError, match=r"a tier out of bf16, int8, int4 in .*, got 'int2'"):
        transfer.export_tier(exported)


def resign(folder, name: str) -> None:
    """Make the manifest fit a changed file."""
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["files"][name] = transfer._described(folder / name)
    file.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "line",
    ["{}", "no json", '{"pieces": [], "tags": 3}', '{"pieces": [{"file": "x"}], "tags": []}'],
)
def test_a_wrong_line_is_named(exported, filled, line):
    lines = (exported / "documents.jsonl").read_text().splitlines()
    (exported / "documents.jsonl").write_text("\n".join([lines[0], line, *lines[1:]]) + "\n")
    resign(exported, "documents.jsonl")
    with pytest.raises(InputError, match=r"in line 2 of .*can't be read"):
        transfer.import_bank(filled, exported)


def test_another_text_under_an_id_is_not_replaced(exported, tmp_path):
    with Bank.open(tmp_path / "copy.sqlite", FINGERPRINT) as copy:
        add(copy, "Cid is the mayor.", 9, id="mayor")
        with pytest.raises(InputError, match="'mayor': expected an id that the bank doesn't hold"):
            transfer.import_bank(copy, exported)
        assert copy.get("mayor").text == "Cid is the mayor."


def test_damaged_documents_are_named_and_the_others_exported(filled, path, tmp_path):
    third = list(keys_of(filled))[2]
    outside = sqlite3.connect(path)
    outside.execute("UPDATE tensors SET data = x'00' WHERE memory_id = ?", (third,))
    outside.commit()
    outside.close()
    report = transfer.export_bank(filled, tmp_path / "export")
    assert report.documents == 3
    assert [problem.memory_id for problem in report.damaged] == [third]


def test_an_export_does_not_write_over_anything(exported, filled, tmp_path):
    with pytest.raises(InputError, match="expected a folder to be made for the export"):
        transfer.export_bank(filled, exported)
    with pytest.raises(InputError, match="expected a folder that can be written"):
        transfer.export_bank(filled, tmp_path / "none" / "export")
    (tmp_path / "again.partial").mkdir()
    (tmp_path / "again.partial" / "memories-00007.safetensors").touch()
    transfer.export_bank(filled, tmp_path / "again")
    assert not (tmp_path / "again" / "memories-00007.safetensors").exists()
    (tmp_path / "third.partial").mkdir()
    (tmp_path / "third.partial" / "notes.txt").touch()
    with pytest.raises(InputError, match=r"an interrupted export, got 'notes\.txt'"):
        transfer.export_bank(filled, tmp_path / "third")
    assert (tmp_path / "third.partial" / "notes.txt").exists()


def test_the_commands(filled, path, tmp_path):
    def run(*arguments):
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    folder, copy = tmp_path / "out", tmp_path / "copy.sqlite"
    done = run("export", folder, "--bank", path)
    assert done.stdout == f"exported 4 documents, 5 memories to {folder}\n"
    done = run("import", folder, "--bank", copy)
    assert done.stdout == "imported 4 documents, 5 memories; unchanged 0\n"
    done = run("import", folder, "--bank", copy, "--json")
    assert json.loads(done.stdout)["unchanged"] == 4
    outside = sqlite3.connect(copy)
    outside.execute("UPDATE documents SET title = 'x' WHERE id = 'two'")
    outside.commit()
    outside.close()
    done = run("export", tmp_path / "damaged", "--bank", copy, "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["documents"] == 3
    assert "document 'two': its fields don't match" in done.stderr


def test_entries_are_read_back_as_they_were_added(bank):
    entry = make_entry("sand", 1, id="a")
    bank.add([entry])
    ((document, (piece,)),) = bank.entries()
    assert document.document() == entry[0]
    assert torch.equal(piece.memory, entry[1][0].memory)
    assert torch.equal(piece.key, entry[1][0].key)
