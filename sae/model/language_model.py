"""A causal language model and its tokenizer, from the hub, a local folder or a package (its GGUF file is converted); loaded once."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Float, Int, Integer
from pydantic import Field, model_validator
from torch import nn

from sae.errors import ArtefactError, ConfigError, DataError, ReadsAheadError
from sae.foundation.downloads import PackagePart, Sha256, cache_dir, check_sha256, join_members
from sae.foundation.section import Section
from sae.model.blocks import Blocks, find_blocks, first_tensor, probe_ids
from sae.model.model_folder import folder_sha256, read_folder
from sae.model.spread import spread

CONVERTER_VERSION = 1


class _Common(Section):
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Arithmetic of the forward pass; auto: bfloat16 on a GPU, and on a CPU that has instructions for it.",
    )
    spread: bool = Field(
        default=False,
        description="Spread the model's blocks over all GPUs of the machine, for a model that fits none alone. Dictionaries train "
        "on the first GPU.",
    )
    prepend_bos: Literal["auto"] | bool = Field(
        default="auto",
        description="Put the beginning-of-sequence token before every context; auto: as the tokenizer does.",
    )


class HubModel(_Common):
    """A model of the Hugging Face hub."""

    source: Literal["hub"] = Field(description="Where the model comes from.")
    repo: str = Field(min_length=1, description="Repository, for example openai-community/gpt2.")
    revision: str | None = Field(default=None, description="Commit (40 hexadecimal digits) that pins the model.")
    allow_unpinned: bool = Field(default=False, description="Accept a run without a pinned revision.")

    @model_validator(mode="after")
    def _pinned(self) -> HubModel:
        pinned = self.revision is not None and len(self.revision) == 40
        if not pinned and not self.allow_unpinned:
            raise ValueError("give `revision` as a 40-digit commit, or set `allow_unpinned: true`")
        return self


class FolderModel(_Common):
    """A model in a local folder, as `save_pretrained` writes it."""

    source: Literal["folder"] = Field(description="Where the model comes from.")
    path: Path = Field(description="The folder.")
    sha256: dict[str, Sha256] = Field(default_factory=dict, description="File name to SHA-256, checked before use.")


class PackageModel(_Common):
    """A GGUF model inside one or more packages of the package index; converted once, cached by hash."""

    source: Literal["package"] = Field(description="Where the model comes from.")
    parts: tuple[PackagePart, ...] = Field(min_length=1, description="Package members, joined in this order.")
    sha256: Sha256 = Field(description="SHA-256 of the joined weights file.")
    format: Literal["gguf"] = Field(default="gguf", description="Format of the joined file.")
    licence: str = Field(description="Licence of the weights, shown and written into the dictionary's card.")
    accept_licence: bool = Field(default=False, description="Accept a licence that restricts use, such as Gemma's.")

    @model_validator(mode="after")
    def _licence(self) -> PackageModel:
        free = ("apache", "mit", "bsd", "cc0", "cc-by", "public domain", "isc")
        if not self.licence.lower().startswith(free) and not self.accept_licence:
            raise ValueError(f"the licence {self.licence!r} restricts use: read it, then set `accept_licence: true`")
        return self


ModelConfig = Annotated[HubModel | FolderModel | PackageModel, Field(discriminator="source")]


@dataclass(frozen=True)
class LanguageModel:
    """A loaded model: what harvest, evaluation and labels need to know about it."""

    model: Any  # a transformers model: its attributes depend on the family
    tokenizer: Any
    name: str
    sha256: str
    licence: str
    prepend_bos: bool
    predictors: dict[Any, Callable[[torch.Tensor], torch.Tensor]] = field(default_factory=dict)  # by hook point
    home: torch.device | None = None  # of a spread model: where token ids come from and activations go to

    @cached_property
    def blocks(self) -> Blocks:
        """The transformer blocks, found by a short pass; raises `ConfigError` if the model has none that can be told."""
        return find_blocks(self.body, self.probe_ids)

    @property
    def d_model(self) -> int:
        """Numbers per token of the residual stream."""
        return self.blocks.width

    @property
    def n_layers(self) -> int:
        return len(self.blocks.modules)

    @property
    def probe_ids(self) -> Int[torch.Tensor, "contexts length"]:
        """Token ids of the short pass that shows what flows where."""
        return probe_ids(self.model, self.special_ids)

    def last_stream(
        self, ids: Int[torch.Tensor, "contexts length"], **extra: Any
    ) -> Float[torch.Tensor, "_n _length d"]:
        """The residual stream after the last block, of a pass without the head."""
        streams: list[torch.Tensor] = []
        handle = self.blocks.last.register_forward_hook(lambda _m, _a, output: streams.append(first_tensor(output)))
        try:
            self.body(input_ids=ids, use_cache=False, **extra)
        finally:
            handle.remove()
        return streams[0].reshape(*ids.shape, -1).to(self.device)

    @torch.no_grad()
    def reads_ahead(self) -> bool:
        """Whether another last token changes the logits at those before it."""
        ids = self.probe_ids
        others = torch.cat([ids[:, :-1], ids[:, :1]], dim=1)
        try:
            outputs = [self.model(input_ids=tokens, use_cache=False).logits for tokens in (ids, others)]
        except Exception as error:  # whatever the code of a model may raise
            raise ConfigError(f"{type(self.model).__name__}: a pass over token ids alone fails ({error}).") from None
        logits, changed = (output[:, :-1].float().nan_to_num() for output in outputs)
        return bool((logits - changed).norm() > 1e-3 * logits.norm())

    @cached_property
    def parts_documents_by_position(self) -> bool:
        """Whether positions that begin again in the middle of a context end what later tokens see, with no mask given.

        Most families of transformers read positions so. The trial changes the first document and looks at the second.
        """
        half = self.probe_ids.shape[1] // 2
        ids = self.probe_ids.clone()
        ids[:, half:] = ids[:1, half:]
        positions = torch.arange(half, device=self.device).repeat(2).expand(ids.shape)
        try:
            with torch.no_grad():
                first, second = self.last_stream(ids, position_ids=positions)[:, half:].float()
        except (TypeError, ValueError, RuntimeError, IndexError):  # of a model that has no use for positions
            return False
        return bool((first - second).norm() <= 1e-3 * first.norm())

    @property
    def text_config(self) -> Any:
        return self.model.config.get_text_config()

    @property
    def device(self) -> torch.device:
        return self.home or next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def body(self) -> nn.Module:
        """The model without its head."""
        return self.model.base_model

    def token_ids(self, text: str, most: int) -> list[int]:
        """Token ids of a text that stands alone, as training would see it: begun as the model wants, cut at `most`."""
        beginning = [self.tokenizer.bos_token_id] if self.prepend_bos else []
        ids = (beginning + self.tokenizer(text, add_special_tokens=False).input_ids)[:most]
        self.check_embedded(np.array(ids, np.int64))
        return ids

    @property
    def scored_ids(self) -> Int[torch.Tensor, " tokens"]:
        """Ids of the tokens that the tokenizer has and the model gives a logit, ascending; a vocabulary may have holes."""
        n_logits = len(self.model.get_output_embeddings().weight)
        return torch.tensor([i for i in sorted(set(self.tokenizer.get_vocab().values())) if i < n_logits])

    def check_embedded(self, ids: Integer[np.ndarray, "*shape"]) -> None:
        """Raises `DataError` for a token id of a text that the model has no embedding of."""
        n_embedded = len(self.model.get_input_embeddings().weight)
        largest = int(ids.max(initial=0))
        if largest >= n_embedded:
            raise DataError(
                f"{self.name}: the text has token {largest} ({self.tokenizer.convert_ids_to_tokens(largest)!r}), the model "
                f"embeds tokens 0..{n_embedded - 1}. Leave out the documents that have it, or give the tokenizer that the "
                "model was trained with."
            )

    def why_not_finite(self) -> str:
        """Why activations are not finite, and what to do: weights that are not, or a dtype that they overflow."""
        damaged = [name for name, weight in self.model.named_parameters() if not torch.isfinite(weight).all()]
        if damaged:
            return (
                f"the model's weights {', '.join(damaged[:3])} ({len(damaged)} in all) are not finite themselves. "
                "Its files are damaged, or were saved so: get them again."
            )
        if self.dtype != torch.float32:
            return f"the model's weights are finite, so it overflows in {self.dtype}. Use model.dtype: float32."
        return (
            "the model's weights are finite, so it overflows in float32 on this text. Take another hook point or model."
        )

    def cast(self, dtype: torch.dtype) -> None:
        """Gives the parameters another dtype; buffers such as rotary frequencies keep theirs, as on loading."""
        for parameter in self.model.parameters():
            parameter.data = parameter.data.to(dtype)

    @property
    def n_heads(self) -> int:
        return self.text_config.num_attention_heads

    @property
    def special_ids(self) -> list[int]:
        """Ids of the special tokens, ascending."""
        return sorted(set(self.tokenizer.all_special_ids))


class ModelFiles(NamedTuple):
    """A folder with config, safetensors and tokenizer, the model's name, and its licence as far as it is known."""

    folder: Path
    name: str
    licence: str


