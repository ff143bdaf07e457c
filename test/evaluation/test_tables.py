from __future__ import annotations

import pytest

from torchrl_vla.evaluation import (
    EpisodeRecord,
    PairedTable,
    SequentialTable,
    UnpairedTable,
    confidence_sequence,
    e_value,
    fisher_test,
    mcnemar_test,
    newcombe_interval,
    newcombe_paired_interval,
)


def episodes(outcomes):
    return [EpisodeRecord(i, "", bool(o), 0.0, 1) for i, o in enumerate(outcomes)]


A, B = episodes([1, 1, 1, 1, 0, 0]), episodes([1, 0, 0, 0, 1, 0])


@pytest.mark.parametrize("kind", [PairedTable, SequentialTable])
def test_pairs_are_counted_by_what_became_of_them(kind):
    table = kind.from_episodes(A, B)
    assert type(table) is kind
    assert table.counts == {"both": 1, "only_a": 3, "only_b": 1, "neither": 1}
    assert table.episodes == 6
    assert table.rates == (4 / 6, 2 / 6)
    assert table.difference == pytest.approx(1 / 3)


def test_a_paired_table_has_newcombes_interval_and_mcnemars_test():
    table = PairedTable(30, 12, 3, 5)
    assert table.interval(0.9) == newcombe_paired_interval(30, 12, 3, 5, 0.9)
    assert table.p_value == mcnemar_test(12, 3)


def test_a_sequential_table_has_those_that_survive_peeking():
    table = SequentialTable(30, 12, 3, 5)
    assert table.interval(0.9) == confidence_sequence(12, 3, 35, 0.9)
    assert table.p_value == pytest.approx(1 / e_value(12, 3))
    assert SequentialTable(3, 1, 1, 0).p_value == 1.0


def test_an_unpaired_table_takes_other_numbers_of_episodes():
    table = UnpairedTable.from_episodes(A, B[:4])
    assert table.counts == {
        "successes_a": 4,
        "episodes_a": 6,
        "successes_b": 1,
        "episodes_b": 4,
    }
    assert table.rates == (4 / 6, 1 / 4)
    assert table.interval(0.9) == newcombe_interval(4, 6, 1, 4, 0.9)
    assert table.p_value == fisher_test(4, 6, 1, 4)
