from __future__ import annotations

import pytest
from metaworld.env_dict import ALL_V3_ENVIRONMENTS, MT10_V3
from metaworld.policies import ENV_POLICY_MAP

from torchrl_vla.envs.metaworld_tasks import (
    INSTRUCTIONS,
    SUITES,
    find_task,
    find_tasks,
)
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


def test_a_suite_has_as_many_tasks_as_its_name_says_and_no_task_twice():
    for name, tasks in SUITES.items():
        assert len(set(tasks)) == len(tasks) == int(name.removeprefix("mt"))
        assert find_tasks([name]) == tasks
        assert all(find_task(task) == task for task in tasks)
    assert {f"{task}-v3" for task in SUITES["mt10"]} == set(MT10_V3)
    assert find_tasks(["reach-v3", "push"]) == ("reach", "push")
