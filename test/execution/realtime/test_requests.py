from __future__ import annotations

from concurrent.futures import Future

import torch

from torchrl_vla.execution.realtime.requests import AsyncState, InFlightRequest
from torchrl_vla.execution.realtime.staggered_chunks import StaggeredChunks


def make_state():
    state = AsyncState(torch.ones(3, dtype=torch.bool))
    state.chunks = StaggeredChunks((torch.zeros(3, 4, 1), {}, 1))
    return state


def ask(state, rows, step):
    mask = torch.tensor(rows)
    request = InFlightRequest(mask, mask, torch.Size([sum(rows)]), step, Future())
    state.add(request)
    return request


def test_a_flight_stays_until_no_row_wants_its_answer():
    state = make_state()
    request = ask(state, [True, True, False], step=2)
    state.remove(request, torch.tensor([True, False, False]))
    assert request.envs.tolist() == [False, True, False]
    assert state.in_flight.tolist() == [False, True, False]
    assert state.requests == [request]
    assert not request.answer.cancelled()
    state.drop(torch.tensor([False, True, True]))
    assert state.requests == []
    assert request.answer.cancelled()


def test_a_row_that_drops_its_answer_leaves_those_of_others():
    state = make_state()
    first = ask(state, [True, False, False], step=2)
    second = ask(state, [False, True, True], step=3)
    state.drop(torch.tensor([True, True, False]))
    assert state.requests == [second]
    assert first.answer.cancelled()
    assert second.envs.tolist() == [False, False, True]


def test_the_newest_chunk_of_a_row_is_the_one_that_it_was_asked_about():
    state = make_state()
    state.step = 3
    for _ in range(4):  # steps 0 to 3 were served
        state.chunks.pop()
    assert state.newest_positions().tolist() == [4, 4, 4]
    ask(state, [False, True, False], step=2)
    # At the next step, 4, a chunk seen at step 2 will be at its index 2.
    assert state.newest_positions().tolist() == [4, 2, 4]
