"""FAST action tokenizer: cosine transform, rounding, byte-pair encoding."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from torchrl_vla._internal.durable_files import write_json, write_text
from torchrl_vla._internal.extras import import_extra
from torchrl_vla._internal.file_origin import Origin, read_text
from torchrl_vla.schema import TokenError, check_positive_int
from torchrl_vla.tokenizers.byte_pair_merges import BytePairMerges
from torchrl_vla.tokenizers.byte_pair_vocabulary import BytePairVocabulary
from torchrl_vla.tokenizers.chunk_tokenizer import ChunkActionTokenizer, read_chunks
from torchrl_vla.tokenizers.fast_grammar import FASTGrammar

if TYPE_CHECKING:
    from torchrl_vla.tokenizers.byte_pair_vocabulary import LibraryTokenizer

_PROCESSOR, _TOKENIZER = "processor_config.json", "tokenizer.json"
_REMEDY = "Pass the folder of a FAST processor, or write one with to_folder."
_EXTRA = "vlm"


class FASTActionTokenizer(ChunkActionTokenizer):
    """Compress a chunk's frequencies into a few tokens.

    A chunk is transformed along its steps (orthonormal DCT-II), multiplied by ``scale``
    and rounded; the whole numbers, low frequencies first and for each all dimensions,
    are merged by byte-pair encoding. Smooth chunks take few tokens. Chunks are
    expected in normalized space; :meth:`fit` learns the merges from a dataset.

    Note:
        Numbers beyond those that the vocabulary has (smaller or larger than any in the
        data of :meth:`fit`) become the nearest that it has: see
        :func:`~torchrl_vla.tokenizers.tokenizer_report`.

    Args:
        bpe: text of a ``tokenizer.json`` of the library ``tokenizers``.

    Keyword Args:
        chunk_size: ``H``.
        action_dim: ``A``.
        min_token: the coefficient that character 0 stands for.
        scale: of the coefficients; larger is finer and takes more tokens.

    Raises:
        TokenError: the text is no byte-pair encoding of coefficients; an action is
            not finite; a sequence is malformed (names the position).
        ValueError: a size or the scale is out of its range.

    Examples:
        >>> times = torch.linspace(0, 1, 8)[None, :, None]
        >>> chunks = torch.sin(3 * times + torch.arange(40.0)[:, None, None])
        >>> tokenizer = FASTActionTokenizer.fit(chunks, vocab_size=80)
        >>> tokens = tokenizer.encode(chunks)
        >>> tokens.shape, tokenizer.is_token(tokens).sum(-1).max().item()
        (torch.Size([40, 8]), 4)
        >>> bool((tokenizer.decode(tokens) - chunks).abs().max() < 0.1)
        True

    Source: K. Pertsch et al., arXiv:2501.09747 (FAST).
    """

    nearest: Tensor

    def __init__(
        self,
        bpe: str,
        *,
        chunk_size: int,
        action_dim: int,
        min_token: int,
        scale: float = 10.0,
    ) -> None:
        super().__init__(chunk_size, action_dim)
        if not (scale > 0 and math.isfinite(scale)):
            raise ValueError(
                f"FASTActionTokenizer: expected a finite scale above 0, got {scale!r}."
            )
        self.bpe = bpe
        self.min_token = int(min_token)
        self.scale = float(scale)
        self.vocabulary = BytePairVocabulary(bpe)
        nearest = self.vocabulary.nearest_codes()
        self.register_buffer("nearest", nearest, persistent=False)
        merges = self.vocabulary.merges
        self.merger = None if merges is None else BytePairMerges(*merges)

    @classmethod
    def fit(
        cls,
        chunks: Tensor | Iterable[Tensor],
        *,
        scale: float = 10.0,
        vocab_size: int = 1024,
    ) -> FASTActionTokenizer:
        """Learn the merges from chunks. Needs the extra ``vlm``.

        Args:
            chunks: normalized, ``[N, H, A]``, or an iterable of ``[H, A]`` or
                ``[n, H, A]``.

        Keyword Args:
            scale: of the coefficients.
            vocab_size: tokens at most, without the end token.

        Raises:
            MissingExtraError: ``tokenizers`` is not installed.
            TokenError: the chunks differ in shape or are not finite, or have more
                different coefficients than ``vocab_size``.
        """
        check_positive_int(cls.__name__, "vocab_size", vocab_size)
        data = read_chunks("FASTActionTokenizer.fit", chunks)
        library = import_extra("tokenizers", _EXTRA, "FASTActionTokenizer.fit")
        found = _coefficients(data, scale)
        low, high = int(found.min()), int(found.max())
        if high - low >= min(vocab_size, BytePairVocabulary.max_codes):
            raise TokenError(
                f"FASTActionTokenizer.fit: expected at most {vocab_size} different "
                f"coefficients (vocab_size; {BytePairVocabulary.max_codes} at most), "
                f"got {low} to {high}. Pass a larger vocab_size or a smaller scale, "
                "and normalize the chunks."
            )
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.decoder = library.decoders.Fuse()
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            show_progress=False,
            special_tokens=[],
            initial_alphabet=[chr(code) for code in range(high - low + 1)],
        )
        texts = (_text(row) for row in (found - low).flatten(1))
        tokenizer.train_from_iterator(texts, trainer)
        return cls(
            tokenizer.to_str(),
            chunk_size=data.shape[1],
            action_dim=data.shape[2],
            min_token=low,
            scale=scale,
        )

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        *,
        chunk_size: int | None = None,
        action_dim: int | None = None,
    ) -> FASTActionTokenizer:
        """Read the files of a published processor, or of :meth:`to_folder`.

        Its Python is never run. ``tokenizer.json`` may lie in ``bpe_tokenizer/``.

        Args:
            folder: holds ``processor_config.json`` (``scale``, ``min_token``,
                ``vocab_size``, ``time_horizon``, ``action_dim``) and
                ``tokenizer.json``.

        Keyword Args:
            chunk_size: ``H``, where the files leave ``time_horizon`` open.
            action_dim: ``A``, likewise.

        Raises:
            FileNotFoundError: a file is missing.
            TokenError: the files don't fit each other or the arguments.
        """
        folder = Path(folder).expanduser()
        candidates = (folder / _TOKENIZER, folder / "bpe_tokenizer" / _TOKENIZER)
        files = [path for path in candidates if path.is_file()]
        if not files or not (folder / _PROCESSOR).is_file():
            raise FileNotFoundError(
                f"FASTActionTokenizer.from_folder: expected {_PROCESSOR} and "
                f"{_TOKENIZER} in {folder}, got "
                f"{sorted(path.name for path in folder.glob('*'))}. Pass the folder of "
                "a FAST processor, or write one with to_folder."
            )
        config = _read_config(folder / _PROCESSOR)
        sizes = {
            "chunk_size": _agreed("time_horizon", config, "chunk_size", chunk_size),
            "action_dim": _agreed("action_dim", config, "action_dim", action_dim),
        }
        made = cls(
            _read_text(files[0]),
            min_token=int(cast(int, config["min_token"])),
            scale=float(cast(float, config["scale"])),
            **sizes,
        )
        declared = config.get("vocab_size")
        if declared is not None and made.vocab_size - 1 > int(cast(int, declared)):
            raise TokenError(
                f"FASTActionTokenizer.from_folder: expected at most {declared} tokens "
                f"(vocab_size of {_PROCESSOR}) in {files[0]}, got "
                f"{made.vocab_size - 1}. The files are of two processors."
            )
        return made

    def to_folder(self, folder: str | Path) -> None:
        """Write the files that the published processor reads, and :meth:`from_folder`.

        Args:
            folder: is created if need be.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / _TOKENIZER, self.bpe)
        config = {
            "processor_class": "UniversalActionProcessor",
            "scale": self.scale,
            "vocab_size": self.vocab_size - 1,
            "min_token": self.min_token,
            "time_horizon": self.chunk_size,
            "action_dim": self.action_dim,
        }
        write_json(folder / _PROCESSOR, config)

    def to_config(self) -> dict[str, object]:
        """Return the byte-pair encoding and the sizes, from which it is rebuilt."""
        return self.config_of(
            bpe=self.bpe,
            chunk_size=self.chunk_size,
            action_dim=self.action_dim,
            min_token=self.min_token,
            scale=self.scale,
        )

    @property
    def vocab_size(self) -> int:
        """The tokens of the byte-pair encoding and the end token."""
        return self.vocabulary.size + 1

    @property
    def end_token(self) -> int:
        """The last token; it fills a sequence behind its end."""
        return self.vocabulary.size

    @property
    def sequence_length(self) -> int:
        """``L``: no two numbers merged, each of them split where characters can be."""
        return self.chunk_size * self.action_dim * self.vocabulary.tokens_per_code

    @property
    def first_steps(self) -> Tensor:
        """Zeros: each frequency moves all steps."""
        return torch.zeros(self.sequence_length, dtype=torch.int64)

    def make_grammar(self) -> FASTGrammar:
        """Return which tokens may follow: exactly ``H * A`` numbers must come out."""
        numbers = self.chunk_size * self.action_dim
        return FASTGrammar(self.vocabulary, numbers, self.sequence_length)

    @cached_property
    def _grammar(self) -> FASTGrammar:
        return self.make_grammar()

    @cached_property
    def _library(self) -> LibraryTokenizer:
        library = import_extra("tokenizers", _EXTRA, "FASTActionTokenizer.encode")
        return library.Tokenizer.from_str(self.bpe)

    def __getstate__(self) -> dict[str, object]:
        """Leave out what is made again from the text."""
        made = ("_library", "_grammar")
        return {key: value for key, value in vars(self).items() if key not in made}

    def coefficients(self, chunks: Tensor) -> Tensor:
        """Return the rounded coefficients of chunks, int64 ``[*B, H, A]``."""
        return _coefficients(chunks, self.scale)

    def encode(self, actions: Tensor) -> Tensor:
        """Turn chunks ``[*B, H, A]`` into tokens ``[*B, L]``."""
        self._check_chunks(actions)
        codes = self.coefficients(actions).flatten(-2) - self.min_token
        codes = self.nearest[codes.clamp_(0, len(self.nearest) - 1)]
        rows = codes.reshape(-1, codes.shape[-1])
        if self.merger is None:  # merges stay within words, which the library finds
            encoded = self._library.encode_batch_fast(
                [_text(row) for row in rows], add_special_tokens=False
            )
            ids = [row.ids for row in encoded]
            counts = torch.tensor([len(row) for row in ids])
            flat = torch.tensor([token for row in ids for token in row])
            flat, counts = flat.to(rows.device), counts.to(rows.device)
        else:
            flat, counts = self.merger(self.vocabulary.token_of_code[rows])
        width = self.sequence_length
        tokens = flat.new_full((len(rows), width), self.end_token)
        places = torch.arange(width, device=flat.device)
        tokens[places < counts.unsqueeze(-1)] = flat
        return tokens.view(*actions.shape[:-2], width)

    def decode(self, tokens: Tensor) -> Tensor:
        """Turn tokens ``[*B, L]`` into chunks; a malformed sequence raises."""
        self._check_sequences(tokens)
        rows = tokens.reshape(-1, tokens.shape[-1])
        codes = self.vocabulary.codes_of(rows, self.chunk_size * self.action_dim)
        if codes is None:
            self._grammar.check(rows)  # names the position
            raise AssertionError("FASTActionTokenizer: malformed and well-formed.")
        shape = (*tokens.shape[:-1], self.chunk_size, self.action_dim)
        basis = _dct_matrix(self.chunk_size, tokens.device)
        found = (codes + self.min_token).view(shape).to(basis.dtype)
        return (basis.T @ (found / self.scale)).to(torch.float32)


