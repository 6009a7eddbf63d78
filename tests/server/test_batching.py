"""Questions share batches, documents take turns with them, and who leaves is not waited for."""

import asyncio
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from cmt.errors import InputError
from cmt.generation import Sampling
from cmt.memory import Memory
from cmt.records import Document
from cmt.server import Settings
from cmt.server.asking import Asking
from cmt.server.errors import OverloadedError, StoppingError
from cmt.server.jobs import Done, Found, Piece, Wish
from cmt.server.learning import Learning, last, merged
from cmt.server.metrics import Metrics
from cmt.server.turns import Turns
from tests.server.running import FACTS, serving

QUESTIONS = ["Who built the lighthouse of Arbon?", "What?", "How much does the delta grow a year?"]
GREEDY = Wish(memory=True, top_k=1, rerank=0)


@pytest.fixture
def batches(monkeypatch):
    """The questions of every batch, and a gate that batches wait at once it is closed."""
    steps = Memory.steps
    seen = []
    gate = threading.Event()
    gate.set()

    def watched(self, questions, **kwargs):
        seen.append(list(questions))
        reading, tokens = steps(self, questions, **kwargs)

        def gated():
            for step in tokens:
                assert gate.wait(30)
                yield step

        return reading, gated()

    monkeypatch.setattr(Memory, "steps", watched)
    seen_and_gate = seen, gate
    yield seen_and_gate
    gate.set()


class Queues:
    def __init__(self, memory, **settings):
        self.metrics = Metrics()
        turns = Turns()
        made = Settings(**settings)
        self.asking = Asking(memory, made, turns, self.metrics)
        self.learning = Learning(memory, made, turns, self.metrics)

    async def __aenter__(self):
        self.asking.start()
        self.learning.start()
        return self

    async def __aexit__(self, *_):
        await asyncio.gather(self.asking.stop(), self.learning.stop())

    async def answer(self, question, wish=GREEDY, tokens=8):
        return [event async for event in self.asking.ask(question, wish, tokens)]


def test_questions_that_wait_together_are_one_batch_and_keep_their_answers(memory, batches):
    seen, _ = batches
    lengths = [2, 8, 5]

    async def run():
        async with Queues(memory, batch_wait_seconds=1.0, batch_size=3) as queues:
            asked = zip(QUESTIONS, lengths, strict=True)
            return await asyncio.gather(*(queues.answer(q, tokens=n) for q, n in asked))

    answers = asyncio.run(run())
    assert seen == [QUESTIONS]
    for question, length, events in zip(QUESTIONS, lengths, answers, strict=True):
        alone = memory.ask(question, rerank=0, sampling=Sampling(max_new_tokens=length))
        assert isinstance(events[0], Found) and isinstance(events[-1], Done)
        assert events[-1].answer.text == alone.text
        assert "".join(e.text for e in events if isinstance(e, Piece)) == alone.text
        assert events[-1].answer.matches[0].memory_id == alone.matches[0].memory_id


def test_other_wishes_and_seeds_have_batches_of_their_own(memory, batches):
    seen, _ = batches
    seeded = Wish(memory=True, top_k=1, rerank=0, temperature=1.0, seed=3)
    wishes = [GREEDY, Wish(memory=False, top_k=1, rerank=0), GREEDY, seeded, seeded]

    async def run():
        async with Queues(memory, batch_wait_seconds=0.2, batch_size=5) as queues:
            names = [f"Question {n}?" for n in range(5)]
            await asyncio.gather(*(queues.answer(*one) for one in zip(names, wishes, strict=True)))

    asyncio.run(run())
    assert sorted(map(len, seen)) == [1, 1, 1, 2]
    assert ["Question 0?", "Question 2?"] in seen


