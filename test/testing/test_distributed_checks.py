from __future__ import annotations

import pytest
from ranked_trainings import LOSSES, Doubled, make_bc_loss, make_policy, make_rows

from torchrl_vla.testing import check_distributed

pytestmark = pytest.mark.xdist_group("ranks")


def test_a_policy_that_trains_on_two_ranks_as_on_one_passes():
    check_distributed(make_policy("chunk"), make_bc_loss, make_rows())


def test_a_loss_that_does_not_say_what_it_divides_by_is_found():
    with pytest.raises(AssertionError, match=r"ddp, rank 0.*layer.weight.*off by"):
        check_distributed(make_policy("chunk"), Doubled, make_rows())


def test_an_odd_batch_is_refused():
    with pytest.raises(ValueError, match="even number of rows, got 7"):
        check_distributed(make_policy("chunk"), LOSSES["chunk"], make_rows()[:7])
