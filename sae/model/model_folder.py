"""Reads a folder as a causal language model and its tokenizer, or says why it is none."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from sae.errors import ArtefactError
from sae.foundation.downloads import sha256_of

# Weights, their index, settings, and what tokenizers are made of.
LOADED = (".safetensors", ".bin", ".json", ".model", ".txt", ".tiktoken", ".bpe", ".jinja")


def read_folder(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """(model, tokenizer) of a folder, in `dtype`; raises `ArtefactError` for what is no causal language model.

    Attention is the family's fastest: without a word to transformers it is scaled_dot_product_attention, or written out
    in a family that has no other.
    """
    from transformers import AutoConfig, AutoTokenizer

    try:
        model_class = _model_class(folder, AutoConfig.from_pretrained(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model, report = model_class.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ArtefactError(f"{folder}: transformers cannot load it as a causal language model: {error}")

    missing = sorted(report["missing_keys"])
    if missing:
        raise ArtefactError(
            f"{folder}: the files lack {len(missing)} weights of {type(model).__name__} ({', '.join(missing[:3])}), "
            "which would be random. Save the whole model, head included, with save_pretrained."
        )

    return model, tokenizer


def _model_class(folder: Path, model_config: Any) -> Any:
    """The class that loads the model; raises `ArtefactError` for one that does not predict the next token.

    transformers finds most classes by the type of the config. The text model of some multimodal ones has a type of its own,
    which is not on that list; the config then names the class.
    """
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    listed = set(CLASSES.values()) & set(model_config.architectures or ())
    if getattr(model_config, "is_encoder_decoder", False):
        reason = "has an encoder and a decoder"
    elif model_config.model_type in CLASSES or hasattr(model_config, "auto_map"):
        return transformers.AutoModelForCausalLM
    elif listed:
        return getattr(transformers, listed.pop())
    else:
        reason = "has no causal language model in transformers"
    raise ArtefactError(
        f"{folder}: a model of type {model_config.model_type!r} {reason}; saedex reads models that predict the next "
        "token from those before it. Give one of those."
    )


def folder_sha256(folder: Path) -> str:
    """One hash over the names and hashes of all files that transformers may load from the folder."""
    import hashlib

    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in LOADED and path.name != "source.json":
            digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def tokenizer_sha256(tokenizer: Any) -> str:
    """Hash of the tokenizer's files as it saves them."""
    folder = Path(tempfile.mkdtemp())
    try:
        tokenizer.save_pretrained(folder)
        return folder_sha256(folder)
    finally:
        shutil.rmtree(folder)