def test_one_bad_question_does_not_spoil_the_others(memory):
    async def run():
        async with Queues(memory, batch_wait_seconds=0.5, batch_size=3) as queues:
            asked = [QUESTIONS[0], "long " * 900, QUESTIONS[1]]
            return await asyncio.gather(*map(queues.answer, asked), return_exceptions=True)

    good, bad, other = asyncio.run(run())
    assert isinstance(good[-1], Done) and isinstance(other[-1], Done)
    assert isinstance(bad, InputError) and "expected at most" in str(bad)


def test_generation_stops_when_everyone_has_left(memory, batches):
    seen, gate = batches
    gate.clear()

    async def run():
        async with Queues(memory, max_new_tokens=128) as queues:
            asked = queues.asking.ask(QUESTIONS[0], GREEDY, 128)
            assert isinstance(await anext(asked), Found)
            await asked.aclose()
            gate.set()
            await queues.answer(QUESTIONS[1], tokens=1)
            return queues.metrics

    metrics = asyncio.run(run())
    assert len(seen) == 2
    read = metrics.registry.get_sample_value
    assert read("cmt_left_questions_total") == 1
    assert read("cmt_generated_tokens_total") == 1  # the other question's


def test_a_question_whose_asker_left_before_its_batch_is_never_read(memory, batches):
    seen, gate = batches
    gate.clear()

    async def run():
        async with Queues(memory, batch_size=1) as queues:
            first = asyncio.create_task(queues.answer(QUESTIONS[0]))
            while not seen:
                await asyncio.sleep(0.01)
            second = asyncio.create_task(queues.answer(QUESTIONS[1]))
            await asyncio.sleep(0.01)
            second.cancel()
            await asyncio.wait([second])
            gate.set()
            await first

    asyncio.run(run())
    assert seen == [[QUESTIONS[0]]]


def test_too_many_are_refused(memory, batches):
    seen, gate = batches
    gate.clear()

    async def run():
        async with Queues(memory, batch_size=1, waiting_questions=1) as queues:
            first = asyncio.create_task(queues.answer(QUESTIONS[0]))
            while not seen:
                await asyncio.sleep(0.01)
            second = asyncio.create_task(queues.answer(QUESTIONS[1]))
            await asyncio.sleep(0.01)
            with pytest.raises(OverloadedError, match="1 questions are waiting"):
                await queues.answer(QUESTIONS[2])
            gate.set()
            await asyncio.gather(first, second)

    asyncio.run(run())


def test_who_leaves_while_waiting_gives_the_place_to_another(memory, batches):
    seen, gate = batches
    gate.clear()

    async def run():
        async with Queues(memory, batch_size=1, waiting_questions=1) as queues:
            first = asyncio.create_task(queues.answer(QUESTIONS[0]))
            while not seen:
                await asyncio.sleep(0.01)
            second = asyncio.create_task(queues.answer(QUESTIONS[1]))
            await asyncio.sleep(0.01)
            second.cancel()
            await asyncio.wait([second])
            third = asyncio.create_task(queues.answer(QUESTIONS[2]))
            await asyncio.sleep(0.01)
            gate.set()
            await asyncio.gather(first, third)
        assert seen == [[QUESTIONS[0]], [QUESTIONS[2]]]

    asyncio.run(run())


def test_all_may_leave_before_their_batch_is_full(memory, batches):
    seen, _ = batches

    async def run():
        async with Queues(memory, batch_wait_seconds=0.2) as queues:
            first = asyncio.create_task(queues.answer(QUESTIONS[0]))
            await asyncio.sleep(0.01)
            first.cancel()
            await asyncio.sleep(0.3)
            await queues.answer(QUESTIONS[1])
        assert seen == [[QUESTIONS[1]]]

    asyncio.run(run())


