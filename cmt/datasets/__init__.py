"""Question-answering datasets: one file a format, one shape for all of them."""

from cmt.datasets.qa import QADataset, Question, hold_out, stream
from cmt.datasets.squad import load_squad, peers_protocol
from cmt.datasets.squad_hub import load_squad_from_hub

__all__ = [
    "QADataset",
    "Question",
    "hold_out",
    "load_squad",
    "load_squad_from_hub",
    "peers_protocol",
    "stream",
]
