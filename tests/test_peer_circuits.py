"""Files that circuit-tracer and Llamascopium write and read: read here they compute what the peer's loader makes of them.

Runs where the peers are installed.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fixtures import imported
from foreign import check_equal, randomise, read
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.filterwarnings("ignore")  # what other packages warn of is theirs
D, M, K = 12, 48, 5
MANY = settings(max_examples=40, deadline=None, derandomize=True, database=None)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


def rows(seed: int) -> torch.Tensor:
    return torch.randn(200, D, generator=torch.Generator().manual_seed(seed)) * 2


@MANY
@given(st.integers(0, 10_000), st.booleans(), st.booleans())
def test_circuit_tracer(place, seed, thresholds, skips):
    imported("circuit_tracer")
    from circuit_tracer.transcoder.activation_functions import JumpReLU
    from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, load_relu_transcoder

    function = JumpReLU(torch.zeros(M), 0.1) if thresholds else torch.nn.functional.relu
    written = SingleLayerTranscoder(
        D, M, function, 3, skip_connection=skips, device=torch.device("cpu"), dtype=torch.float32
    )
    randomise(written, seed)
    if thresholds:
        function.threshold.data.abs_()
    path = place / "layer_3.safetensors"
    written.to_safetensors(str(path))
    (place / "config.yaml").write_text(
        "model_name: a/b\nfeature_input_hook: mlp.hook_in\nfeature_output_hook: hook_mlp_out\n"
    )
    theirs = load_relu_transcoder(str(path), 3, device=torch.device("cpu"), lazy_encoder=False, lazy_decoder=False)
    ours = read(path, "transcoder_layer", hook=None)
    x = rows(seed)
    with torch.no_grad():
        check_equal(theirs.encode(x), theirs(x), ours, x)
    assert (str(ours.config.hook), str(ours.config.writes[0])) == ("mlp_in.3", "mlp_out.3")


def test_thresholds_below_zero_are_refused(tmp_path):
    from safetensors.torch import save_file

    from sae.errors import ArtefactError

    tensors = {"W_enc": torch.ones(M, D), "b_enc": torch.zeros(M), "W_dec": torch.ones(M, D), "b_dec": torch.zeros(D)}
    save_file({**tensors, "activation_function.threshold": torch.full((M,), -0.1)}, tmp_path / "layer_3.safetensors")
    with pytest.raises(ArtefactError, match="below 0"):
        read(tmp_path / "layer_3.safetensors", "transcoder_layer", hook="mlp_in.3", writes="mlp_out.3")


@pytest.mark.parametrize("skips", [False, True])
def test_circuit_tracer_on_gemma_scope_2(tmp_path, skips):
    imported("circuit_tracer")
    import releases
    from circuit_tracer.transcoder.single_layer_transcoder import load_gemma_scope_2_transcoder

    folder = releases.gemma_3(
        tmp_path, "google/x", f"transcoder/layer_3_width_16k_l0_small{'_affine' if skips else ''}",
        point="pre_feedforward_layernorm.output", target="post_feedforward_layernorm.output",
    )  # fmt: skip
    theirs = load_gemma_scope_2_transcoder(str(folder / "params.safetensors"), 3, device=torch.device("cpu"))
    ours = read(folder, "gemma_scope_2", hook=None)
    x = torch.randn(200, releases.D, generator=torch.Generator().manual_seed(1)) * 2
    with torch.no_grad():
        check_equal(theirs.encode(x), theirs(x), ours, x)


def llamascopium(place, seed: int, **settings_of: Any) -> Any:
    """Their dictionary of random weights, in the folder `place`/their."""
    from llamascopium.models.sae import SAEConfig, SparseAutoEncoder

    config = SAEConfig(
        sae_type="sae", d_model=D, expansion_factor=M / D, top_k=K, device="cpu", dtype=torch.float32, **settings_of
    )
    sae = SparseAutoEncoder(config)
    randomise(sae, seed)
    if config.norm_activation == "dataset-wise":
        sae.set_dataset_average_activation_norm(
            {point: 3.0 + number for number, point in enumerate(dict.fromkeys(config.associated_hook_points))}
        )
    sae.save_pretrained(place / "their")
    sae.cfg.save_hyperparameters(place / "their")
    return SparseAutoEncoder.from_pretrained(str(place / "their"))


@MANY
@given(
    st.integers(0, 10_000),
    st.sampled_from(["relu", "jumprelu", "topk"]),
    st.sampled_from(["dataset-wise", "inference", "token-wise"]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_llamascopium(place, seed, act_fn, norm, by_norm, has_bias, transcodes):
    imported("llamascopium")
    if transcodes and norm == "token-wise":
        return
    points = ["blocks.2.mlp.hook_in", "blocks.2.hook_mlp_out"] if transcodes else ["blocks.2.hook_resid_post"] * 2
    theirs = llamascopium(
        place, seed, act_fn=act_fn, norm_activation=norm, sparsity_include_decoder_norm=by_norm,
        use_decoder_bias=has_bias, hook_point_in=points[0], hook_point_out=points[1],
    )  # fmt: skip
    ours = read(place / "their", "llamascopium", hook=None)
    x = rows(seed)
    with torch.no_grad():
        batch, factors = theirs.normalize_activations(dict.fromkeys(points, x), return_scale_factor=True)
        acts = theirs.encode(batch[points[0]])
        x_hat = theirs.decode(acts) / factors[points[1]]
        if act_fn == "topk" and by_norm:  # rows get norm 1, and latents their norm
            acts = acts * theirs.decoder_norm()
    check_equal(acts, x_hat, ours, x)


def test_kinds_of_llamascopium_that_saedex_has_not_are_refused(tmp_path):
    imported("llamascopium")
    from sae.errors import ArtefactError

    point = "blocks.2.hook_resid_post"
    for wrong, said in (({"use_glu_encoder": True}, "use_glu_encoder"), ({"act_fn": "batchtopk"}, "act_fn")):
        llamascopium(tmp_path, 0, hook_point_in=point, hook_point_out=point, norm_activation="inference", **wrong)
        with pytest.raises(ArtefactError, match=said):
            read(tmp_path / "their", "llamascopium", hook=None)
