"""Success of LIBERO's scripted experts on the official initial states.

    python benchmarks/libero_experts.py object            # all tasks that have a script
    python benchmarks/libero_experts.py spatial --noise 0.3 --workers 2
    python benchmarks/libero_experts.py object --random   # a policy without a purpose

Physics alone, about a second of CPU an episode. Prints a table for the docs.
"""

from __future__ import annotations

import argparse
import sys

from tensordict.nn import TensorDictModule

from torchrl_vla.envs import LiberoEnv, LiberoProtocol, SimulatorOptions
from torchrl_vla.envs.libero.libero_grasps import GRASPS
from torchrl_vla.evaluation import evaluate
from torchrl_vla.schema import ACTION_KEY, STATE_KEY


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", help="object, spatial or goal")
    parser.add_argument("--tasks", type=int, nargs="*", help="numbers; all, if none")
    parser.add_argument("--episodes", type=int, default=50, help="of each task")
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--random", action="store_true", help="random actions instead")
    arguments = parser.parse_args()
    protocol = LiberoProtocol(max_steps=arguments.max_steps)
    successes = total = 0
    print("| task | success | 95 % interval | steps |\n|---|---|---|---|")
    for task in LiberoEnv(arguments.suite, cameras=()).tasks:
        if (task.suite, task.name) not in GRASPS or (
            arguments.tasks and task.index not in arguments.tasks
        ):
            continue
        env = LiberoEnv(
            arguments.suite,
            [task.index],
            cameras=(),
            num_envs=max(1, arguments.workers),
            protocol=protocol,
            options=SimulatorOptions(num_workers=arguments.workers),
        )
        policy = env.make_expert(noise=arguments.noise)
        if arguments.random:
            spec = env.action_spec
            policy = TensorDictModule(
                lambda state, spec=spec: spec.rand(), [STATE_KEY], [ACTION_KEY]
            )
        result = evaluate(env, policy, arguments.episodes, progress=False)
        env.close()
        wins = [episode for episode in result.episodes if episode.success]
        steps = sum(episode.length for episode in wins) / max(1, len(wins))
        low, high = result.interval
        print(
            f"| {task.index} {task.instruction} | {len(wins)} of {len(result)} "
            f"| {100 * low:.0f} to {100 * high:.0f} % | {steps:.0f} |"
        )
        lost = [i for i, episode in enumerate(result.episodes) if not episode.success]
        print(f"{task.index}: lost initial states {lost}", file=sys.stderr)
        sys.stdout.flush()
        successes, total = successes + len(wins), total + len(result)
    print(f"| all | {successes} of {total} ({100 * successes / total:.1f} %) | | |")


if __name__ == "__main__":
    main()
