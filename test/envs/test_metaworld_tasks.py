from __future__ import annotations

import pytest
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP

from torchrl_vla.envs.metaworld_tasks import INSTRUCTIONS, find_task
from torchrl_vla.schema import InstructionTable


def test_every_task_of_the_package_has_an_instruction_and_an_expert():
    names = {f"{task}-v3" for task in INSTRUCTIONS}
    assert names == set(ALL_V3_ENVIRONMENTS) == set(ENV_POLICY_MAP)
    assert len(names) == 50


def test_no_two_tasks_say_the_same():
    assert len(InstructionTable(INSTRUCTIONS.values())) == 50


def test_tasks_are_found_with_and_without_their_version():
    assert all(
        find_task(task) == find_task(f"{task}-v3") == task for task in INSTRUCTIONS
    )


@pytest.mark.parametrize("name", ["reach-v2", "Reach", "", "pick"])
def test_unknown_tasks_are_refused_with_the_known_ones(name):
    with pytest.raises(ValueError, match=rf"'assembly'.*'window-open'.*got '{name}'"):
        find_task(name)
