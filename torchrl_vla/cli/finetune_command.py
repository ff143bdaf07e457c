"""``torchrl-vla finetune``: a cloned policy improved by reinforcement learning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Any

from tyro.conf import AvoidSubcommands, OmitArgPrefixes

from torchrl_vla import recipes
from torchrl_vla._internal.suggestions import did_you_mean
from torchrl_vla.cli import library
from torchrl_vla.cli.options import OptionError, open_environment
from torchrl_vla.profiling.profile_options import NO_PROFILE, ProfileOptions
from torchrl_vla.recipes.dataset_options import NO_DATASET_OPTIONS, DatasetOptions
from torchrl_vla.recipes.environment_options import EnvironmentOptions
from torchrl_vla.recipes.finetuning.algorithms import ALGORITHMS, GRPO, PPO, RLOO
from torchrl_vla.recipes.finetuning.finetune_settings import FinetuneSettings
from torchrl_vla.recipes.finetuning.off_policy_algorithms import OFF_POLICY, OffPolicy

_ENVIRONMENT = EnvironmentOptions(num_envs=256)
_PPO = PPO()
_SETTINGS = FinetuneSettings(algorithm=_PPO)
_ALGORITHMS: dict[str, Any] = {**ALGORITHMS, **OFF_POLICY}


@dataclass(frozen=True)
class Finetune:
    """Fine-tune a policy by reinforcement learning; run the command again to resume.

    `--algorithm grpo --help` lists the options of GRPO, and so on.
    """

    policy: Path
    """Folder that `train` wrote."""
    folder: Path
    """Folder that receives the log, the evaluations, the resumable state and the
    policy. An unfinished training of the same policy in it is resumed."""
    env: OmitArgPrefixes[EnvironmentOptions] = _ENVIRONMENT
    algorithm: str = "ppo"
    """Algorithm: `ppo` estimates advantages with a critic, `grpo` and `rloo` compare
    episodes that began alike. `rlpd` trains a Gaussian policy on a replay; `residual`
    (any policy), `dsrl` (a flow or diffusion policy) and `qc` (one that samples) keep
    the policy and learn around it, with far fewer steps."""
    algorithm_options: OmitArgPrefixes[AvoidSubcommands[PPO | GRPO | RLOO]] = _PPO
    settings: OmitArgPrefixes[FinetuneSettings] = _SETTINGS
    demonstrations: str | None = None
    """Dataset to clone beside the reinforcement learning, with --bc-coeff, or to mix
    into the batches of `rlpd`, `residual` and `qc`: a folder, an HDF5 file, a repo id
    or module:function."""
    dataset_options: OmitArgPrefixes[DatasetOptions] = NO_DATASET_OPTIONS
    initial_std: float | None = None
    """First standard deviation of a regression head, which becomes a Gaussian. Left
    out, 0.2."""
    flow_noise: float | None = None
    """Scale of the noise on the steps of a flow head that has none. Left out, 0.5."""
    device: str | None = None
    """Device of the policy, e.g. `cuda`. Left out, the CPU."""
    tensorboard: bool = False
    """Also write event files; needs the extra `tensorboard`."""
    profile: OmitArgPrefixes[ProfileOptions] = NO_PROFILE

    def run(self) -> None:
        """Fine-tune, and print how the policy changed."""
        with library.joined_ranks(self.device) as ranks:
            result = self._finetune()
            if ranks.is_first:
                print(result.comparison)
                print(f"policy in {self.folder / 'policy'}")

    def _sampling(self, policy: Any) -> Any:
        """Return the policy with log-probabilities, if the algorithm needs them."""
        match self.algorithm_options:
            case OffPolicy(trains_policy=False):
                given = [self.initial_std, self.flow_noise]
                if given != [None, None]:
                    raise OptionError(
                        "finetune: expected neither --initial-std of a Gaussian policy "
                        f"nor --flow-noise with --algorithm {self.algorithm}, which "
                        f"keeps the policy as it is, got {given}."
                    )
                return policy
        return recipes.to_stochastic(
            policy, initial_std=self.initial_std, flow_noise=self.flow_noise
        )

    def _finetune(self) -> recipes.FinetuneResult:
        given = self.dataset_options.given()
        if self.demonstrations is None and given:
            raise OptionError(
                f"finetune: expected --demonstrations beside {dict(given)}, which are "
                "options of a dataset, got none."
            )
        settings = replace(self.settings, algorithm=self.algorithm_options)
        library.manual_seed(settings.seed)
        policy, space = recipes.load_checkpoint(self.policy)
        policy = self._sampling(policy)
        num_envs, device = self.env.num_envs, self.device
        env = open_environment(self.env, settings.seed, device)
        eval_env = open_environment(
            self.env,
            settings.seed,
            device,
            num_envs=min(num_envs, settings.eval_episodes),
        )
        demonstrations = None
        if self.demonstrations is not None:
            demonstrations = recipes.open_dataset(
                self.demonstrations, self.dataset_options
            )
        result = recipes.finetune(
            policy.to(device or "cpu"),
            space,
            env,
            self.folder,
            settings,
            eval_env=eval_env,
            demonstrations=demonstrations,
            profiler=library.TrainingProfiler.from_options(self.profile, self.folder),
            tensorboard=self.tensorboard,
        )
        env.close()
        eval_env.close()
        return result


def finetune_command(arguments: Sequence[str]) -> type[Finetune]:
    """Return the command with the options of the algorithm that was asked for.

    Args:
        arguments: of the command line.

    Raises:
        OptionError: there is no such algorithm.
    """
    name = _value_of("--algorithm", arguments) or Finetune.algorithm
    if name not in _ALGORITHMS:
        raise OptionError(
            f"--algorithm: expected one of {sorted(_ALGORITHMS)}, got {name!r}."
            f"{did_you_mean(name, _ALGORITHMS)}"
        )
    kind: Any = _ALGORITHMS[name]
    made = make_dataclass(
        "Finetune",
        [("algorithm_options", _flat(kind), field(default=kind()))],
        bases=(Finetune,),
        frozen=True,
    )
    made.__doc__ = Finetune.__doc__
    return made


def _value_of(option: str, arguments: Sequence[str]) -> str | None:
    """Return the value of an option, written ``--option value`` or with ``=``."""
    for argument, following in zip(arguments, [*arguments[1:], None], strict=True):
        name, equals, value = argument.partition("=")
        if name == option:
            return value if equals else following
    return None


def _flat(kind: Any) -> Any:
    """Return the type of options that stand beside those of the command."""
    flat: Any = OmitArgPrefixes
    return flat[kind]
