"""Table of the environments that have a name; it needs no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: The names of the environments.
EnvironmentName = Literal["tabletop", "metaworld", "libero", "pusht", "aloha"]

#: Those of them with a scripted expert: there one can collect, and see the demo.
ExpertEnvironmentName = Literal["tabletop", "metaworld"]

_MAKERS = "torchrl_vla.envs.environment_makers"


@dataclass(frozen=True)
class KnownEnvironment:
    """Describe an environment that has a name.

    Args:
        maker: its maker as ``"module:function"``; called with the tasks, and by name
            with ``num_envs``, ``image_size``, ``num_workers``, ``render_on_demand``
            and ``seed``.
        tasks: its tasks where none are asked for.
        noise: standard deviation of the noise on the expert's executed action; the
            intended action is the training target, so that the policy sees how to
            come back. None = the environment has no expert.
    """

    maker: str
    tasks: tuple[str, ...]
    noise: float | None = None


#: Maker, tasks and expert noise of each environment, by name.
ENVIRONMENTS: dict[str, KnownEnvironment] = {
    "tabletop": KnownEnvironment(
        maker=f"{_MAKERS}:make_tabletop", tasks=("reach",), noise=0.3
    ),
    "metaworld": KnownEnvironment(
        maker=f"{_MAKERS}:make_metaworld",
        tasks=(
            "reach",
            "push",
            "pick-place",
            "door-open",
            "drawer-close",
            "button-press",
        ),
        noise=0.1,
    ),
    "libero": KnownEnvironment(maker=f"{_MAKERS}:make_libero", tasks=("object",)),
    "pusht": KnownEnvironment(maker=f"{_MAKERS}:make_pusht", tasks=("push-t",)),
    "aloha": KnownEnvironment(maker=f"{_MAKERS}:make_aloha", tasks=("insertion",)),
}
