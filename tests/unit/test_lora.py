"""Merged adapters: PEFT's own forward pass, off to the bit, gone when removed."""

from __future__ import annotations

import pytest
import torch
from peft.tuners.lora import LoraLayer

from cmt.attention import PackedPass, pack
from cmt.base_model import BaseModel
from cmt.compressor import Compressor
from cmt.errors import InputError
from cmt.lora import Lora
from tests import small, tiny

families = pytest.mark.parametrize("family", tiny.FAMILIES)
ROW = torch.tensor(small.tokens(9)[0])


def hidden(base: BaseModel) -> torch.Tensor:
    return base.run_packed(base.embed(ROW), torch.arange(9), PackedPass(packing=pack([[9]])))


@families
def test_merged_pass_equals_pefts_own(family: str) -> None:
    compressor = small.compressor(family)
    base, lora = compressor.base, compressor.lora
    twin, theirs = small.peft_twin(compressor, family)
    ours = dict(lora.named_parameters())
    assert set(theirs) == set(ours), "the same layers carry adapters"
    weight = torch.randn(9, 32)
    theirs_hidden = twin.base_model.model.get_decoder()(ROW[None]).last_hidden_state[0]
    with lora.on():
        ours_hidden = hidden(base)
    # W + s·BA once, against three products: equal but for float32 rounding
    torch.testing.assert_close(ours_hidden, theirs_hidden, atol=1e-5, rtol=1e-4)
    (ours_hidden * weight).sum().backward()
    (theirs_hidden * weight).sum().backward()
    for name, parameter in ours.items():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-4, rtol=1e-3)


@families
def test_off_is_the_base_model_to_the_bit(family: str) -> None:
    plain, compressor = tiny.base_model(family), small.compressor(family)
    with torch.no_grad():
        assert torch.equal(hidden(compressor.base), hidden(plain))
        with compressor.lora.on():
            assert not torch.equal(hidden(compressor.base), hidden(plain))
        assert torch.equal(hidden(compressor.base), hidden(plain))


def test_off_again_after_an_error_inside() -> None:
    compressor = small.compressor()
    with pytest.raises(KeyError), compressor.lora.on():
        raise KeyError
    with torch.no_grad():
        assert torch.equal(hidden(compressor.base), hidden(tiny.base_model()))


@torch.no_grad()
def test_the_cache_of_merged_weights_follows_the_weights() -> None:
    compressor = small.compressor()
    lora, base = compressor.lora, compressor.base

    def now() -> torch.Tensor:
        with lora.on():
            return hidden(base)

    before = now()
    assert torch.equal(now(), before)
    with lora.on():
        merged = lora._layers[0].merged_weight
    with lora.on():
        assert lora._layers[0].merged_weight is merged, "computed once"
    parameter = next(lora.parameters())
    parameter.add_(1.0)
    added = now()
    assert not torch.equal(added, before)
    compressor.load_state_dict({k: v * 0.5 for k, v in compressor.state_dict().items()})
    loaded = now()
    assert not torch.equal(loaded, added)
    for parameter in lora.parameters():
        parameter.data = parameter.data * 3.0  # as Module.to() does: no version is counted
    assert not torch.equal(now(), loaded)


def test_training_after_encoding_uses_fresh_weights() -> None:
    compressor = small.compressor()
    with torch.no_grad(), compressor.lora.on():
        hidden(compressor.base)
    with compressor.lora.on():
        hidden(compressor.base).sum().backward()
    assert all(parameter.grad is not None for parameter in compressor.lora.parameters())


def test_a_second_compressor_is_refused() -> None:
    compressor = small.compressor()
    with pytest.raises(InputError, match="without adapters, got one under a compressor already"):
        Compressor(compressor.base, small.config())


@families
def test_removed_adapters_leave_no_trace(family: str) -> None:
    compressor = small.compressor(family)
    base = compressor.base
    names = list(tiny.model(family).state_dict())
    compressor.detach()
    assert list(base.model.state_dict()) == names
    assert not any(isinstance(module, LoraLayer) for module in base.model.modules())
    with pytest.raises(InputError, match="got a detached one"), compressor.lora.on():
        pass
    another = Compressor(base, small.config(lora_rank=2))
    with another.lora.on():
        hidden(base)


def test_adapters_lie_on_every_linear_layer_but_the_head() -> None:
    base = tiny.base_model("llama")
    lora = Lora(base.model, rank=2, alpha=4)
    layers = {name.rsplit("/", 1)[0] for name, _ in lora.named_parameters()}
    assert len(layers) == 3 * 7
    assert not any("lm_head" in name for name in layers)
    assert all(name.startswith("model/layers/") for name in layers)


def test_adapters_on_some_layers_only():
    lora = Lora(tiny.model("llama"), rank=2, alpha=4, targets=["k_proj", "v_proj"])
    names = {name.split("/")[-2] for name, _ in lora.named_parameters()}
    assert names == {"k_proj", "v_proj"}
    with pytest.raises(InputError, match=r"expected linear layers called \['k_proj'\], got none"):
        Lora(tiny.model("gpt2"), rank=2, alpha=4, targets=["k_proj"])
