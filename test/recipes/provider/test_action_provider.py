from __future__ import annotations

import json

import pytest
import torch
from provider_parts import (
    CALLS,
    make_contract,
    make_nothing,
    make_observation,
    make_policy,
    make_translator,
)
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn

from torchrl_vla.data import collect
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.envs.toy import ToyVLAEnv
from torchrl_vla.errors import ActionGuardError, ActionProviderError, SchemaError
from torchrl_vla.execution import EmbodimentActionTranslator, EmbodimentContract
from torchrl_vla.policies.lerobot import KINDS
from torchrl_vla.recipes import (
    ActionProvider,
    ActionRequest,
    save_checkpoint,
)
from torchrl_vla.recipes import (
    make_policy as make_trained,
)
from torchrl_vla.spaces import ModelSpace


def ask(provider=None, observation=None, tag="arm", **options):
    provider = provider or ActionProvider(make_policy(), make_translator())
    observation = make_observation() if observation is None else observation
    return provider.select_actions(ActionRequest(observation, tag, **options))


def test_a_request_becomes_a_result_with_its_provenance():
    result = ask(action_horizon=4)
    expected = torch.tensor([[1.0, 1.0], [1.1, 1.1], [1.2, 1.2], [1.3, 1.3]])
    torch.testing.assert_close(result.raw_actions, expected)
    torch.testing.assert_close(result.actions, 10 * expected)
    metadata = json.loads(result.to_json())
    assert metadata.pop("latency_s") > 0
    assert metadata == {
        "mode": "predict_chunk",
        "embodiment_tag": "arm",
        "loader_mode": "policy",
        "policy": "TensorDictModule",
        "raw_action_summary": {
            "type": "Tensor",
            "shape": [4, 2],
            "preview": pytest.approx([1.0, 1.0, 1.1, 1.1, 1.2, 1.2, 1.3, 1.3]),
            "count": 8,
        },
        "translator_contract": {
            "contract": {
                **make_contract().to_dict(),
                "metadata": {"units": "rad", "api_key": "<withheld>"},
            },
            "out_contract": None,
        },
        "action_shape": [4, 2],
        "num_candidates": 1,
        "scores": None,
    }


def test_a_single_action_is_the_first_of_the_chunk():
    result = ask(mode="select_action")
    assert result.actions.tolist() == [[10.0, 10.0]]
    single = TensorDictModule(
        lambda s: s[..., :2], [("observation", "state")], ["action"]
    )
    provider = ActionProvider(single, make_translator())
    assert ask(provider, mode="select_action").actions.tolist() == [[10.0, 10.0]]


def test_a_chunk_of_a_policy_of_single_actions_is_refused_and_not_made_up():
    single = TensorDictModule(lambda s: s, [("observation", "state")], ["action"])
    with pytest.raises(
        ActionProviderError, match=r"writes \['action_chunk'\] for mode 'predict"
    ):
        ask(ActionProvider(single, make_translator()))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        (
            {"observation": TensorDict()},
            ActionProviderError,
            r"observation with entries",
        ),
        ({"observation": {"state": 1}}, TypeError, r"ActionRequest: expected a"),
        (
            {"mode": "guess"},
            ActionProviderError,
            r"\['select_action', 'predict_chunk'\]",
        ),
        ({"action_horizon": 0}, ValueError, r"'action_horizon', got 0"),
        (
            {"observation": TensorDict(other=torch.ones(2))},
            ActionProviderError,
            r"expected \[\('observation', 'state'\)\] in the observation",
        ),
    ],
)
def test_a_malformed_request_never_reaches_the_policy(options, error, match):
    CALLS.clear()
    with pytest.raises(error, match=match):
        ask(**options)
    assert CALLS == []


@pytest.mark.parametrize("mode", ["select_action", "predict_chunk"])
def test_a_policy_without_actions_is_refused_before_it_is_called(mode):
    CALLS.clear()
    policy = make_policy()
    policy.out_keys = ["value"]
    with pytest.raises(ActionProviderError, match=r"with out_keys \['value'\]"):
        ask(ActionProvider(policy, make_translator()), mode=mode)
    assert CALLS == []


@pytest.mark.parametrize("translator", [None, lambda chunk: chunk])
def test_a_translator_is_required(translator):
    with pytest.raises(
        ActionProviderError, match=r"EmbodimentActionTranslator at argument"
    ):
        ActionProvider(make_policy(), translator)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"tag": "other"}, ActionGuardError, r"embodiment_tag 'arm', got 'other'"),
        ({"observation": make_observation(float("nan"))}, ActionGuardError, r"nan"),
        ({"observation": make_observation(20.0)}, ActionGuardError, r"-9.0 .. 9.0"),
        (
            {"action_horizon": 3},
            ActionProviderError,
            r"action_horizon=3 actions, got 4",
        ),
    ],
)
def test_nothing_is_padded_dropped_or_sent_in_spite_of_the_contract(
    options, error, match
):
    with pytest.raises(error, match=match):
        ask(**options)


