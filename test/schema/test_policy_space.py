import pytest
import torch
from torch import nn

from torchrl_vla.schema import (
    ROBOT_SPACE,
    PolicySpace,
    SpaceError,
    check_robot_space,
    mark_space,
    space_of,
)

MODEL = PolicySpace("model", "ab12", "mean_std")


def test_a_policy_is_marked_once_and_again_with_the_same_space():
    policy = nn.Linear(1, 1)
    assert space_of(policy) is None
    mark_space(policy, MODEL)
    mark_space(policy, PolicySpace("model", "ab12", "mean_std"))
    assert space_of(policy) == MODEL


def test_another_space_than_the_trained_one_is_refused():
    policy = nn.Linear(1, 1)
    mark_space(policy, MODEL)
    with pytest.raises(SpaceError, match=r"expected model space ab12 \(mean_std\)"):
        mark_space(policy, PolicySpace("model", "ab12x", "min_max"))
    policy.policy_space = None
    mark_space(policy, ROBOT_SPACE)


def test_the_module_inside_a_compiled_one_is_marked():
    policy = nn.Linear(1, 1)
    compiled = torch.compile(policy, backend="eager")
    mark_space(compiled, MODEL)
    assert space_of(policy) == space_of(compiled) == MODEL


def test_a_model_space_policy_is_refused_where_robot_actions_are_expected():
    policy = nn.Linear(1, 1)
    check_robot_space("Executor", policy)
    mark_space(policy, MODEL)
    with pytest.raises(SpaceError, match=r"Executor: expected a policy in robot space"):
        check_robot_space("Executor", policy)


@pytest.mark.parametrize("arguments", [("model", None, None), ("robot", "ab12", None)])
def test_fingerprint_and_kind_belong_together(arguments):
    with pytest.raises(ValueError, match="expected a fingerprint with kind='model'"):
        PolicySpace(*arguments)
