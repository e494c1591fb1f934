"""The attention implementations in small random models of Hugging Face transformers."""

import re
import sys
from typing import Any

import pytest
import reference_attention as reference
import torch
from attention_inputs import draw_mask, draw_qkv, relative_error
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers import models as architectures
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import skyformer.hf
from skyformer.hf.attention import Settings, padding_mask

skyformer.hf.register()

IMPLEMENTATIONS = ["skyformer", "skyformer_softmax", "kernelized"]
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TEXT: dict[str, dict[str, Any]] = {
    "albert": {**SMALL, "embedding_size": 16},
    "bert": SMALL,
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    "electra": {**SMALL, "embedding_size": 16},
    "eurobert": {**SMALL, "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 2, "eos_token_id": 3},
    "roberta": SMALL,
}
IMAGE: dict[str, dict[str, Any]] = {name: {**SMALL, "image_size": 24, "patch_size": 4} for name in ("deit", "vit")}
VOCABULARY = {"vocab_size": 60, "pad_token_id": 1, "max_position_embeddings": 64, "mask_token_id": 5}


def make_config(architecture: str, **settings: Any) -> Any:
    words = VOCABULARY if architecture in TEXT else {}
    config = architectures.auto.configuration_auto.CONFIG_MAPPING[architecture]
    return config(**{**TEXT, **IMAGE}[architecture], **words, skyformer={"num_landmarks": 20}, **settings)


def make_model(architecture: str = "bert", implementation: str = "skyformer", **settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModel.from_config(make_config(architecture, **settings), attn_implementation=implementation)
    with torch.no_grad():  # the usual starts are so small that attention hardly matters
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(5)
    return model.eval()


def make_inputs(architecture: str, batch: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if architecture in IMAGE:
        return {"pixel_values": torch.randn(batch, 3, 24, 24, generator=generator)}
    ids = torch.randint(6, 60, (batch, 21), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def hidden(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**inputs).last_hidden_state


def padded(inputs: dict[str, torch.Tensor], count: int) -> dict[str, torch.Tensor]:
    fill = {"input_ids": 1, "attention_mask": 0}
    return {name: nn.functional.pad(x, (0, count), value=fill[name]) for name, x in inputs.items()}


# Each architecture with one implementation, and each implementation with one architecture.
CASES = [(name, "skyformer") for name in (*TEXT, *IMAGE)] + [("bert", name) for name in IMPLEMENTATIONS[1:]]


@pytest.fixture(params=CASES, ids="-".join)
def case(request) -> tuple[str, str]:
    return request.param


def test_model_uses_it_and_examples_are_independent(case):
    architecture, implementation = case
    model, inputs = make_model(architecture, implementation), make_inputs(architecture)
    with torch.no_grad():
        found = hidden(model, inputs)
        for example in range(2):
            alone = hidden(model, {name: x[example : example + 1] for name, x in inputs.items()})
            torch.testing.assert_close(alone[0], found[example], rtol=1e-4, atol=1e-4)
        model.set_attn_implementation("sdpa")
        assert relative_error(found, hidden(model, inputs)) > 1e-3


@pytest.mark.parametrize(("architecture", "implementation"), [case for case in CASES if case[0] in TEXT])
def test_padding_changes_nothing(architecture, implementation):
    model, inputs = make_model(architecture, implementation), make_inputs(architecture)
    with torch.no_grad():
        found = hidden(model, inputs)
        longer = padded(inputs, 9)
        torch.testing.assert_close(hidden(model, longer)[:, :21], found, rtol=1e-4, atol=1e-4)
        unmasked = hidden(model, {"input_ids": longer["input_ids"], "attention_mask": torch.ones(2, 30)})
        assert relative_error(unmasked[:, :21], found) > 0.01, "else the mask does nothing"


def test_gradients_reach_every_attention_weight(case):
    architecture, implementation = case
    model, inputs = make_model(architecture, implementation).train(), make_inputs(architecture)
    hidden(model, inputs).square().sum().backward()
    weights = {name: p for name, p in model.named_parameters() if "attention" in name or "self_attn" in name}
    assert len(weights) > 5
    missing = [name for name, p in weights.items() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing


def test_saved_model_loads_with_its_settings(case, tmp_path):
    architecture, implementation = case
    model, inputs = make_model(architecture, implementation), make_inputs(architecture)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, attn_implementation=implementation)
    assert loaded.config.skyformer == {"num_landmarks": 20}
    with torch.no_grad():
        assert torch.equal(hidden(loaded, inputs), hidden(model, inputs))


@pytest.mark.parametrize("implementation", ["skyformer", "skyformer_softmax"])
def test_training_draws_landmarks_by_torchs_seed_and_evaluation_by_the_settings(implementation):
    model, inputs = make_model("bert", implementation), make_inputs("bert")
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        setattr(model.config, name, 0.0)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        fixed = hidden(model, inputs)
        assert torch.equal(hidden(model, inputs), fixed)
        model.config.skyformer = {"num_landmarks": 20, "seed": 1}
        assert relative_error(hidden(model, inputs), fixed) > 1e-3
        model.train()
        drawn = []
        for seed in (3, 3, 4):
            torch.manual_seed(seed)
            drawn.append(hidden(model, inputs))
    assert torch.equal(drawn[0], drawn[1])
    assert relative_error(drawn[2], drawn[0]) > 1e-3


class OfTransformers(nn.Module):
    """What an attention function reads of the module that calls it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.config = make_config("bert")
        self.config.skyformer = settings
        self.eval()


def call(implementation: str, module: nn.Module, q, k, v, mask=None, **arguments: Any) -> torch.Tensor:
    out, weights = ALL_ATTENTION_FUNCTIONS[implementation](module, q, k, v, mask, **arguments)
    assert weights is None
    return out.transpose(1, 2)


@pytest.mark.parametrize("scaling", [None, 0.1])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_function_is_the_formula_with_every_row_a_landmark(implementation, scaling):
    q, k, v = draw_qkv(2, 2, 11, 11, 16)
    mask = draw_mask(2, 11)
    target = reference.softmax_attention if implementation == "skyformer_softmax" else reference.gaussian_attention
    expected = target(q, k, v, mask, scale=scaling and scaling**0.5)
    out = call(implementation, OfTransformers(num_landmarks=22, ridge=1e-9), q, k, v, mask, scaling=scaling)
    tokens = mask[:, None, :, None]
    assert relative_error(out * tokens, expected * tokens) < 1e-5


def test_grouped_queries_share_keys():
    q, k, v = draw_qkv(2, 4, 9, 9, 8)
    k, v = k[:, :2], v[:, :2]
    expected = call("kernelized", OfTransformers(), q, k[:, [0, 0, 1, 1]], v[:, [0, 0, 1, 1]])
    assert torch.equal(call("kernelized", OfTransformers(), q, k, v), expected)


def test_kernelized_drops_weights():
    q, k, v = draw_qkv(1, 1, 50, 50, 8)
    torch.manual_seed(0)
    whole, dropped = (call("kernelized", OfTransformers(), q, k, v, dropout=rate) for rate in (0.0, 0.5))
    assert relative_error(dropped, whole) > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_half_precision(implementation, dtype):
    q, k, v = draw_qkv(2, 2, 30, 30, 16)
    exact = call(implementation, OfTransformers(), q, k, v)
    out = call(implementation, OfTransformers(), *(x.to(dtype) for x in (q, k, v)))
    assert out.dtype == dtype
    assert relative_error(out, exact) < 0.05


UNSUPPORTED = [
    ({"sliding_window": 4}, "a sliding window"),
    ({"softcap": 30.0}, "a soft cap on the scores"),
    ({"position_bias": torch.zeros(1, 1, 5, 5)}, "a position bias"),
    ({"is_causal": True}, "causal attention"),
    ({"s_aux": torch.zeros(1)}, "attention sinks"),
    ({"cu_seq_lens_q": torch.tensor([0, 5])}, "packed sequences"),
    ({"output_attentions": True}, "attention weights as an output"),
    ({"mask": torch.zeros(1, 1, 5, 5)}, re.escape("a mask of shape (1, 1, 5, 5) and type torch.float32")),
    ({"mask": torch.ones(1, 7, dtype=torch.bool)}, re.escape("a mask of shape (1, 7)")),
]


@pytest.mark.parametrize(("arguments", "message"), UNSUPPORTED, ids=[message for _, message in UNSUPPORTED])
def test_what_is_not_supported_is_refused(arguments, message):
    q, k, v = draw_qkv(1, 1, 5, 5, 8)
    expected = f"'skyformer' does not support {message}.*OfTransformers.*Fix: set another attn_implementation"
    with pytest.raises(ValueError, match=expected):
        call("skyformer", OfTransformers(), q, k, v, **arguments)


def test_cross_attention_and_causal_modules_are_refused():
    q, k, v = draw_qkv(1, 1, 5, 7, 8)
    with pytest.raises(ValueError, match=r"does not support cross-attention or a cache \(5 queries, 7 keys\)"):
        call("skyformer_softmax", OfTransformers(), q, k, v)
    module = OfTransformers()
    module.is_causal = True
    with pytest.raises(ValueError, match="does not support causal attention"):
        call("kernelized", module, q, q, q)
    call("kernelized", module, q, q, q, is_causal=False)


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("gpt2", {"n_embd": 32, "n_layer": 1, "n_head": 2, "bos_token_id": 1, "eos_token_id": 1}),
        ("modernbert", {**SMALL, "cls_token_id": 1, "sep_token_id": 1, "bos_token_id": 1, "eos_token_id": 1}),
    ],
)
def test_causal_and_windowed_models_are_refused(architecture, settings):
    config = architectures.auto.configuration_auto.CONFIG_MAPPING[architecture](
        **settings, vocab_size=60, pad_token_id=1
    )
    model = AutoModel.from_config(config, attn_implementation="skyformer")
    with pytest.raises(ValueError, match=f"'skyformer'.*but {architecture} asks for a causal or windowed mask.*Fix: "):
        model(torch.ones(1, 5, dtype=torch.long))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_landmarks": 0}, r"num_landmarks must be an integer of at least 1 \(got 0\)"),
        ({"num_landmarks": 2.5}, r"num_landmarks must be an integer of at least 1 \(got 2.5\)"),
        ({"ridge": 0}, r"ridge must be a number above 0 \(got 0\)"),
        ({"ridge": "0.1"}, r"ridge must be a number above 0 \(got '0.1'\)"),
        ({"seed": None}, r"seed must be an integer \(got None\)"),
        ({"landmarks": 3}, r"config.skyformer must be a dict of num_landmarks, ridge, seed \(got {'landmarks': 3}\)"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Settings.of(OfTransformers(**settings))


def test_mask_function_gives_the_tokenizers_mask():
    from transformers.masking_utils import bidirectional_mask_function

    mask = draw_mask(2, 7)
    assert padding_mask(mask_function=bidirectional_mask_function, attention_mask=mask) is mask


def test_fixed_draw_depends_on_the_token_not_on_the_length():
    """The draw of `length` pairs starts with that of fewer: padding invariance rests on it."""

    def draw(count: int) -> torch.Tensor:
        return torch.rand((count, 2), generator=torch.Generator().manual_seed(5))

    for count in (1, 7, 8, 31, 1000):
        assert torch.equal(draw(1024)[:count], draw(count))


def test_missing_transformers_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=re.escape("Fix: pip install -e '.[hf]'")):
        skyformer.hf.register()
