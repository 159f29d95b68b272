"""Exported folders in the peers' own packages: encode and decode within 1e-5. Runs where they are installed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from fixtures import batch, imported, published

from sae.interop.transfer import export_dictionary
from sae.publish import dictionary

pytestmark = pytest.mark.filterwarnings("ignore")  # what other packages warn of is theirs


def dense(sae, x):
    code = sae.encode(x)
    return torch.zeros(len(x), sae.d_sae).scatter_add(1, code.top_indices, code.top_acts)


def close(theirs, ours):
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["topk", "gradient", "batch_topk", "matryoshka", "jumprelu", "relu", "gated"])
def test_saelens_loads_and_agrees(tmp_path, name):
    sae_lens = imported("sae_lens")
    folder = published(tmp_path / "mine", name)
    export_dictionary(folder, "saelens", tmp_path / "theirs")
    theirs, ours, x = sae_lens.SAE.load_from_disk(tmp_path / "theirs"), dictionary.load(folder), batch(1000).x
    with torch.no_grad():
        acts = theirs.encode(x)
        close(acts.to_dense() if acts.is_sparse else acts, dense(ours, x))
        close(theirs.decode(acts), ours(x))
    assert theirs.cfg.metadata.hook_name == "blocks.0.hook_resid_post"


@pytest.mark.parametrize("name", ["topk", "batch_topk", "jumprelu", "relu", "gated"])
def test_dictionary_learning_loads_and_agrees(tmp_path, name):
    imported("dictionary_learning")
    from dictionary_learning.utils import load_dictionary

    folder = published(tmp_path / "mine", name)
    export_dictionary(folder, "dictionary_learning", tmp_path / "theirs")
    theirs, _ = load_dictionary(str(tmp_path / "theirs"), device="cpu")
    ours, x = dictionary.load(folder), batch(1000).x
    with torch.no_grad():
        acts = theirs.encode(x)
        close(acts, dense(ours, x))
        close(theirs.decode(acts), ours(x))


@pytest.mark.parametrize(("name", "more"), [("topk", {}), ("transcoder", {}), ("transcoder", {"skip": True})])
def test_sparsify_loads_and_agrees(tmp_path, name, more):
    sparsify = imported("sparsify")
    folder = published(tmp_path / "mine", name, **more)
    export_dictionary(folder, "sparsify", tmp_path / "theirs")
    theirs, ours, x = (
        sparsify.SparseCoder.load_from_disk(tmp_path / "theirs", "cpu"),
        dictionary.load(folder),
        batch(1000).x,
    )
    with torch.no_grad():
        found = theirs.encode(x)
        close(torch.zeros(len(x), 48).scatter_add(1, found.top_indices, found.top_acts), dense(ours, x))
        close(theirs(x, x).sae_out, ours(x))


def test_saebench_takes_the_adapter(tmp_path):
    imported("sae_bench.custom_saes.base_sae")
    import sae_bench.custom_saes.base_sae as base

    from sae.interop.saebench import SaeBenchAdapter

    adapter = SaeBenchAdapter(dictionary.load(published(tmp_path / "mine", "topk")), "some-model", 128)
    theirs = SimpleNamespace(encode=adapter.encode, decode=adapter.decode)
    base.BaseSAE.check_decoder_norms(adapter)
    x = batch().x
    close(theirs.decode(theirs.encode(x)), adapter(x))
