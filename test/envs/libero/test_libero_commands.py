"""The documented commands on LIBERO, with one task and one episode."""

from __future__ import annotations

import pytest

from torchrl_vla.cli.main import main
from torchrl_vla.envs import LiberoEnv, LiberoProtocol
from torchrl_vla.envs.libero.libero_simulator import LiberoSimulation
from torchrl_vla.errors import SettingsError
from torchrl_vla.evaluation import EvaluationResult, evaluate
from torchrl_vla.rollout import RandomActions

pytestmark = [pytest.mark.libero, pytest.mark.xdist_group("libero")]


@pytest.mark.parametrize(("policy", "rate"), [("random", 0.0), ("scripted", 1.0)])
def test_a_random_and_a_scripted_policy_are_evaluated(
    policy, rate, tmp_path, monkeypatch
):
    def count(simulation):
        drawn.append(simulation)
        return render(simulation)

    drawn, render = [], LiberoSimulation.render
    monkeypatch.setattr(LiberoSimulation, "render", count)
    out = tmp_path / "result.json"
    task = ["--env", "libero", "--tasks", "libero_object/6", "--num-envs", "1"]
    options = ["--episodes", "1", "--render-on-demand", "--image-size", "16"]
    command = ["evaluate", *task, "--policy", policy, *options, "--json", str(out)]
    assert main(command) == 0
    assert EvaluationResult.from_json(out).success_rate == rate
    assert len(drawn) <= 2  # the layout, and the reset


def test_more_episodes_than_official_states_are_refused_before_the_first(capsys):
    task = ["--env", "libero/object/6", "--policy", "random", "--episodes", "51"]
    assert main(["evaluate", *task, "--num-envs", "1"]) == 1
    err = capsys.readouterr().err
    assert "expected at most 50 episodes" in err
    assert "(--episodes 50) or fewer" in err


def test_chosen_states_and_several_tasks_are_counted():
    chosen = LiberoProtocol(initial_states=(3, 4, 4))
    env = LiberoEnv("object", [1, 6], cameras=(), protocol=chosen)
    assert env.official_episodes == 4
    assert LiberoEnv("object", cameras=()).official_episodes == 500
    policy = RandomActions(env.action_spec)
    with pytest.raises(SettingsError, match=r"at most 4 episodes, .* got episode 4,"):
        evaluate(env, policy, 1, first=4, progress=False)
