"""Comparison of the training path with the acting path, stage by stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from tensordict import NestedKey, TensorDictBase, is_tensor_collection, unravel_key
from torch import Tensor

from torchrl_vla.data import Demonstrations
from torchrl_vla.diagnosis.acting_path import ActingPath
from torchrl_vla.diagnosis.finding import STAGES, Finding
from torchrl_vla.diagnosis.image_difference import compare_images
from torchrl_vla.diagnosis.parity_trace import Chain
from torchrl_vla.diagnosis.value_relation import differing, explain
from torchrl_vla.schema import (
    HISTORY_KEY,
    IMAGE_KEY,
    INSTRUCTION_KEY,
    STATE_KEY,
    InstructionTable,
    instruction_texts,
    is_text,
)

#: Share of a dimension's range that a token may miss an action by.
_TOKEN_ERROR = 0.05


def compare_paths(
    chain: Chain, path: ActingPath, dataset: Demonstrations
) -> Iterator[Finding]:
    """Yield every difference between the two traces of the same frames."""
    if chain.acting.inputs is None and not chain.refusals:
        message = f"{type(path.executor).__name__} never called the policy's forward"
        yield Finding("policy call", f"{message}, so its inputs were not compared")
    yield from _images(chain)
    yield from _states(chain, dataset)
    yield from _tokens(chain)
    yield from _history(chain)
    yield from _instructions(chain, dataset, path)
    yield from _actions(chain, path, dataset)
    yield from _chunk_length(chain, path)


def stages_without_data(
    chain: Chain, path: ActingPath, dataset: Demonstrations
) -> tuple[str, ...]:
    """Return the stages that the policy and the data have nothing for."""
    keys = [unravel_key(key) for key in path.policy.in_keys]
    absent = {
        "action tokens": chain.training.decoded is None,
        "observation history": path.history_size == 1,
        "instruction text": INSTRUCTION_KEY not in keys,
        "control rate": dataset.metadata.control_frequency_hz is None,
    }
    if not any(IMAGE_KEY[-1] in key for key in keys):
        absent |= dict.fromkeys(
            ("cameras", *(stage for stage in STAGES if stage.startswith("image"))), True
        )
        absent["channel order"] = True
    return tuple(stage for stage in STAGES if absent.get(stage))


def images_in(data: TensorDictBase, key: NestedKey = IMAGE_KEY) -> dict[str, Tensor]:
    """Return the images by camera; ``"image"`` is one image without a name."""
    images = data.get(key, None)
    if images is None:
        return {}
    if not is_tensor_collection(images):
        return {"image": images}
    return {name: images.get(name) for name in sorted(images.keys())}


def compare_cameras(
    expected: Mapping[str, Tensor], got: Mapping[str, Tensor], source: str
) -> Iterator[Finding]:
    """Yield what differs between two sets of cameras, apart from their pixels."""
    missing, spare = set(expected) - set(got), set(got) - set(expected)
    if missing or spare:
        message = f"training has {sorted(expected)}, acting has {sorted(got)}"
        yield Finding("cameras", message, source)


def texts_of(data: TensorDictBase, table: InstructionTable | None) -> list[str] | None:
    """Return the instructions of ``[*B]`` frames; None = they have none."""
    value = data.get(INSTRUCTION_KEY, None)
    if value is None:
        return None
    if is_text(value):
        return list(instruction_texts(value))
    known = {} if table is None else dict(zip(table.ids.tolist(), table, strict=True))
    return [known.get(i, f"id {i}") for i in value.flatten().tolist()]


def _images(chain: Chain) -> Iterator[Finding]:
    training, acting = chain.training.inputs, chain.acting.inputs
    if training is None or acting is None:
        return
    for key in (IMAGE_KEY, (HISTORY_KEY, "image")):
        expected, got = images_in(training, key), images_in(acting, key)
        if key == IMAGE_KEY or (expected and got):
            reads_none = not got and key == IMAGE_KEY
            if not reads_none:
                yield from compare_cameras(expected, got, "training, acting")
        for camera in sorted(set(expected) & set(got)):
            frames = expected[camera][:, : got[camera].shape[1]]
            found = compare_images(camera, frames, got[camera])
            if found is not None:
                yield found


def _states(chain: Chain, dataset: Demonstrations) -> Iterator[Finding]:
    training, acting = chain.training.states, chain.acting.states
    for name in sorted(set(training) & set(acting)):
        expected, got = training[name], acting[name]
        if expected.shape[-1] != got.shape[-1]:
            message = f"{name!r} has {expected.shape[-1]} numbers in training and "
            message += f"{got.shape[-1]} in acting"
            yield Finding("action representation", message)
            continue
        names = dataset.metadata.state_names
        found = explain(
            expected[:, : got.shape[1]],
            got,
            what="normalized states",
            names=names if names and len(names) == got.shape[-1] else None,
        )
        if found is not None:
            yield found


def _tokens(chain: Chain) -> Iterator[Finding]:
    decoded, acting = chain.training.decoded, chain.acting.decoded
    normalized = chain.normalized
    if decoded is None or normalized is None:
        return
    real = ~chain.is_pad
    if acting is not None:
        gap = (acting - decoded)[real].abs().max().item()
        if gap > 1e-5:
            message = (
                f"one token stands for two actions, {gap:.4g} apart in model space"
            )
            yield Finding("action tokens", message)
    flat, quantized = normalized[real], decoded[real]
    spread = (flat.amax(0) - flat.amin(0)).clamp_min(1e-6)
    miss = ((quantized - flat).abs() / spread).amax(0)
    if (miss > _TOKEN_ERROR).any():
        worst = int(miss.argmax())
        low, high = flat[:, worst].min().item(), flat[:, worst].max().item()
        reach = quantized[:, worst]
        message = (
            f"tokens miss the training's actions by up to {100 * miss.max():.1f} % of "
            f"their range: dimension {worst} is {low:.4g}..{high:.4g} in model space, "
            f"its tokens reach {reach.min():.4g}..{reach.max():.4g}"
        )
        yield Finding("action tokens", message, "training")


def _history(chain: Chain) -> Iterator[Finding]:
    training, acting = chain.training.inputs, chain.acting.inputs
    if training is None or acting is None:
        return
    expected, got = training.get(HISTORY_KEY, None), acting.get(HISTORY_KEY, None)
    if expected is None and got is None:
        return
    sizes = [0 if part is None else part.shape[-1] for part in (expected, got)]
    if sizes[0] != sizes[1]:
        message = f"training reads {sizes[0]} observations, acting has {sizes[1]}"
        yield Finding("observation history", message)
        return
    assert expected is not None  # both sizes are the same
    assert got is not None
    states = [part.get(STATE_KEY[-1], None) for part in (expected, got)]
    if all(state is not None for state in states):
        flat = [state.flatten(2) for state in states if state is not None]
        steps = flat[1].shape[1]
        dims = differing(flat[0][:, :steps].flatten(0, 1), flat[1].flatten(0, 1))
        if len(dims):
            message = "the same frames have other states in their history"
            yield Finding("observation history", message)


def _instructions(
    chain: Chain, dataset: Demonstrations, path: ActingPath
) -> Iterator[Finding]:
    acting = chain.acting.inputs
    reads = INSTRUCTION_KEY in map(unravel_key, path.policy.in_keys)
    if acting is None or not reads:
        return
    seen = chain.frames[:, : acting.shape[1]]  # a refusal ends acting early
    expected = texts_of(seen, dataset.instructions)
    got = texts_of(acting, dataset.instructions)
    if expected is None or got is None:
        return
    wrong = [(a, b) for a, b in zip(expected, got, strict=True) if a != b]
    if wrong:
        message = f"{wrong[0][0]!r} in training is {wrong[0][1]!r} in acting, in "
        yield Finding("instruction text", message + f"{len(wrong)} frames")


def _actions(
    chain: Chain, path: ActingPath, dataset: Demonstrations
) -> Iterator[Finding]:
    expected, got = chain.training.chunk, chain.acting.chunk
    if expected is None or got is None or chain.target is None:
        return
    if expected.shape[-1] != got.shape[-1]:
        message = f"actions have {expected.shape[-1]} dimensions in training and "
        yield Finding("action representation", f"{message}{got.shape[-1]} in acting")
        return
    length = min(expected.shape[-2], got.shape[-2])
    whole = ~chain.is_pad[..., :length].any(-1)
    if not bool(whole.any()):  # every chunk ends with its episode
        length, whole = 1, ~chain.is_pad[..., 0]
    metadata = dataset.metadata
    names, state = metadata.action_names, chain.frames.get(STATE_KEY, None)
    wanted, sent = expected[..., :length, :][whole], got[..., :length, :][whole]
    clipped = _clipped(wanted, sent, path)
    if clipped is not None:
        yield clipped
        return
    found = explain(
        wanted,
        sent,
        what="actions",
        names=names,
        origin=None if state is None else state[whole],
    )
    if found is not None:
        yield found
    elif chain.acting.actions is not None:
        what = "actions that the executor sends"
        first, sent = expected[..., 0, :], chain.acting.actions
        found = explain(first, sent, what=what, names=names)
        if found is not None:
            yield found


def _clipped(wanted: Tensor, sent: Tensor, path: ActingPath) -> Finding | None:
    """Return the finding where the guard, and nothing else, changed the actions."""
    metadata = path.metadata
    if metadata is None or metadata.action_low is None or metadata.action_high is None:
        return None
    low, high = (torch.tensor(x) for x in (metadata.action_low, metadata.action_high))
    inside = torch.minimum(torch.maximum(wanted, low.to(wanted)), high.to(wanted))
    flat = [value.flatten(0, 1) for value in (wanted, inside, sent)]
    if not len(differing(flat[0], flat[1])) or len(differing(flat[1], flat[2])):
        return None
    share = (wanted != inside).any(-1).double().mean().item()
    message = f"{100 * share:.1f} % of the training's actions are clipped to the bounds"
    return Finding("action bounds", message)


def _chunk_length(chain: Chain, path: ActingPath) -> Iterator[Finding]:
    expected, got = chain.training.chunk, chain.acting.chunk
    sizes = {"policy": path.policy.chunk_size}
    if expected is not None:
        sizes["training"] = expected.shape[-2]
    if got is not None:
        sizes["acting"] = got.shape[-2]
    if len(set(sizes.values())) > 1:
        text = ", ".join(f"{name} {size}" for name, size in sizes.items())
        yield Finding("chunk length", f"chunks have other lengths: {text}")
