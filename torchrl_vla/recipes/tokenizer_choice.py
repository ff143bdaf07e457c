"""Choice of an action tokenizer by name, fitted to a dataset."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_vla.errors import SettingsError
from torchrl_vla.recipes.dataset_opening import Demonstrations
from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    ACTION_IS_PAD_KEY,
    ACTION_KEY,
    EPISODE_KEY,
    FRAME_KEY,
    IS_LABELED_KEY,
)
from torchrl_vla.spaces import ModelSpace, chunk_targets
from torchrl_vla.tokenizers import (
    ActionTokenizerBase,
    BEASTActionTokenizer,
    FASTActionTokenizer,
    UniformActionTokenizer,
)

#: Chunks that a tokenizer is fitted to, spread evenly over the dataset.
_MOST_CHUNKS = 20_000


def normalized_chunks(
    dataset: Demonstrations, space: ModelSpace, chunk_size: int
) -> Tensor:
    """Return a dataset's chunks in model space, float ``[N, H, A]``.

    Those of frames without a label are left out; past an episode's end the last action
    is repeated. At most 20,000, spread evenly.

    Args:
        dataset: no image is read.
        space: normalizes.
        chunk_size: ``H``.
    """
    names = (ACTION_KEY, EPISODE_KEY, FRAME_KEY, IS_LABELED_KEY)
    frames = dataset.frames.select(*names, strict=False)
    step = -(-len(frames) // _MOST_CHUNKS)
    rows = torch.arange(0, len(frames), step)
    found = chunk_targets(chunk_size, dataset.storage).forward(frames[rows])
    found = space.action_scaling.forward(found)
    return found[ACTION_CHUNK_KEY][~found[ACTION_IS_PAD_KEY][:, 0]]


def fit_tokenizer(
    name: str, dataset: Demonstrations, space: ModelSpace, chunk_size: int
) -> ActionTokenizerBase:
    """Make an action tokenizer for a dataset's chunks.

    Args:
        name: ``"bins"`` (256 of each number), ``"fast"`` (fitted; needs the extra
            ``vlm``), ``"beast"`` (a control point for two steps), or the folder of a
            FAST processor.
        dataset: that it is fitted to.
        space: that the policy is trained in; ``min_max``, so that actions are in
            ``[-1, 1]``.
        chunk_size: ``H``.

    Raises:
        SettingsError: there is no such tokenizer or folder.
        MissingExtraError: ``"fast"`` without ``tokenizers``.
    """
    match name:
        case "bins":
            return UniformActionTokenizer(256, low=-1.0, high=1.0)
        case "fast":
            return FASTActionTokenizer.fit(
                normalized_chunks(dataset, space, chunk_size)
            )
        case "beast":
            num_basis = min(chunk_size, max(4, chunk_size // 2))
            return BEASTActionTokenizer.fit(
                normalized_chunks(dataset, space, chunk_size),
                num_basis=num_basis,
                degree=min(3, num_basis - 1),
            )
    try:
        return FASTActionTokenizer.from_folder(
            name,
            chunk_size=chunk_size,
            action_dim=dataset.metadata.make_action_spec().shape[-1],
        )
    except FileNotFoundError as error:
        raise SettingsError(
            "fit_tokenizer: expected 'bins', 'fast', 'beast' or the folder of a FAST "
            f"processor as tokenizer, got {name!r} ({error})."
        ) from error