@lru_cache(maxsize=16)
def _dct_matrix(size: int, device: torch.device) -> Tensor:
    """Return the orthonormal DCT-II as a matrix, float64 ``[k, n]``.

    It is no buffer: a policy's ``bfloat16()`` must not round it.
    """
    step = torch.arange(size, dtype=torch.float64, device=device)
    angles = math.pi / size * torch.outer(step, step + 0.5)
    matrix = angles.cos() * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def _coefficients(chunks: Tensor, scale: float) -> Tensor:
    basis = _dct_matrix(chunks.shape[-2], chunks.device)
    return (basis @ chunks.to(basis.dtype)).mul_(scale).round_().long()


def _text(codes: Tensor) -> str:
    return "".join(map(chr, codes.tolist()))


def _read_text(path: Path) -> str:
    caller = "FASTActionTokenizer.from_folder"
    return read_text(Origin.of_file(caller, path, _REMEDY, TokenError), path)


def _read_config(path: Path) -> dict[str, object]:
    try:
        config = json.loads(_read_text(path))
        for key in ("min_token", "scale"):
            float(config[key])
    except (ValueError, TypeError, KeyError) as error:
        raise TokenError(
            f"FASTActionTokenizer.from_folder: expected JSON with numbers at "
            f"'min_token' and 'scale' in {path}, got {type(error).__name__}: {error}."
        ) from error
    return config


def _agreed(key: str, config: dict[str, object], name: str, given: int | None) -> int:
    stored = cast("int | None", config.get(key))
    if stored is None and given is None:
        raise TokenError(
            f"FASTActionTokenizer.from_folder: expected {name}, got neither an "
            f"argument nor {key!r} in {_PROCESSOR}. Pass {name}=."
        )
    if stored is not None and given is not None and stored != given:
        raise TokenError(
            f"FASTActionTokenizer.from_folder: expected {name}={stored} ({key!r} in "
            f"{_PROCESSOR}), got {given}. Leave the argument out."
        )
    return cast(int, stored if given is None else given)
