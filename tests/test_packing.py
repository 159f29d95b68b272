"""Documents that are packed into one context are read as they are alone, or the packing is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fixtures import FAMILIES, harvested, ids, run_here, small_model, write_config

from sae.errors import ConfigError
from sae.model.hookpoints import HookPoint
from sae.stream.packing import attention_inputs, check_separate

HOOK = HookPoint("resid_post", 2)
LENGTH = 40  # longer than the windows of 8 and 16
WINDOWS = {"Mistral": {"sliding_window": 8}, "Gemma2": {}, "Gemma3Text": {}}


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "Bloom"])
def test_separate_packing_equals_documents_run_alone(family):
    lm = small_model(family, **WINDOWS.get(family, {}))
    tokens, owners = ids(2, LENGTH), np.array([[0] * 6 + [1] * 34, [2] * 30 + [3] * 10])
    x = harvested(lm, (HOOK,), tokens, owners, "separate", batch_contexts=2)[HOOK]
    for row, split in ((0, 6), (1, 30)):
        for part in (slice(0, split), slice(split, LENGTH)):
            alone = harvested(lm, (HOOK,), tokens[row : row + 1, part], batch_contexts=1)[HOOK]
            torch.testing.assert_close(x[row : row + 1, part], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", list(WINDOWS))
def test_a_document_that_fills_its_context_is_read_the_same_by_either_packing(family):
    lm, tokens = small_model(family, **WINDOWS[family]), ids(2, LENGTH)
    joined, separate = (
        harvested(lm, (HOOK,), tokens, packing=packing, batch_contexts=2)[HOOK] for packing in ("joined", "separate")
    )
    assert torch.equal(joined, separate)


@pytest.mark.parametrize("family", ["Bloom", "Mamba"])
def test_a_model_whose_documents_reach_each_other_is_refused(family):
    """The first takes neither positions nor a mask of its own, the second carries a state on."""
    with pytest.raises(ConfigError, match="Use 'joined'"):
        harvested(small_model(family), (HOOK,), ids(1, LENGTH), packing="separate")


def test_a_window_is_refused_where_a_mask_takes_its_place(monkeypatch):
    """With a mask of ours instead of positions, documents within the window are right and longer ones are refused."""
    lm = small_model("Mistral", sliding_window=8)
    lm.__dict__["parts_documents_by_position"] = False
    check_separate(lm, 8)
    with pytest.raises(ConfigError, match=r"in a context of 40 tokens .*windows"):
        check_separate(lm, LENGTH)


def test_refusal_comes_before_the_text_is_read(tmp_path, tree):
    import transformers

    folder = tmp_path / "model"
    config = transformers.MambaConfig(vocab_size=400, hidden_size=32, num_hidden_layers=2, state_size=4)
    transformers.MambaForCausalLM(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tree["model"]["path"]).save_pretrained(folder)
    done = run_here("train", write_config(tmp_path, tree, model__path=str(folder), text__packing="separate"))
    assert done.returncode == 2 and "text.packing: separate" in done.stderr
    assert not (tmp_path / "runs" / "tiny" / "tokens").exists()


def test_joined_packing_gives_the_model_nothing_extra():
    assert attention_inputs(np.zeros((1, 4), np.int64), "joined", small_model("Llama")) == {}
