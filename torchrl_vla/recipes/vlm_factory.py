"""Factory of policies on a vision-language model that fit a dataset."""

from __future__ import annotations

from typing import get_args

from torchrl_vla._internal.option_names import VLMHead
from torchrl_vla.data.demonstrations import check_demonstrations
from torchrl_vla.policies import (
    VLM_HEADS,
    ExpertConfig,
    FlowTrainingConfig,
    LoRAConfig,
    TrunkConfig,
    VLAWrapperBase,
    VLMHeadConfig,
    load_trunk,
)
from torchrl_vla.policies.encoders.image_features import ImageEncoder
from torchrl_vla.recipes.dataset_opening import Demonstrations, image_sizes_of
from torchrl_vla.recipes.vlm_settings import VLMSettings
from torchrl_vla.schema import STATE_KEY
from torchrl_vla.tokenizers import ActionTokenizerBase

_NUM_BINS = 256


def make_vlm_policy(
    dataset: Demonstrations,
    settings: VLMSettings,
    *,
    chunk_size: int,
    head: VLMHead = "flow",
    image_encoder: ImageEncoder | None = None,
    tokenizer: ActionTokenizerBase | None = None,
) -> VLAWrapperBase:
    """Make a policy on a pretrained vision-language model that fits a dataset.

    The head is untrained. Image sizes, cameras, state and instructions are the
    dataset's; images of other sizes are refused.

    Args:
        dataset: gives the sizes, the cameras and the instructions.
        settings: of the model and its head; ``backbone`` is required.

    Keyword Args:
        chunk_size: ``H``.
        head: what the policy emits.
        image_encoder: for a language model that reads text alone.
        tokenizer: of the head ``tokens``, such as :func:`fit_tokenizer` makes it; None
            = 256 bins.

    Raises:
        ValueError: there is no backbone or no such head, or it takes no tokenizer.
        MissingExtraError: ``transformers`` is not installed.
        FileNotFoundError: there is no such folder.
        SchemaError: files of the model are missing, or it does not fit the dataset.
    """
    if head not in get_args(VLMHead) or settings.backbone is None:
        raise ValueError(
            f"make_vlm_policy: expected a head of {get_args(VLMHead)} and a backbone, "
            f"got {head!r} and {settings.backbone!r}. Pass the folder or repo id of a "
            "vision-language model."
        )
    if tokenizer is not None and head != "tokens":
        raise ValueError(
            f"make_vlm_policy: expected tokenizer=None for the head {head!r}, got a "
            f"{type(tokenizer).__name__}. Pass head='tokens'."
        )
    check_demonstrations("make_vlm_policy", dataset)
    sizes = image_sizes_of(dataset)
    has_state = STATE_KEY in dataset.frames.keys(True)
    lora = None
    if settings.lora_rank:
        lora = LoRAConfig(settings.lora_rank, alpha=2.0 * settings.lora_rank)
    config = TrunkConfig(
        image_sizes=tuple(sizes.values()),
        cameras=None if None in sizes else tuple(name for name in sizes if name),
        state_dim=dataset.metadata.state_dim if has_state else None,
        state=settings.state_input,
        prompt=settings.prompt,
        text_length=settings.text_length,
        attention=settings.attention,
        precision=settings.precision,
        frozen=settings.freeze,
        lora=lora,
        checkpoints_layers=settings.checkpoint_layers,
    )
    trunk = load_trunk(settings.backbone, config, image_encoder=image_encoder)
    made = VLM_HEADS[head](
        trunk,
        VLMHeadConfig(
            action_dim=dataset.metadata.make_action_spec().shape[-1],
            chunk_size=chunk_size,
            tokenizer=tokenizer,
            num_steps=settings.num_steps,
            expert=ExpertConfig(hidden=settings.expert_hidden),
            training=FlowTrainingConfig(
                max_delay=settings.max_delay,
                num_bins=_NUM_BINS if settings.insulate else None,
            ),
        ),
    )
    made.instructions = dataset.instructions
    return made
