"""Questions that a tuned copy writes on texts without labels, kept where another copy agrees.

The frozen model can't ask. A copy of it tuned on labelled passages writes questions with their
answers (as PAQ's generators, arXiv 2102.07033); those are kept to which a second copy, tuned to
answer after the passage, gives the very same answer (roundtrip consistency, arXiv 1906.05416).
What a compressor then learns from them is, sequence by sequence, distilled from a reader that saw
the text. Both copies are thrown away.

Shape legend: T target tokens of all sequences.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from cmt.base_model import BaseModel
from cmt.datasets.asking import Asked
from cmt.datasets.qa import QADataset
from cmt.generation import Sampling, generate
from cmt.methods.few_shot import after_passages, unsolved
from cmt.methods.materials import Materials
from cmt.methods.tuned_copy import QaTuningConfig, copy_of, end_token, sequence_logits, tune
from cmt.reading import ANSWER_PREFIX, QUESTION_PREFIX, question_tokens
from cmt.resident import chunks
from cmt.tokens import token_ids

WRITTEN = re.compile(rf"{QUESTION_PREFIX} ([^\n]+\?){ANSWER_PREFIX} ([^\n]+)\n")
MOST_PAIRS = 6  # that the writer is tuned to write one after another
MOST_PASSAGE_TOKENS = 320
BLOCK = 8192  # texts sorted by length together


class TunedAsker:
    """An `Asker` of two tuned copies: one writes, the other checks."""

    def __init__(
        self,
        writer: BaseModel,
        reader: BaseModel,
        *,
        temperature: float = 0.9,
        most_new_tokens: int = 128,
        batch_size: int = 512,
        seed: int = 0,
    ) -> None:
        """Ask with `writing_tuned`'s copy and `text_tuned`'s.

        Args:
            writer, reader: The copies; asked without gradients, in any float type.
            temperature: Of the questions' sampling.
            most_new_tokens: Written on a text, at most.
            batch_size: Texts written on together, and questions checked together.
            seed: Of the sampling.
        """
        self._writer, self._reader = writer, reader
        self._sampling = Sampling(
            max_new_tokens=most_new_tokens, temperature=temperature, seed=seed
        )
        self._batch = batch_size
        #: Pairs written so far, and those of them whose answer the reader gave too.
        self.written = self.agreed = 0

    def __call__(self, texts: Iterable[str]) -> Iterator[list[Asked]]:
        """Questions of each text, in the order of the texts."""
        for block in chunks(list(texts), BLOCK):
            yield from self._block(block)

    def _block(self, texts: Sequence[str]) -> list[list[Asked]]:
        passages = _passages(self._writer, texts)
        order = sorted(range(len(texts)), key=lambda number: len(passages[number]))[::-1]
        asked: list[list[Asked]] = [[] for _ in texts]
        for numbers in chunks(order, self._batch):
            written = self._write([passages[number] for number in numbers])
            pairs = [
                (number, pair)
                for number, own in zip(numbers, written, strict=True)
                for pair in dict.fromkeys(own)
                if pair[1] in texts[number]
            ]
            self.written += sum(map(len, written))
            for (number, (question, answer)), same in zip(
                pairs, self._agree(passages, pairs), strict=True
            ):
                self.agreed += same
                if same:
                    form = question.split()[0].lower()
                    asked[number].append(Asked(question=question, answer=answer, form=form))
        return asked

    def _write(self, passages: Sequence[Sequence[int]]) -> list[list[tuple[str, str]]]:
        """Questions and answers, as written on each passage."""
        writer = self._writer
        line = _line(writer)
        prompts = [[*passage, *line] for passage in passages]
        texts = generate(writer, prompts, sampling=self._sampling, shrinking=True)
        return [WRITTEN.findall(text) for text in writer.tokenizer.batch_decode(texts)]

    @torch.no_grad()
    def _agree(
        self,
        passages: Sequence[Sequence[int]],
        pairs: Sequence[tuple[int, tuple[str, str]]],
    ) -> list[bool]:
        """Whether the reader, word by word, would give each answer, and end there."""
        reader = self._reader
        questions = token_ids(reader.tokenizer, [unsolved([], q) for _, (q, _) in pairs])
        answers = token_ids(reader.tokenizer, [f" {answer}" for _, (_, answer) in pairs])
        line, end = _line(reader), end_token(reader)
        same: list[bool] = []
        for some in chunks(range(len(pairs)), self._batch):
            prompts = [after_passages([passages[pairs[i][0]]], line, questions[i]) for i in some]
            targets = [[*answers[i], end] for i in some]
            logits_TV, labels_T = sequence_logits(reader, prompts, targets)
            right_T = (logits_TV.argmax(-1) == labels_T).cpu()
            same += [bool(own.all()) for own in right_T.split([len(t) for t in targets])]
        return same


def writing_tuned(materials: Materials, config: QaTuningConfig) -> BaseModel:
    """The copy tuned to write a passage's questions with answers; trained once a folder.

    Raises:
        InputError: Neither steps nor minutes bound the training, or the tokenizer has no end token.
    """
    writer, data = copy_of(materials.base), materials.training
    asked = [numbers for numbers in data.questions_by_document() if numbers]
    texts = [data.documents[data.questions[numbers[0]].document].text for numbers in asked]
    line, end = _line(writer), end_token(writer)
    prompts = [[*passage, *line] for passage in _passages(writer, texts)]
    rng = np.random.default_rng((materials.seed, 17))
    drawn = [[int(n) for n in rng.permutation(numbers)[:MOST_PAIRS]] for numbers in asked]
    targets = [[*_pairs(writer, data, numbers), end] for numbers in drawn]
    folder = materials.state_folder("writing_tuned", config)
    tune(writer, prompts, targets, materials, config, folder)
    writer.name = f"{materials.base.name}-writing-tuned"
    return writer


def _pairs(writer: BaseModel, data: QADataset, numbers: Sequence[int]) -> list[int]:
    """Token ids of these questions and their shortest answers, one after another."""
    questions = question_tokens(writer.tokenizer, [data.questions[n].text for n in numbers])
    shortest = [" " + min(data.questions[n].answers, key=len) for n in numbers]
    answers = token_ids(writer.tokenizer, shortest)
    line = _line(writer)
    return [t for q, a in zip(questions, answers, strict=True) for t in (*q, *a, *line)]


def _passages(model: BaseModel, texts: Sequence[str]) -> list[list[int]]:
    return [tokens[:MOST_PASSAGE_TOKENS] for tokens in token_ids(model.tokenizer, list(texts))]


def _line(model: BaseModel) -> list[int]:
    return token_ids(model.tokenizer, ["\n"])[0]