def test_stopping_finishes_what_was_accepted_and_takes_nothing_new(memory, batches):
    seen, gate = batches
    gate.clear()

    async def run():
        queues = await Queues(memory, batch_size=1).__aenter__()
        asked = [asyncio.create_task(queues.answer(question)) for question in QUESTIONS]
        documents = [Document(text=f"Fact {n}.", id=f"fact-{n}") for n in range(20)]
        learning = asyncio.create_task(last(queues.learning.learn(documents)))
        while not seen:
            await asyncio.sleep(0.01)
        stopping = asyncio.create_task(queues.__aexit__())
        await asyncio.sleep(0.01)
        with pytest.raises(StoppingError):
            await queues.answer("Late?")
        with pytest.raises(StoppingError):
            await last(queues.learning.learn(FACTS))
        gate.set()
        await stopping
        return await asyncio.gather(*asked), await learning

    answers, report = asyncio.run(run())
    assert all(isinstance(events[-1], Done) for events in answers)
    assert len(report.added) == 20 and memory.count().documents == 23


def test_a_long_document_lets_questions_in_between_its_passes(memory, batches):
    """Between two passes of one document there is room for a batch; none waits for the whole."""
    seen, _ = batches
    order = []
    turns = Turns()
    text = " ".join(f"Sentence {n} tells of the sea." for n in range(150))

    class Noted(Turns):
        def __call__(self):
            order.append(threading.current_thread().name.split("-")[1].split("_")[0])
            return turns()

    async def run():
        async with Queues(memory, pass_tokens=64, batch_size=1) as queues:
            queues.asking._turns = queues.learning._turns = Noted()
            learning = asyncio.create_task(last(queues.learning.learn([Document(text=text)])))
            while order.count("learns") < 2:
                await asyncio.sleep(0.001)
            passes = order.count("learns")
            for question in QUESTIONS:
                await queues.answer(question, tokens=1)
                assert not learning.done()
            report = await learning
            return passes, report

    _, report = asyncio.run(run())
    assert report.memories > 5
    assert len(seen) == 3
    last_question = len(order) - 1 - order[::-1].index("answers")
    assert order[last_question:].count("learns") > 1  # passes went on after the answers


def test_requests_with_documents_take_turns(memory):
    many = [Document(text=f"Fact {n}.", id=f"fact-{n}") for n in range(60)]
    few = [Document(text="A single fact.", id="single")]

    async def run():
        async with Queues(memory) as queues:
            long = asyncio.create_task(last(queues.learning.learn(many)))
            await asyncio.sleep(0)
            await last(queues.learning.learn(few))
            assert not long.done()
            return await long

    assert len(asyncio.run(run()).added) == 60


def test_who_leaves_keeps_what_was_told(memory):
    many = (Document(text=f"Fact {n}.", id=f"fact-{n}") for n in range(1000))

    async def run():
        async with Queues(memory) as queues:
            reports = queues.learning.learn(many)
            told = await anext(reports)
            await reports.aclose()
            return told

    told = asyncio.run(run())
    assert len(told.added) == 8
    held = {document.id for document in memory.documents()}
    assert set(told.added) <= held and len(held) < 100
    assert merged(told, told).added == told.added * 2


def test_turns_go_to_who_has_waited_longest():
    turns = Turns()
    order = []

    def wait(name):
        with turns():
            order.append(name)

    with ThreadPoolExecutor(4) as pool:
        with turns():
            for name in "abcd":
                before = turns.waiting
                pool.submit(wait, name)
                while turns.waiting == before:
                    time.sleep(0.001)
    assert order == list("abcd") and turns.waiting == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_stops_its_answer(memory, batches, stream):
    seen, gate = batches
    gate.clear()
    chat = {"model": "tiny-llama", "messages": [{"role": "user", "content": "Who?"}]}
    with serving(memory) as address, httpx2.Client(base_url=address, timeout=60) as client:
        host, port = address.removeprefix("http://").split(":")
        body = json.dumps({**chat, "max_tokens": 128, "stream": stream}).encode()
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            while not seen:
                time.sleep(0.01)
        while "cmt_left_questions_total 1.0" not in client.get("/metrics").text:
            time.sleep(0.01)
        gate.set()
        assert client.post("/v1/chat/completions", json=chat).status_code == 200
        generated = memory.ask("Who?").generated_tokens  # of the second question alone
        assert f"cmt_generated_tokens_total {generated:.1f}" in client.get("/metrics").text
