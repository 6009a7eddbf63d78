"""Question-answering datasets: one file a format, one shape for all of them."""

from cmt.datasets.archivalqa import load_archivalqa
from cmt.datasets.cloze import cloze_questions
from cmt.datasets.held_out import HeldOut
from cmt.datasets.jsonl import load_jsonl
from cmt.datasets.qa import QADataset, Question, hold_out, joined, stream
from cmt.datasets.realtimeqa import load_realtimeqa
from cmt.datasets.squad import load_squad, peers_protocol
from cmt.datasets.squad_hub import load_squad_from_hub
from cmt.datasets.streamingqa import load_streamingqa

__all__ = [
    "HeldOut",
    "QADataset",
    "Question",
    "cloze_questions",
    "hold_out",
    "joined",
    "load_archivalqa",
    "load_jsonl",
    "load_realtimeqa",
    "load_squad",
    "load_squad_from_hub",
    "load_streamingqa",
    "peers_protocol",
    "stream",
]
