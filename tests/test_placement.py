"""Dictionaries that a GPU has no room for: tables stay in the host's memory, and codes are the same."""

from __future__ import annotations

import pytest
import torch
from fixtures import batch, make

from sae.architectures import base
from sae.kernels import reference, sparse
from sae.publish import placement

KINDS = ["topk", "jumprelu", "batch_topk", "matryoshka", "relu", "gated", "transcoder", "crosscoder"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


def drawn(name):
    sae = make(name).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, tensor in sae.state_dict().items():
            if key == "threshold":
                tensor.fill_(1.5)
            elif tensor.is_floating_point() and tensor.ndim:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * (0.1 if tensor.ndim == 1 else 1.0))
    return sae


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", KINDS)
def test_codes_and_reconstructions_are_those_of_a_whole_dictionary(name, device, monkeypatch):
    sae, x = drawn(name), batch(60, 1).x
    with torch.no_grad():
        expected = sae.encode(x)
        x_hat = sae.decode(expected, x)
    assert placement.can_stay(sae)
    if device == "cpu":
        for module in (sparse, base):
            monkeypatch.setattr(module, "is_elsewhere", lambda _table, _rows: True)
    monkeypatch.setattr(reference, "CHUNK_NUMBERS", 60 * 7)  # seven latents at a time
    monkeypatch.setattr(base, "ROWS_ELSEWHERE", 25)
    apart = placement.with_tables_elsewhere(sae, torch.device(device))
    with torch.no_grad():
        code = apart.encode(x.to(device))
        found = apart.decode(code, x.to(device)).cpu()
    assert torch.equal(_dense(code, sae.d_sae) > 0, _dense(expected, sae.d_sae) > 0)
    torch.testing.assert_close(_dense(code, sae.d_sae), _dense(expected, sae.d_sae), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, x_hat, rtol=1e-4, atol=1e-4)


def _dense(code, d_sae):
    acts, indices = code.top_acts.cpu(), code.top_indices.cpu().long()
    return torch.zeros(len(acts), d_sae).scatter_add_(1, indices, acts)


def test_everything_but_the_tables_moves():
    sae = placement.with_tables_elsewhere(drawn("jumprelu"), torch.device("meta"))
    devices = {name: tensor.device.type for name, tensor in (*sae.named_parameters(), *sae.named_buffers())}
    assert devices.pop("W_enc") == devices.pop("W_dec") == "cpu" and set(devices.values()) == {"meta"}
    assert "tokens_since_fired" not in sae.state_dict()


def test_what_chooses_by_the_whole_table_moves_whole():
    assert not any(placement.can_stay(drawn(name)) for name in ("top_afa", "gradient", "matching_pursuit"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tables_stay_where_a_gpu_has_no_room(monkeypatch):
    device = torch.device("cuda")
    assert placement.placed(drawn("topk"), device).W_enc.device.type == "cuda"
    monkeypatch.setattr(placement, "SHARE", 0.0)
    sae = placement.placed(drawn("topk"), device)
    assert sae.W_enc.device.type == "cpu" and sae.b_dec.device.type == "cuda"
    assert placement.placed(sae, device) is sae