@pytest.mark.parametrize(
    ("contract", "match"),
    [
        (EmbodimentContract("arm", 3), r"action dimension A = 3, got 2"),
        (EmbodimentContract("arm", 2, action_horizon=5), r"horizon H = 5, got 4"),
    ],
)
def test_another_size_than_the_contracts_is_refused(contract, match):
    translator = EmbodimentActionTranslator(contract, lambda chunk, _: chunk)
    with pytest.raises(ActionGuardError, match=match):
        ask(ActionProvider(make_policy(), translator))


def test_each_way_of_loading_is_recorded(tmp_path):
    modes = {
        "policy": ActionProvider(make_policy(), make_translator()),
        "policy_loader": ActionProvider.from_loader(make_policy, make_translator()),
        "from_pretrained": ActionProvider.from_pretrained(
            "provider_parts:make_policy", make_translator()
        ),
    }
    for mode, provider in modes.items():
        assert ask(provider).loader_mode == mode
    assert modes["from_pretrained"].source == "provider_parts:make_policy"


def test_a_checkpoint_of_ours_answers_in_robot_space(tmp_path):
    env = TabletopEnv(2, image_size=16, seed=0)
    dataset = collect(env, env.make_expert(), 2, folder=tmp_path / "d", progress=False)
    policy = make_trained(dataset, chunk_size=4, hidden=8)
    space = ModelSpace(dataset.metadata)
    folder = save_checkpoint(tmp_path / "policy", policy, space)
    translator = EmbodimentActionTranslator(
        EmbodimentContract("tabletop", env.metadata.action_dim), lambda chunk, _: chunk
    )
    provider = ActionProvider.from_pretrained(folder, translator)
    observation = env.reset()
    result = ask(provider, observation, tag=None)
    expected = space.robot_policy(policy.eval())(observation.clone())["action_chunk"]
    assert torch.equal(result.actions, expected)
    assert result.loader_mode == "from_pretrained"


def test_a_policy_of_another_type_is_refused():
    provider = ActionProvider.from_pretrained(
        "provider_parts:make_policy", make_translator(), policy_type="act"
    )
    with pytest.raises(ActionProviderError, match=r"of type 'act' at .*, got None"):
        ask(provider)


@pytest.mark.parametrize("policy_type", sorted(KINDS))
def test_every_supported_type_is_accepted_at_construction(policy_type):
    provider = ActionProvider.from_pretrained(
        "owner/name", make_translator(), policy_type=policy_type
    )
    assert provider.loader_mode == "typed"


def test_an_unsupported_type_fails_at_construction_with_the_choices():
    with pytest.raises(ActionProviderError, match=r"'act', .*'smolvla', .*, got 'foo'"):
        ActionProvider.from_pretrained("a/b", make_translator(), policy_type="foo")


class Spy(nn.Module):
    """A policy that notes how it is prepared."""

    in_keys, out_keys = [("observation", "state")], ["action_chunk"]

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.calls: list[str] = []

    def to(self, device):
        self.calls.append(f"to {device}")
        return super().to(device)

    def reset(self):
        self.calls.append("reset")

    def forward(self, td):
        assert not torch.is_grad_enabled()
        return td.set("action_chunk", torch.zeros(4, 2))


def test_the_policy_is_moved_frozen_and_reset_once():
    spy = Spy()
    provider = ActionProvider(spy, make_translator())
    assert spy.calls == []  # nothing happens before the first use
    ask(provider)
    ask(provider)
    assert spy.calls == ["to cpu", "reset"]
    assert not spy.training
    assert not spy.weight.requires_grad


class Bare:
    """A policy without any of the optional methods."""

    in_keys, out_keys = [("observation", "state")], ["action_chunk"]

    def __call__(self, td):
        return td.set("action_chunk", torch.zeros(4, 2))


def test_a_policy_without_those_methods_is_called_as_it_is():
    assert ask(ActionProvider(Bare(), make_translator())).policy == "Bare"


class Breaks(Bare):
    error: Exception = KeyError("camera")

    def __call__(self, td):
        raise self.error


