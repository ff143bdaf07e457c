from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from torchrl_vla.execution.realtime.staggered_chunks import StaggeredChunks, select_envs


def answer(*values, size=3, serial=1):
    """Chunks value + h / 4, with the values as an output."""
    seen = torch.tensor(values, dtype=torch.float64)
    chunks = (seen[:, None] + torch.arange(size) / 4).unsqueeze(-1)
    return chunks, {"tokens": seen.long()}, serial


def test_rows_at_the_same_position_are_served_as_a_view():
    chunks, outputs, serial = answer(1, 2)
    held = StaggeredChunks((chunks, outputs, serial), position=1)
    action = held.pop()
    assert action.flatten().tolist() == [1.25, 2.25]
    assert action.untyped_storage().data_ptr() == chunks.untyped_storage().data_ptr()


def test_past_the_end_the_last_action_is_repeated():
    held = StaggeredChunks(answer(1, 2))
    held.replace(torch.tensor([False, True]), answer(5), position=2)
    served = [held.pop().flatten().tolist() for _ in range(5)]
    assert [row[0] for row in served] == [1.0, 1.25, 1.5, 1.5, 1.5]
    assert [row[1] for row in served] == [5.5] * 5
    assert held.positions.tolist() == [5, 7]


def test_nothing_that_was_handed_out_changes_when_rows_are_replaced():
    held = StaggeredChunks(answer(1, 2))
    action, tokens, serials = held.pop(), held.outputs["tokens"], held.serials
    held.replace(torch.tensor([True, False]), answer(7, serial=2), position=0)
    assert action.flatten().tolist() == [1.0, 2.0]
    assert tokens.tolist() == [1, 2]
    assert serials.flatten().tolist() == [1, 1]
    assert held.outputs["tokens"].tolist() == [7, 2]
    assert held.serials.flatten().tolist() == [2, 1]


def test_what_is_taken_can_be_put_elsewhere():
    held, other = StaggeredChunks(answer(1, 2, 3)), StaggeredChunks(answer(4, 5, 6))
    rows = torch.tensor([True, False, True])
    held.replace(rows, other.take(rows), position=1)
    assert held.pop().flatten().tolist() == [4.25, 2.0, 6.25]
    assert held.outputs["tokens"].tolist() == [4, 2, 6]


def test_environments_of_an_answer_keep_their_order_and_their_numbers():
    chunks, outputs, serials = select_envs(
        (*answer(1, 2, 3)[:2], torch.tensor([[5], [6], [7]])),
        torch.tensor([True, False, True]),
    )
    assert chunks[:, 0, 0].tolist() == [1, 3]
    assert outputs["tokens"].tolist() == [1, 3]
    assert serials.flatten().tolist() == [5, 7]


moves = st.lists(
    st.one_of(
        st.none(),
        st.tuples(st.lists(st.booleans(), min_size=3, max_size=3), st.integers(0, 2)),
    ),
    max_size=12,
)


@given(moves)
def test_agrees_with_one_list_and_one_position_per_row(drawn):
    held, next_value = StaggeredChunks(answer(1, 2, 3)), 4
    lists, positions = [[v, v + 0.25, v + 0.5] for v in (1, 2, 3)], [0, 0, 0]
    for move in drawn:
        if move is None:
            expected = [row[min(p, 2)] for row, p in zip(lists, positions)]
            assert held.pop().flatten().tolist() == expected
            positions = [p + 1 for p in positions]
        elif any(move[0]):
            rows, position = move
            new = list(range(next_value, next_value + sum(rows)))
            next_value += len(new)
            held.replace(torch.tensor(rows), answer(*new), position)
            for row in (i for i in range(3) if rows[i]):
                value = new.pop(0)
                lists[row] = [value, value + 0.25, value + 0.5]
                positions[row] = position
        assert held.positions.tolist() == positions


def test_one_environment_without_a_batch_is_served_alike():
    chunks, outputs, serial = answer(1)
    held = StaggeredChunks((chunks[0], {"tokens": outputs["tokens"][0]}, serial))
    held.replace(torch.tensor(True), answer(8), position=1)
    assert held.pop().tolist() == [8.25]
    assert held.positions.item() == 2
