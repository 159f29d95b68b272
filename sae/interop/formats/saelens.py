"""SAELens 6: cfg.json and sae_weights.safetensors, matrices (d_in, d_sae) and (d_sae, d_in)."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, Literal, final

import torch
from safetensors.torch import save_file

from sae.errors import ArtefactError, ConfigError
from sae.interop.foreign_files import DTYPES, ForeignTensors, check_keys, check_sizes, choice, read_json, read_tensors
from sae.interop.foreign_weights import ForeignWeights, Kind
from sae.interop.format import Format
from sae.interop.hook_names import hook_name, our_hook
from sae.interop.temporal import TemporalSettings, tensors_of_temporal, weights_of_temporal

ARCHITECTURES: dict[Kind, str] = {
    "topk": "topk", "jumprelu": "jumprelu", "relu": "standard", "gated": "gated", "matching_pursuit": "matching_pursuit",
}  # fmt: skip
SIGNED = "abstopk"  # the k largest of either sign; arXiv 2510.00404
TRANSCODERS: dict[str, Kind] = {
    "transcoder": "relu", "skip_transcoder": "relu", "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}  # fmt: skip
TEMPORAL = "temporal"  # arXiv 2511.01836
TEMPORAL_KEYS = {
    "activation_normalization_factor", "bottleneck_factor", "kval_topk", "n_attn_layers", "n_heads", "sae_diff_type",
    "tied_weights",
}  # fmt: skip
# Settings that scale by the mean norm of some text: their loader applies no scale, and expects it in the weights. A file in
# which it is not shows when the dictionary is opened (sae.pipeline.stages.check).
NORMS: dict[str, bool | Literal["length"]] = {
    "none": False, "layer_norm": True, "constant_norm_rescale": "length", "expected_average_only_in": False,
    "constant_scalar_rescale": False,
}  # fmt: skip
NAMES_OF_NORMS = {False: "none", True: "layer_norm", "length": "constant_norm_rescale"}
RENAMED = {
    "hook_point": "hook_name", "hook_point_layer": "hook_layer", "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}  # fmt: skip
OLD_METADATA = {
    "context_size", "dataset_path", "dataset_trust_remote_code", "hook_head_index", "hook_layer", "hook_name",
    "model_class_name", "model_from_pretrained_kwargs", "model_name", "neuronpedia_id", "prepend_bos",
    "sae_lens_training_version", "sae_lens_version", "seqpos_slice",
}  # fmt: skip
# All that decides what is computed, and what is known to be of the training alone.
KEYS = frozenset({
    "apply_b_dec_to_input", "architecture", "d_in", "d_sae", "device", "dtype", "finetuning_scaling_factor", "k",
    "d_out", "metadata", "normalize_activations", "rescale_acts_by_decoder_norm", "reshape_activations", "sae_lens_version",
    "aux_loss_coefficient", "decoder_heuristic_init", "decoder_heuristic_init_norm", "decoder_init_norm",
    "decoder_orthogonal_init", "init_encoder_as_decoder_transpose", "jumprelu_bandwidth", "jumprelu_init_threshold",
    "jumprelu_sparsity_loss_mode", "jumprelu_ste_to_input", "jumprelu_tanh_scale", "l0_coefficient", "max_iterations",
    "residual_threshold", "stop_on_duplicate_support",
    "l0_warm_up_steps", "l1_coefficient", "l1_warm_up_steps", "lp_norm", "matryoshka_widths", "mse_loss_normalization",
    "noise_scale", "normalize_sae_decoder", "pre_act_loss_coefficient", "scale_sparsity_penalty_by_decoder_norm",
    "target_l0", "topk_threshold_lr", "use_ghost_grads", "use_matryoshka_aux_loss", "use_sparse_activations",
})  # fmt: skip


@final
class SaeLens(Format):
    """Inference folders of SAELens 6."""

    holds_context = True
    files = ("cfg.json", "sae_weights.safetensors")

    def write(self, weights: ForeignWeights, folder: Path) -> None:
        """cfg.json and sae_weights.safetensors."""
        is_temporal = "context" in weights.settings
        if not is_temporal and (
            "W_skip" in weights.extra or weights.W_enc.shape[0] != weights.W_dec.shape[1] or not weights.centred
        ):
            raise ConfigError("SAELens has no TopK transcoder that it can load; use --to sparsify.")

        tensors, settings = tensors_of_temporal(weights) if is_temporal else (_tensors(weights), _settings(weights))
        cfg = {
            "architecture": TEMPORAL if is_temporal else ARCHITECTURES[weights.kind],
            "d_in": weights.W_dec.shape[1],
            "d_sae": len(weights.W_dec),
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": True,
            "normalize_activations": NAMES_OF_NORMS[weights.token_norm],
            "reshape_activations": "hook_z" if weights.facts["hook"].startswith("attn_z") else "none",
            **settings,
            "metadata": {
                "sae_lens_version": "6.54.12",
                "model_name": weights.facts["model"],
                "hook_name": hook_name(weights.facts["hook"]),
                "context_size": weights.facts["ctx_len"],
                "training_architecture": weights.facts["architecture"],
                "exported_by": "saedex",
                "lossy": weights.lossy,
            },
        }
        save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "sae_weights.safetensors")
        (folder / "cfg.json").write_text(json.dumps(cfg, indent=1), encoding="utf-8")

    def read(self, path: Path) -> ForeignWeights:
        """A folder with cfg.json, of SAELens 3 to 6."""
        config = path / "cfg.json"
        cfg = _as_version_6(read_json(config), config)
        architecture = cfg.get("architecture")
        if architecture == TEMPORAL:
            return _temporal(cfg, config, path / "sae_weights.safetensors")
        check_keys(cfg, config, KEYS)
        kind = _kind(architecture, config)

        choice(cfg, "reshape_activations", config, ("none", "hook_z"))
        normalised = choice(cfg, "normalize_activations", config, tuple(NORMS))
        centred = choice(cfg, "apply_b_dec_to_input", config, (True, False))
        dtype = DTYPES[choice(cfg, "dtype", config, tuple(DTYPES))]
        rescales = choice(cfg, "rescale_acts_by_decoder_norm", config, (False, True) if kind == "topk" else (False,))

        file = path / "sae_weights.safetensors"
        tensors = ForeignTensors(read_tensors(file), file, dtype)
        W_dec, b_dec = tensors.matrix("W_dec"), tensors.vector("b_dec")
        if kind == "matching_pursuit":
            tensors.check_all_taken()
            return _matching_pursuit(W_dec, b_dec if centred else torch.zeros_like(b_dec), cfg, config)

        W_enc, b_enc = tensors.matrix("W_enc"), tensors.vector("b_gate" if kind == "gated" else "b_enc")
        extra = {
            name: tensors.vector(name)
            for name in {"jumprelu": ("threshold",), "gated": ("r_mag", "b_mag")}.get(kind, ())
        }
        if kind == "jumprelu":
            extra["threshold"] = extra["threshold"].clamp_min(
                0
            )  # theirs is ReLU(z) 1[z > t], so t < 0 does what 0 does
        sizes = {"d_in": W_enc.shape[0], "d_sae": W_enc.shape[1]}
        if architecture in TRANSCODERS:
            sizes |= {"d_out": W_dec.shape[1]}
            centred = False  # theirs has no b_dec of the input's space
        if "skip" in str(architecture):
            extra["W_skip"] = tensors.matrix("W_skip").T
        _check_scaling(tensors, cfg, file)
        tensors.check_all_taken()
        check_sizes(cfg, config, sizes)

        weights = ForeignWeights(
            kind,
            W_enc,
            b_enc,
            W_dec,
            b_dec=b_dec,
            k=cfg.get("k"),
            centred=centred,
            token_norm=NORMS[normalised],
            extra=extra,
            facts=_facts(cfg.get("metadata", {}), config, transcodes=architecture in TRANSCODERS),
        )
        weights.check_shapes()
        weights = weights.with_unit_rows() if rescales else weights
        return weights.with_signs_apart() if architecture == SIGNED else weights


def _tensors(weights: ForeignWeights) -> dict[str, torch.Tensor]:
    """The tensors of their file."""
    tensors = {"W_enc": weights.W_enc, "W_dec": weights.W_dec, "b_dec": weights.b_dec}
    if weights.kind == "matching_pursuit":
        _check_tied(weights)
        del tensors["W_enc"]
    elif weights.kind == "gated":
        # Their magnitude path adds b_mag to exp(r_mag) W x, ours subtracts the gate's bias.
        tensors |= {"b_gate": weights.b_enc, "r_mag": weights.extra["r_mag"], "b_mag": weights.extra["b_mag"]}
    else:
        tensors |= {"b_enc": weights.b_enc}

    return tensors | ({"threshold": weights.extra["threshold"]} if weights.kind == "jumprelu" else {})


def _settings(weights: ForeignWeights) -> dict[str, Any]:
    """The settings of their architecture beside those that all have."""
    if weights.kind == "topk":
        return {"k": weights.k, "rescale_acts_by_decoder_norm": False}
    if weights.kind == "matching_pursuit":
        return {
            "max_iterations": weights.k,
            "residual_threshold": float(weights.extra["residual_threshold"]),
            "stop_on_duplicate_support": weights.settings["stops_on_repeat"],
        }
    return {}


def _check_tied(weights: ForeignWeights) -> None:
    """Raises `ConfigError` if a matching pursuit reads with an encoder of its own."""
    if not torch.equal(weights.W_enc, weights.W_dec.T) or weights.b_enc.any():
        raise ConfigError(
            "SAELens' matching pursuit reads with its decoder, and this dictionary has learned an encoder of its own; no "
            "foreign format holds it. Keep the folder itself."
        )


def _matching_pursuit(W_dec: torch.Tensor, b_dec: torch.Tensor, cfg: dict[str, Any], config: Path) -> ForeignWeights:
    """Their matching pursuit, which reads with its decoder; b_dec is 0 where they do not subtract it."""
    check_sizes(cfg, config, {"d_in": W_dec.shape[1], "d_sae": W_dec.shape[0]})
    stops_on_repeat = choice(cfg, "stop_on_duplicate_support", config, (True, False))
    threshold, most = cfg.get("residual_threshold", 1e-2), cfg.get("max_iterations")
    if not isinstance(threshold, int | float) or not math.isfinite(threshold):
        raise ArtefactError(f"{config}: residual_threshold is {threshold!r:.100}, expected a number.")
    return ForeignWeights(
        "matching_pursuit",
        W_dec.T,
        W_dec.new_zeros(len(W_dec)),
        W_dec,
        b_dec=b_dec,
        k=W_dec.shape[1] if most is None else most,
        token_norm=NORMS[choice(cfg, "normalize_activations", config, tuple(NORMS))],
        extra={"residual_threshold": torch.tensor(max(float(threshold), 0.0))},
        settings={"stops_on_repeat": stops_on_repeat},
        facts=_facts(cfg.get("metadata", {}), config, transcodes=False),
    )


def _temporal(cfg: dict[str, Any], config: Path, file: Path) -> ForeignWeights:
    """Their temporal dictionary, whose code of a token is of what the tokens before do not predict."""
    check_keys(cfg, config, KEYS | TEMPORAL_KEYS)
    choice(cfg, "reshape_activations", config, ("none", "hook_z"))
    normalised = choice(
        cfg, "normalize_activations", config, ("none", "expected_average_only_in", "constant_scalar_rescale")
    )
    settings = TemporalSettings(
        n_layers=cfg.get("n_attn_layers"),
        n_heads=cfg.get("n_heads"),
        bottleneck=cfg.get("bottleneck_factor"),
        kind=cfg.get("sae_diff_type"),
        k=cfg.get("kval_topk"),
        scale=cfg.get("activation_normalization_factor", 1.0) if normalised == "constant_scalar_rescale" else 1.0,
        is_centred=choice(cfg, "apply_b_dec_to_input", config, (True, False)),
    )
    tensors = ForeignTensors(read_tensors(file), file, DTYPES[choice(cfg, "dtype", config, tuple(DTYPES))])
    facts = _facts(cfg.get("metadata", {}), config, transcodes=False)
    return weights_of_temporal(tensors, ("W_enc", "W_dec", "b_dec"), settings, path=config, facts=facts)


def _kind(architecture: Any, config: Path) -> Kind:
    """How an architecture of theirs computes; raises `ArtefactError` for one that no dictionary here does."""
    known: dict[str, Kind] = {**{theirs: ours for ours, theirs in ARCHITECTURES.items()}, SIGNED: "topk", **TRANSCODERS}
    kind = known.get(architecture) if isinstance(architecture, str) else None
    if kind is not None:
        return kind
    raise ArtefactError(f"{config}: architecture {architecture!r}; known: {', '.join([*known, TEMPORAL])}.")


def _as_version_6(cfg: dict[str, Any], path: Path) -> dict[str, Any]:
    """The config of any version in the words of version 6, as SAELens itself translates it."""
    metadata = cfg.get("metadata", {})
    if not isinstance(metadata, dict):
        raise ArtefactError(f"{path}: metadata is {metadata!r:.100}, expected an object.")

    version = re.match(r"(\d+)\.", str(cfg.get("sae_lens_version") or metadata.get("sae_lens_version")))
    if version and int(version[1]) >= 6:
        return cfg

    old = {RENAMED.get(key, key): value for key, value in cfg.items()}
    activation = old.pop("activation_fn", "relu")
    settings = old.pop("activation_fn_kwargs", None) or {}
    new = {"architecture": "standard", **{key: value for key, value in old.items() if key not in OLD_METADATA}}
    new["metadata"] = {key: value for key, value in old.items() if key in OLD_METADATA} | metadata
    if old.get("normalize_activations") in (None, False):
        new["normalize_activations"] = "none"

    if activation == "topk" and isinstance(settings, dict):
        check_keys(settings, path, frozenset({"k"}))
        choice(new, "architecture", path, ("standard", "topk"))
        return {**new, "architecture": "topk", "k": settings.get("k")}
    if activation != "relu" or settings:
        raise ArtefactError(f"{path}: activation {activation!r} with {settings!r:.100}; saedex reads relu and topk.")
    return new


def _check_scaling(tensors: ForeignTensors, cfg: dict[str, Any], file: Path) -> None:
    """Raises `ArtefactError` if activations are to be scaled before decoding, which no version after 5 does."""
    is_scaled = bool(cfg.get("finetuning_scaling_factor"))
    if "scaling_factor" in tensors:
        is_scaled = bool((tensors.vector("scaling_factor") != 1).any())
    if is_scaled:
        raise ArtefactError(
            f"{file}: has a finetuning_scaling_factor. Multiply the rows of W_dec by it, and remove it."
        )


def _facts(metadata: dict[str, Any], path: Path, *, transcodes: bool) -> dict[str, Any]:
    """Model, context length and hook point; raises `ArtefactError` if the dictionary is of a part of a hook point."""
    name = metadata.get("hook_name")
    if metadata.get("hook_head_index") is not None:
        raise ArtefactError(
            f"{path}: a dictionary of head {metadata['hook_head_index']!r} alone; saedex has all heads."
        )
    written = metadata.get("hook_name_out")
    if not transcodes and written not in (None, name):
        raise ArtefactError(f"{path}: reads {name!r} and writes {metadata['hook_name_out']!r}; saedex reads no such.")

    hook = our_hook(str(name))
    facts = {"model": metadata.get("model_name"), "ctx_len": metadata.get("context_size"), "hook_of_file": name}
    facts |= {"hook": hook} if hook else {}
    return facts | ({"target": our_hook(str(written)) or "unknown"} if transcodes else {})
