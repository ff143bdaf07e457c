"""``torchrl-vla train``: a policy cloned from demonstrations."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from tyro.conf import OmitArgPrefixes

from torchrl_vla import recipes
from torchrl_vla._internal.named_objects import is_named_object
from torchrl_vla._internal.option_names import AnyHead, Head, Resize, VLMHead
from torchrl_vla.cli import library
from torchrl_vla.cli.options import OptionError, read_json
from torchrl_vla.profiling.profile_options import NO_PROFILE, ProfileOptions
from torchrl_vla.recipes.dataset_options import NO_DATASET_OPTIONS, DatasetOptions
from torchrl_vla.recipes.training_settings import TrainingSettings
from torchrl_vla.recipes.vlm_settings import NO_VLM_SETTINGS, VLMSettings

if TYPE_CHECKING:
    from tensordict.nn import TensorDictModuleBase

    from torchrl_vla.tokenizers import ActionTokenizerBase

_TINY, _VLM = "tiny", "vlm"
_VLM_LR = 1e-4  # of pretrained weights, unless --lr says otherwise
_SETTINGS = TrainingSettings(steps=3000, batch_size=256)
_ENCODERS = (
    "text_encoder",
    "image_encoder",
    "resize_images",
    "image_features",
    "train_encoders",
)
_TINY_OPTIONS = ("head", "chunk_size", "hidden", "tokenizer", *_ENCODERS)
_LEROBOT_OPTIONS = ("config", "rename_map", "train_on_padding")


@dataclass(frozen=True)
class Train:
    """Train a policy on demonstrations; run the command again to resume.

    The policy is a tiny one of ours, one of LeRobot's, or one of your own.
    """

    dataset: str
    """Demonstrations: a folder that `collect` wrote, the folder of a LeRobot dataset
    (v2.1 or v3.0; needs the extra `datasets`), its repo id `user/name` on the Hugging
    Face Hub, an HDF5 file of robomimic or LIBERO, or a function of your own as
    module:function."""
    folder: Path
    """Folder that receives the policy. It must be new or empty, or hold an unfinished
    training with the same options, which is then resumed."""
    dataset_options: OmitArgPrefixes[DatasetOptions] = NO_DATASET_OPTIONS
    policy: str = _TINY
    """Policy: `tiny`; `vlm`, a vision-language model (needs the extra `vlm` and
    --backbone); a type of LeRobot's (needs the extra `lerobot`): act, diffusion,
    smolvla, multi_task_dit, vqbet, pi0, pi05 or xvla; a LeRobot checkpoint to continue
    from, a folder or repo id; or a function of your own as module:function, which is
    called with those of metadata and instructions that it declares and returns an
    nn.Module that predicts a chunk."""
    config: str = "{}"
    """Fields of a LeRobot policy's configuration, as JSON, e.g.
    '{"chunk_size": 20, "n_action_steps": 10}'."""
    rename_map: str = "{}"
    """For a LeRobot checkpoint: the dataset's cameras to the policy's, as JSON, e.g.
    '{"front": "camera1"}'."""
    train_on_padding: bool = False
    """Accept a LeRobot policy whose loss counts the padding past an episode's end."""
    head: AnyHead | None = None
    """Head of `tiny`: regression (left out), tokens, gaussian, flow or diffusion; of
    `vlm`: flow (left out), parallel or tokens. `torchrl-vla finetune` takes all."""
    chunk_size: int | None = None
    """Actions per chunk of `tiny` and `vlm`; left out, 8."""
    hidden: int | None = None
    """Width of `tiny`; left out, 256."""
    tokenizer: str | None = None
    """Tokens that --head tokens writes one after the other: fast (fitted to the
    dataset; needs the extra `vlm`), beast, bins, or the folder of a FAST processor.
    Left out, 21 bins that are independent of each other, of `vlm` 256 bins."""
    text_encoder: str | None = None
    """Pretrained text encoder of `tiny`: minilm, smollm2 or minilm+smollm2 (need the
    extra `encoders`), or a language model of transformers (extra `vlm`), a folder or a
    repo id. Left out, bytes, trained from scratch."""
    image_encoder: str | None = None
    """Pretrained image encoder of `tiny`, or of a `vlm` that reads text alone:
    efficientnet-lite0 (extra `encoders`), a vision model of transformers (extra `vlm`),
    a folder or a repo id, or timm:NAME (extra `timm`). Left out, convolutions, trained
    from scratch."""
    resize_images: Resize = "refuse"
    """Resizing of images to the size that --image-encoder takes; `refuse` ends with an
    error where they have another."""
    image_features: Path | None = None
    """Folder of the features that --image-encoder computes of the dataset, once; it is
    written, or read if it is already there. Left out, every sampled image goes through
    the encoder."""
    train_encoders: bool = False
    """Train the pretrained encoders with the policy; without it they are frozen."""
    wordings: Path | None = None
    """JSON file of wordings, {"instruction": ["wording", ...]}: every sampled frame
    gets a random one. An instruction is kept only if it is listed itself."""
    clamp_labels: bool = False
    """Clamp demonstrated actions to the bounds that the dataset declares; without it
    actions beyond them are refused."""
    vlm: OmitArgPrefixes[VLMSettings] = NO_VLM_SETTINGS
    settings: OmitArgPrefixes[TrainingSettings] = _SETTINGS
    device: str | None = None
    """Device that the policy is trained on, e.g. `cuda`. Left out, the CPU, or where
    the checkpoint was trained."""
    profile: OmitArgPrefixes[ProfileOptions] = NO_PROFILE

    def run(self) -> None:
        """Train and write the policy, its metadata and the learning curve."""
        with library.joined_ranks(self.device) as ranks:
            log = self._train()
            if ranks.is_first:
                log.to_csv(self.folder / "learning_curve.csv")
                library.finish_training(self.folder)
                print(f"loss {log.losses[-1][1]:.4f}; policy in {self.folder}")

    def _train(self) -> recipes.TrainingLog:
        is_own = is_named_object(self.policy) and not Path(self.policy).exists()
        self._check(is_own)
        library.check_training_folder("train", self.folder)
        library.manual_seed(self.settings.seed)
        dataset = recipes.open_dataset(self.dataset, self.dataset_options)
        if self.clamp_labels:
            dataset = library.clamp_labels(dataset)
        if self.wordings is not None:
            wordings = library.Wordings.from_json(self.wordings)
            dataset = library.reword_demonstrations(dataset, wordings)
        if is_own:
            log = self._clone(library.make_own_policy(self.policy, dataset), dataset)
        elif self.policy == _VLM:
            head = self._head_of(VLMHead, "flow")
            policy = recipes.make_vlm_policy(
                dataset,
                self.vlm,
                chunk_size=self.chunk_size or 8,
                head=head,
                tokenizer=self._tokenizer(dataset),
                **self._encoders(),
            )
            log = self._clone(policy, dataset, head)
        elif self.policy == _TINY:
            head = self._head_of(Head, "regression")
            encoders = self._encoders()
            policy = recipes.make_policy(
                dataset,
                chunk_size=self.chunk_size or 8,
                head=head,
                hidden=self.hidden or 256,
                tokenizer=self._tokenizer(dataset),
                **encoders,
            )
            if self.image_features is not None:
                dataset = recipes.encode_images(
                    dataset, encoders["image_encoder"], self.image_features
                )
            log = self._clone(policy, dataset, head)
        else:
            log = self._train_lerobot(dataset)
        return log

    def _check(self, is_own: bool) -> None:
        """Refuse options of another policy, which would have no effect."""
        foreign: tuple[str, ...] = _TINY_OPTIONS
        hint = "Give sizes as --config, e.g. --config '{\"chunk_size\": 20}'."
        if is_own:
            foreign = (*_TINY_OPTIONS, *_LEROBOT_OPTIONS)
            hint = "Your function sets the sizes of its policy."
        elif self.policy == _VLM:
            foreign = ("hidden", "text_encoder", "image_features", *_LEROBOT_OPTIONS)
            hint = "They are for other policies. A vlm has --expert-hidden."
            if self.vlm.backbone is None:
                raise OptionError(
                    "train: expected --backbone with --policy vlm, the folder or repo "
                    "id of a vision-language model, got none."
                )
        elif self.policy == _TINY:
            foreign = _LEROBOT_OPTIONS
            hint = "They are for LeRobot's policies: --policy act."
        elif self.policy in library.KINDS:
            foreign = (*foreign, "rename_map")
            hint = "A new policy has the dataset's cameras. " + hint
        default = {field.name: field.default for field in fields(self)}
        if self.image_encoder is None:
            for name in ("resize_images", "image_features"):
                if vars(self)[name] != default[name]:
                    raise OptionError(
                        "train: expected --image-encoder with "
                        f"--{name.replace('_', '-')}, got none. The tiny encoder takes "
                        "images of any size, and is trained."
                    )
        if self.train_encoders and not (self.text_encoder or self.image_encoder):
            raise OptionError(
                "train: expected --text-encoder or --image-encoder with "
                "--train-encoders, got neither. The tiny encoders are always trained."
            )
        is_ours = self.policy in (_TINY, _VLM)
        if is_ours and self.tokenizer and self.head != "tokens":
            raise OptionError(
                "train: expected --head tokens with --tokenizer, got --head "
                f"{self.head or 'of the default'}."
            )
        given = [name for name in foreign if vars(self)[name] != default[name]]
        if self.policy != _VLM:
            given += self.vlm.given()
        if given:
            names = ", ".join("--" + name.replace("_", "-") for name in given)
            raise OptionError(
                f"train: expected no {names} with --policy {self.policy}. {hint}"
            )

    def _tokenizer(self, dataset: library.Demonstrations) -> ActionTokenizerBase | None:
        """Fit the tokenizer that was asked for."""
        if self.tokenizer is None:
            return None
        space = recipes.make_space(dataset.metadata, "tokens")
        return recipes.fit_tokenizer(
            self.tokenizer, dataset, space, self.chunk_size or 8
        )

    def _head_of(self, heads: Any, default: str) -> Any:
        """Return the head, if the policy has one of that name."""
        if self.head is not None and self.head not in get_args(heads):
            raise OptionError(
                f"train: expected --head of {get_args(heads)} with --policy "
                f"{self.policy}, got {self.head!r}."
            )
        return self.head or default

    def _encoders(self) -> dict[str, Any]:
        """Make the pretrained encoders that were asked for."""
        frozen = not self.train_encoders
        made: dict[str, Any] = {}
        if self.text_encoder is not None:
            made["text_encoder"] = library.make_text_encoder(
                self.text_encoder, frozen=frozen
            )
        if self.image_encoder is not None:
            made["image_encoder"] = library.make_image_encoder(
                self.image_encoder, resize=self.resize_images, frozen=frozen
            )
        return made

    def _clone(
        self,
        policy: TensorDictModuleBase,
        dataset: library.Demonstrations,
        head: AnyHead = "regression",
    ) -> recipes.TrainingLog:
        if self.device is not None:
            policy = policy.to(library.parse_device("train", self.device))
        space = recipes.make_space(dataset.metadata, head)
        settings = self.settings
        if self.policy == _VLM and settings.lr is None:
            settings = replace(settings, lr=_VLM_LR)
        log = recipes.train_behavior_cloning(
            policy,
            dataset,
            settings,
            space=space,
            folder=self.folder,
            profiler=self._profiler(),
        )
        self._save(policy, space)
        return log

    def _profiler(self) -> library.TrainingProfiler | None:
        return library.TrainingProfiler.from_options(self.profile, self.folder)

    def _train_lerobot(self, dataset: library.Demonstrations) -> recipes.TrainingLog:
        renamed = read_json("--rename-map", self.rename_map)
        policy = recipes.fit_lerobot_policy(
            self.policy,
            dataset,
            config=read_json("--config", self.config),
            device=self.device,
            **({"rename_map": renamed} if renamed else {}),
        )
        log = recipes.train_lerobot(
            policy,
            dataset,
            self.settings,
            train_on_padding=self.train_on_padding,
            folder=self.folder,
            profiler=self._profiler(),
        )
        self._save(policy, None, dataset.metadata)
        return log

    def _save(self, policy: TensorDictModuleBase, *about: Any) -> None:
        """Write the checkpoint; the first rank does."""
        ranks = library.Ranks.current()
        if ranks.is_first:
            recipes.save_checkpoint(self.folder, policy, *about)
        ranks.wait()
