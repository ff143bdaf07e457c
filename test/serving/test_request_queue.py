from __future__ import annotations

import threading
from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrl_vla.serving import Leaves
from torchrl_vla.serving.request_queue import Outcome, RequestQueue, Waiting


def request(value: float = 0.0, rows: int = 1, width: int = 1, done=None) -> Waiting:
    state = torch.full((rows, width), value)
    return Waiting(Leaves((rows,), {("state",): state}), done or (lambda outcome: None))


def value_of(waiting: Waiting) -> float:
    return float(waiting.leaves.tensors["state",][0, 0])


def test_sessions_are_served_in_the_order_in_which_they_began_to_wait():
    queue = RequestQueue()
    for session in (3, 1, 2):
        queue.put(session, request(session))
    assert [value_of(queue.take()[0]) for _ in range(3)] == [3, 1, 2]
    assert queue.take() == []


def test_four_greedy_clients_delay_a_slow_one_by_one_round_at_most():
    """The greedy ones ask again and again; the slow one every seventh call."""
    queue, superseded = RequestQueue(), Counter()

    def done_for(session):
        return lambda outcome: superseded.update({session: 1})

    waits, asked = [], None
    for call in range(200):
        for session in ("a", "b", "c", "d"):
            queue.put(session, request(done=done_for(session)))
            queue.put(session, request(done=done_for(session)))
        if call % 7 == 0 and asked is None:
            queue.put("slow", request(99.0))
            asked = call
        if value_of(queue.take()[0]) == 99.0:
            waits.append(call - asked)
            asked = None
    assert len(waits) > 20
    assert max(waits) <= 4
    assert set(superseded) == {"a", "b", "c", "d"}
    assert superseded.total() > 1000  # each replaced request is told


def test_a_batch_holds_rows_of_one_signature_up_to_its_size():
    queue = RequestQueue(max_rows=5)
    for session, (rows, width) in enumerate([(2, 1), (2, 3), (2, 1), (4, 1), (1, 1)]):
        queue.put(session, request(session, rows, width))
    batches = []
    while batch := queue.take():
        batches.append([int(value_of(waiting)) for waiting in batch])
    assert batches == [[0, 2, 4], [1], [3]]


def test_a_request_larger_than_a_batch_is_served_alone():
    queue = RequestQueue(max_rows=2)
    queue.put("big", request(1.0, rows=7))
    queue.put("small", request(2.0))
    assert [len(queue.take()), len(queue.take())] == [1, 1]


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=60))
@settings(max_examples=80, deadline=None)
def test_every_request_is_taken_once_or_superseded_once(events):
    """Against a naive queue: a list of (session, number), the newest of each."""
    queue, naive, ended = RequestQueue(), [], Counter()
    for number, (session, takes) in enumerate(events):
        if takes:
            expected = naive.pop(0)[1] if naive else None
            batch = queue.take()
            assert (int(value_of(batch[0])) if batch else None) == expected
            if batch:
                batch[0].done(Outcome())
            continue
        queue.put(session, request(number, done=lambda o, n=number: ended.update([n])))
        places = [place for place, (who, _) in enumerate(naive) if who == session]
        if places:
            naive[places[0]] = (session, number)
        else:
            naive.append((session, number))
    assert all(times == 1 for times in ended.values())
    assert len(queue) == len(naive)


def test_a_client_that_is_gone_is_forgotten():
    queue = RequestQueue()
    queue.put(1, request(1.0))
    queue.put(2, request(2.0))
    queue.discard(1)
    queue.discard(7)
    assert value_of(queue.take()[0]) == 2.0


def test_a_closed_queue_gives_out_what_waits_and_then_ends():
    queue = RequestQueue()
    queue.put(1, request(1.0))
    queue.close()
    batch = queue.wait()
    assert batch is not None
    assert value_of(batch[0]) == 1.0
    assert queue.wait() is None


def test_threads_lose_and_repeat_nothing():
    queue, taken, superseded = RequestQueue(max_rows=3), Counter(), Counter()

    def ask(session: int) -> None:
        for number in range(200):
            key = 1000 * session + number
            queue.put(
                session, request(key, done=lambda o, k=key: superseded.update([k]))
            )

    def answer() -> None:
        while (batch := queue.wait()) is not None:
            taken.update(int(value_of(waiting)) for waiting in batch)

    worker = threading.Thread(target=answer)
    worker.start()
    askers = [threading.Thread(target=ask, args=(session,)) for session in range(4)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    queue.close()
    worker.join()
    every = {1000 * session + number for session in range(4) for number in range(200)}
    assert set(taken) | set(superseded) == every
    assert not set(taken) & set(superseded)
    assert (taken + superseded).total() == 800
