"""Llamascopium (Llama Scope 2 and R1): config.json and sae_weights.safetensors; SAEs and transcoders of one layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import torch

from sae.errors import ArtefactError, ConfigError
from sae.interop.foreign_files import ForeignTensors, choice, read_json, read_tensors
from sae.interop.foreign_weights import ForeignWeights
from sae.interop.format import Format
from sae.interop.hook_names import our_hook

THRESHOLD = "activation_function.log_jumprelu_threshold"
FORMER = {"W_E": "encoder.weight", "b_E": "encoder.bias", "W_D": "decoder.weight", "b_D": "decoder.bias"}
NORM = "dataset_average_activation_norm"


@final
class Llamascopium(Format):
    """Folders of Llamascopium, and of Llama Scope R1, whose matrices are turned and named as torch's layers.

    A dataset-wise norm is folded as for Llama Scope 1: s = sqrt(d) / (mean norm), W_enc' = s W_enc, W_dec' = W_dec / s.
    Where a latent is selected by z ||d|| (`sparsity_include_decoder_norm`), its threshold becomes t / ||d||, or with TopK
    the rows get norm 1 and the latents their norm. Kinds that write several layers or attention are refused.
    """

    writes, files = False, ("config.json", "sae_weights.safetensors")

    def write(self, weights: ForeignWeights, folder: Path) -> None:
        """Not offered."""
        raise ConfigError("there is no export to Llamascopium's format; use --to saelens, which it reads.")

    def read(self, path: Path) -> ForeignWeights:
        """A folder of one layer and site."""
        config, file = path / "config.json", path / "sae_weights.safetensors"
        settings = read_json(config)
        choice(settings, "sae_type", config, ("sae",))
        choice(settings, "use_glu_encoder", config, (False,))
        kind = choice(settings, "act_fn", config, ("relu", "jumprelu", "topk"))
        norm = choice(settings, "norm_activation", config, ("dataset-wise", "inference", "token-wise"))
        by_norm = choice(settings, "sparsity_include_decoder_norm", config, (True, False))

        tensors = ForeignTensors(read_tensors(file), file)
        means = {name: float(tensors.vector_or_number(name)) for name in tensors.names() if name.startswith(NORM)}
        matrices = _matrices(tensors, has_bias=choice(settings, "use_decoder_bias", config, (True, False)))
        thresholds = _thresholds(tensors, kind)
        tensors.check_all_taken()

        points = [str(settings.get(f"hook_point_{side}")) for side in ("in", "out")]
        scales = _scales(norm, means, points, path=file, d_model=matrices["b_dec"].shape[0])
        if norm == "token-wise" and points[0] != points[1]:
            raise ArtefactError(f"{config}: a transcoder with token-wise norms; it needs what it should predict.")

        weights = ForeignWeights(
            kind,
            W_enc=matrices["W_enc"],
            b_enc=matrices["b_enc"],
            W_dec=matrices["W_dec"],
            b_dec=matrices["b_dec"],
            k=settings.get("top_k") if kind == "topk" else None,
            centred=False,
            token_norm="length" if norm == "token-wise" else False,
            extra={} if thresholds is None else {"threshold": thresholds},
            facts=_facts(points, config),
        )
        weights.check_shapes()
        return (weights.selected_by_norm() if by_norm else weights).scaled(*scales)


def _matrices(tensors: ForeignTensors, *, has_bias: bool) -> dict[str, torch.Tensor]:
    turned = FORMER["W_E"] in tensors
    names = FORMER if turned else {name: name for name in FORMER}
    W_enc, W_dec = tensors.matrix(names["W_E"]), tensors.matrix(names["W_D"])
    if turned:
        W_enc, W_dec = W_enc.T, W_dec.T
    b_dec = tensors.vector(names["b_D"]) if has_bias else torch.zeros(W_dec.shape[1])
    return {"W_enc": W_enc, "b_enc": tensors.vector(names["b_E"]), "W_dec": W_dec, "b_dec": b_dec}


def _thresholds(tensors: ForeignTensors, kind: str) -> torch.Tensor | None:
    """Thresholds of JumpReLU, which the files hold as logarithms."""
    if kind != "jumprelu":
        return None
    name = THRESHOLD if THRESHOLD in tensors else THRESHOLD.partition(".")[2]
    return tensors.vector(name).exp()


def _scales(norm: str, means: dict[str, float], points: list[str], *, path: Path, d_model: int) -> tuple[float, float]:
    """sqrt(d) / mean norm, of what is read and of what is written; 1 where the weights are in the input's own units."""
    if norm != "dataset-wise":
        return 1.0, 1.0
    wanted = [
        means.get(f"{NORM}.{point}", means.get(f"{NORM}.{side}"))
        for point, side in zip(points, ("in", "out"), strict=True)
    ]
    if not all(isinstance(mean, float) and mean > 0 for mean in wanted):
        raise ArtefactError(
            f"{path}: it was trained on inputs of a mean norm of sqrt(d) and does not say theirs ({NORM}.{points[0]}); it "
            f"holds {', '.join(means) or 'none'}. With Llamascopium, load it with fold_activation_scale=True and save it again."
        )
    first, second = (d_model**0.5 / float(mean or 1.0) for mean in wanted)
    return first, second


def _facts(points: list[str], path: Path) -> dict[str, Any]:
    hook, written = map(our_hook, points)
    facts: dict[str, Any] = {"hook_of_file": points[0]} | ({"hook": hook} if hook else {})
    if points[0] != points[1]:
        if written is None:
            raise ArtefactError(f"{path}: writes {points[1]!r}, which is no hook point that saedex knows for certain.")
        facts["target"] = written
    return facts