@pytest.mark.parametrize("error", [KeyError("camera"), SchemaError("no camera")])
def test_a_failure_of_the_policy_is_one_error_with_its_cause(error):
    policy = Breaks()
    policy.error = error
    with pytest.raises(ActionProviderError, match=r"camera") as caught:
        ask(ActionProvider(policy, make_translator()))
    assert caught.value.__cause__ is error


def test_a_failure_of_loading_is_the_same_error_with_its_cause():
    provider = ActionProvider.from_loader(make_nothing, make_translator())
    match = r"from 'make_nothing' \(policy_loader\), got OSError: no such checkpoint"
    with pytest.raises(ActionProviderError, match=match) as caught:
        ask(provider)
    assert isinstance(caught.value.__cause__, OSError)


def test_the_sink_receives_the_events_in_their_order():
    events = []
    provider = ActionProvider.from_loader(
        make_policy, make_translator(), sink=events.append
    )
    ask(provider)
    with pytest.raises(ActionGuardError):
        ask(provider, tag="other")
    assert [(event.operation, event.phase, event.error) for event in events] == [
        ("load", "start", None),
        ("load", "success", None),
        ("select_actions", "start", None),
        ("select_actions", "success", None),
        ("select_actions", "start", None),
        ("select_actions", "failure", "ActionGuardError"),
    ]
    assert [event.duration_s is None for event in events[:2]] == [True, False]
    failing = []
    provider = ActionProvider.from_loader(
        make_nothing, make_translator(), sink=failing.append
    )
    with pytest.raises(ActionProviderError):
        ask(provider)
    assert [event.phase for event in failing] == ["start", "failure"]


def sampler():
    """Candidate n adds n / 10."""

    def chunk(state):
        offset = torch.arange(len(state)).view(-1, 1, 1) / 10
        return state[:, None, :2].expand(-1, 4, -1) + offset

    return TensorDictModule(chunk, [("observation", "state")], ["action_chunk"])


def test_the_cheapest_of_several_candidates_is_chosen():
    seen = []

    def score(candidates, observation):
        seen.append(observation["observation", "state"].tolist())
        return (candidates[:, 0, 0] - 12.0).abs()  # candidates at 10, 11, 12, 13, 14

    provider = ActionProvider(
        sampler(), make_translator(), num_candidates=5, scorer=score
    )
    result = ask(provider)
    assert result.candidates.shape == (5, 4, 2)
    assert result.actions[0, 0].item() == pytest.approx(12.0)
    assert result.scores == pytest.approx((2, 1, 0, 1, 2), abs=1e-5)
    assert result.metadata["num_candidates"] == 5
    assert seen == [[1.0, 1.0, 1.0]]


def test_candidates_and_a_scorer_belong_together():
    for options in ({"num_candidates": 2}, {"scorer": lambda c, o: c.sum((1, 2))}):
        with pytest.raises(
            ActionProviderError, match=r"a scorer for several candidates"
        ):
            ActionProvider(sampler(), make_translator(), **options)


@pytest.mark.parametrize("costs", [torch.zeros(3), torch.tensor([0.0, float("nan")])])
def test_costs_that_choose_nothing_are_refused(costs):
    provider = ActionProvider(
        sampler(), make_translator(), num_candidates=2, scorer=lambda c, o: costs
    )
    with pytest.raises(ActionProviderError, match=r"finite costs \[2\] of the scorer"):
        ask(provider)


def test_a_translator_that_changes_the_number_of_candidates_is_refused():
    translator = EmbodimentActionTranslator(make_contract(), lambda chunk, _: chunk[:1])
    provider = ActionProvider(
        sampler(), translator, num_candidates=2, scorer=lambda c, o: c.sum((1, 2))
    )
    with pytest.raises(ActionGuardError, match=r"batch dimensions .*\[2\]"):
        ask(provider)


def test_a_toy_environment_executes_the_plan_the_same_every_time():
    def run():
        env = ToyVLAEnv(batch_size=[1], seed=0)
        policy = TensorDictModule(
            lambda s: s[..., None, :4].tanh().expand(-1, 3, -1) / 2,
            [("observation", "state")],
            ["action_chunk"],
        )
        translator = EmbodimentActionTranslator(
            EmbodimentContract.from_metadata(env.metadata), lambda chunk, _: chunk
        )
        provider, log = ActionProvider(policy, translator), []
        td = env.reset()
        for _ in range(3):
            observation = td.select("observation")
            plan = provider.select_actions(ActionRequest(observation)).actions
            for action in plan.unbind(-2):
                td = env.step(td.set("action", action))["next"]
                log.append((action.tolist(), td["reward"].item()))
        return log

    first = run()
    assert len(first) == 9
    assert first == run()
