"""A policy as a model server of vla-eval."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tensordict.nn import TensorDictModuleBase

from torchrl_vla._internal.extras import import_extra
from torchrl_vla.errors import ServingError
from torchrl_vla.serving.observation_leaves import Leaves
from torchrl_vla.serving.openpi_keys import OpenPIKeys
from torchrl_vla.serving.served_policy import ServedPolicy
from torchrl_vla.serving.server_manifest import ServerManifest
from torchrl_vla.serving.serving_mode import describe_policy


def make_vla_eval_server(
    policy: TensorDictModuleBase,
    manifest: ServerManifest | None = None,
    *,
    cameras: Mapping[str, str] | None = None,
    state: str = "states",
) -> Any:
    """Return vla-eval's ``PredictModelServer`` of a policy, which its harness asks.

    Its observations are ``images`` by camera, ``task_description`` and a state; its
    chunks are executed up to the policy's ``n_action_steps``. Actions are declared as
    raw numbers: their convention is that of the policy's training data.

    Args:
        policy: of robot space.
        manifest: what it is; None = :func:`describe_policy` of it.

    Keyword Args:
        cameras: vla-eval's camera to the policy's, e.g. ``{"agentview": "image"}``;
            None = their names agree.
        state: vla-eval's name of the state.

    Raises:
        MissingExtraError: the extra ``vla-eval`` is not installed.
        ServingError: the policy writes no chunk, or there is no such camera.
        SpaceError: the policy is of model space.

    Source: the package ``vla-eval``, 0.8. It is started with its
    ``vla_eval.model_servers.serve.serve(server, host, port)``.
    """
    caller = "make_vla_eval_server"
    base = import_extra("vla_eval.model_servers.predict", "vla-eval", caller)
    specs = import_extra("vla_eval.specs", "vla-eval", caller)
    manifest = describe_policy(policy) if manifest is None else manifest
    served = ServedPolicy(policy, manifest)
    keys = _keys(manifest, cameras, state)
    lock = threading.Lock()
    sizes = manifest.image_paths

    class Server(base.PredictModelServer):  # type: ignore[name-defined, misc]
        """Ask the policy for a chunk."""

        def predict(self, obs, ctx):
            images = obs.get("images", {})
            flat = {f"images/{name}": image for name, image in images.items()}
            leaves = keys.to_leaves({**obs, **flat})
            with lock:  # sessions are asked for in several threads
                answer = served.answer([leaves])[0]
            match answer:
                case Leaves():
                    return {"actions": answer.tensors["action_chunk",][0].numpy()}
            raise ServingError(answer.message)

        def get_action_spec(self):
            return {"raw": replace(specs.RAW, dims=manifest.action_dim)}

        def get_observation_spec(self):
            known = {"image": specs.IMAGE_RGB} if sizes else {}
            return {**known, **({"language": specs.LANGUAGE} if keys.prompt else {})}

    return Server(chunk_size=manifest.replan_interval or manifest.chunk_size)


def _keys(
    manifest: ServerManifest, cameras: Mapping[str, str] | None, state: str
) -> OpenPIKeys:
    """Return vla-eval's names as those of a flat observation."""
    paths = manifest.image_paths
    named = {name: name for name in paths} if cameras is None else cameras
    unknown = sorted(set(named.values()) ^ set(paths))
    if unknown:
        raise ServingError(
            f"make_vla_eval_server: expected a camera of vla-eval for each of "
            f"{sorted(paths)}, got {dict(named)}. Pass cameras={{theirs: ours}}."
        )
    ours = OpenPIKeys.of(manifest)
    vectors = list(ours.vectors.values())
    if len(vectors) > 1:
        raise ServingError(
            f"make_vla_eval_server: expected one state, got {vectors}. vla-eval's "
            "observations have one: serve a policy that reads one."
        )
    return OpenPIKeys(
        {f"images/{theirs}": paths[name] for theirs, name in named.items()},
        {state: vectors[0]} if vectors else {},
        None if ours.prompt is None else "task_description",
    )