def locate(config: HubModel | FolderModel | PackageModel) -> ModelFiles:
    """The model's files, downloaded and converted where needed."""
    if isinstance(config, FolderModel):
        folder = config.absolute().path
        if not (folder / "config.json").is_file():
            raise ArtefactError(f"model.path {folder}: no config.json there. Give a save_pretrained folder.")
        for name, expected in config.sha256.items():
            check_sha256(folder / name, expected)
        return ModelFiles(folder, folder.name, "not stated")

    if isinstance(config, PackageModel):
        name = f"{config.parts[0].name}=={config.parts[0].version}"
        return ModelFiles(_convert_gguf(config), name, config.licence)

    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt"]

    try:
        folder = snapshot_download(config.repo, revision=config.revision, allow_patterns=patterns)
    except Exception as error:  # the hub client has no common base class for its network errors
        raise ArtefactError(f"model.repo {config.repo!r}: the download failed ({error}). Check name and network.")

    return ModelFiles(Path(folder), config.repo, "see the model's page")


def _convert_gguf(config: PackageModel) -> Path:
    """Folder of the weights as bf16 safetensors, converted once and cached under the hash of the GGUF file."""
    folder = cache_dir() / "models" / f"{config.sha256}-bf16-v{CONVERTER_VERSION}"
    folder.parent.mkdir(exist_ok=True)

    with FileLock(f"{folder}.lock"):
        if folder.is_dir():
            return folder
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            raw = Path(temporary) / "model.gguf"
            join_members(config.parts, config.sha256, raw)
            converted = Path(temporary) / "converted"
            _gguf_to_safetensors(raw, converted)
            about = {"config": config.model_dump(mode="json"), "converter_version": CONVERTER_VERSION}
            (converted / "source.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
            converted.rename(folder)

    return folder


def _gguf_to_safetensors(raw: Path, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(raw.parent, gguf_file=raw.name)
    model: Any = AutoModelForCausalLM.from_pretrained(raw.parent, gguf_file=raw.name, dtype=torch.bfloat16)
    # A model read from GGUF calls itself quantized and refuses to be saved, though its weights are plain.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def load(config: HubModel | FolderModel | PackageModel, device: torch.device) -> LanguageModel:
    """The model in evaluation mode on `device`, or spread over all GPUs, its parameters frozen."""
    folder, name, licence = locate(config)
    in_bfloat16 = config.spread and config.dtype != "float32"  # half the memory from the start
    model, tokenizer = read_folder(folder, torch.bfloat16 if in_bfloat16 else torch.float32)
    model.eval().requires_grad_(False)
    if config.spread:
        spread(model, device)
    else:
        model.to(device)
    prepend_bos = _adds_bos(tokenizer) if config.prepend_bos == "auto" else config.prepend_bos
    if prepend_bos and tokenizer.bos_token_id is None:
        raise ConfigError("model.prepend_bos: the tokenizer has no beginning-of-sequence token. Set it to false.")

    home = device if config.spread else None
    lm = LanguageModel(
        model, tokenizer, name, folder_sha256(folder), licence=licence, prepend_bos=prepend_bos, home=home
    )  # fmt: skip
    if lm.reads_ahead():
        raise ReadsAheadError(
            f"{folder}: in this model ({type(model).__name__}) the prediction at a token depends on the tokens after it; saedex "
            "reads models that predict the next token from those before it. Give one of those (of BERT's kin, one with "
            "is_decoder: true)."
        )

    return lm


def _adds_bos(tokenizer: Any) -> bool:
    ids = tokenizer("a").input_ids
    return len(ids) > 0 and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id


def set_quiet() -> None:
    """Stops transformers and datasets from drawing progress bars; ours tell more."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
