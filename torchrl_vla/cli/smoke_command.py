"""``torchrl-vla smoke``: one request to a policy, before anything moves."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchrl_vla import recipes
from torchrl_vla._internal.durable_files import write_text
from torchrl_vla._internal.named_objects import import_named
from torchrl_vla._internal.option_names import ActionMode
from torchrl_vla.cli.options import OptionError


@dataclass(frozen=True)
class Smoke:
    """Load a policy, call it once, translate its actions, and say what came out.

    Nothing is sent to a robot. A policy's numbers are no robot's, so a translator is
    required.
    """

    policy: str | None = None
    """Policy in robot space: a folder of ours or a LeRobot checkpoint (a folder or a
    repo id), or a function of your own as module:function, called without arguments."""
    observation: str | None = None
    """Function as module:function that returns an observation, a tensordict in the
    canonical schema."""
    translator: str | None = None
    """Function as module:function that returns an EmbodimentActionTranslator, from the
    policy's actions to the robot's."""
    policy_type: str | None = None
    """LeRobot's type that the checkpoint must have, e.g. act."""
    mode: ActionMode = "predict_chunk"
    """The whole chunk, or the next action alone."""
    device: str = "cpu"
    """Device of the policy."""
    json: Path | None = None
    """File that receives the result's metadata: mode of loading, latency, summary of
    the policy's own actions, contract."""
    manifest: Path | None = None
    """File that receives what a host needs to run a LeRobot policy; nothing is
    loaded."""

    def run(self) -> None:
        """Ask once, print the result, write the files that were asked for."""
        if self.manifest is not None:
            write_text(self.manifest, json.dumps(recipes.runtime_manifest(), indent=2))
            print(f"manifest written to {self.manifest}")
            return
        provider = recipes.ActionProvider.from_pretrained(
            self._given("policy"),
            self._made("translator"),
            policy_type=self.policy_type,
            device=self.device,
        )
        request = recipes.ActionRequest(self._made("observation"), mode=self.mode)
        result = provider.select_actions(request)
        print(f"policy       {result.policy} ({result.loader_mode})")
        print(f"embodiment   {result.embodiment_tag}")
        print(f"actions      {list(result.actions.shape)} in {result.latency_s:.3f} s")
        print(f"preview      {list(result.raw_action_summary.preview)}")
        if self.json is not None:
            write_text(self.json, result.to_json())

    def _given(self, option: str) -> str:
        value = vars(self)[option]
        if value is None:
            raise OptionError(
                f"--{option}: expected one, got none. A smoke test takes --policy, "
                "--observation and --translator."
            )
        return value

    def _made(self, option: str) -> Any:
        return import_named(f"--{option}", self._given(option))()
