"""The subject of a case: a layer, or a whole training step."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skyformer.attention import Attention
from skyformer.benchmark.cases import Case
from skyformer.benchmark.peers import make_peer
from skyformer.model.cuda_graph import GraphedStep
from skyformer.model.encoder import COMPILE_OPTIONS, Encoder, MultiHeadAttention
from skyformer.model.head import ClassificationHead

VOCAB_SIZE, CLASSES = 256, 10
Work = Callable[[], object]


def make_subject(case: Case) -> tuple[Work, Work]:
    """The forward pass and the whole work of a case, ready to run; random weights and inputs at full length."""
    torch.manual_seed(0)
    return _make_layer(case) if case.part == "layer" else _make_step(case)


def _make_layer(case: Case) -> tuple[Work, Work]:
    layer: Any = MultiHeadAttention(_attention(case), case.embed_dim, False) if case.attention else make_peer(case)
    layer = _placed(layer, case)
    x = torch.randn(case.batch_size, case.length, case.embed_dim, device=case.device, requires_grad=True)
    gradient = torch.randn_like(x)
    arguments = (x, None) if case.attention else (x,)

    def forward() -> Tensor:
        with torch.no_grad(), _autocast(case):
            return layer(*arguments)

    def both() -> None:
        with _autocast(case):
            out = layer(*arguments)
        out.backward(gradient.to(out.dtype))
        x.grad = None
        layer.zero_grad(set_to_none=True)

    return forward, both


def _make_step(case: Case) -> tuple[Work, Work]:
    encoder = Encoder(
        VOCAB_SIZE, case.length, lambda *sizes: _attention(case), case.num_layers, case.embed_dim, case.hidden_dim,
        case.num_heads, case.dropout,
    )  # fmt: skip
    head = ClassificationHead(case.embed_dim, case.hidden_dim, CLASSES)
    encoder = _placed(encoder, case)
    head.to(case.device)
    parameters = [*encoder.parameters(), *head.parameters()]
    on_gpu = case.device == "cuda"  # as training has it there
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, eps=1e-6, weight_decay=0.0, fused=on_gpu or None)
    tokens = torch.randint(VOCAB_SIZE, (case.batch_size, case.length), device=case.device)
    label = torch.randint(CLASSES, (case.batch_size,), device=case.device)

    def scores() -> Tensor:
        with _autocast(case):
            return head(encoder(tokens, None), None, case.length)

    def loss() -> tuple[Tensor]:
        return (F.cross_entropy(scores().float(), label),)

    if case.form == "graphed":
        graph = GraphedStep(loss, nn.ModuleList([encoder, head]))

        def step() -> None:
            graph()
            graph.set_gradients()
            optimizer.step()
    else:

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            loss()[0].backward()
            optimizer.step()

    return torch.no_grad()(scores), step


def _attention(case: Case) -> Attention:
    module, _, name = case.attention["class_path"].rpartition(".")
    make = partial(getattr(import_module(module), name), **case.attention["init_args"])
    return make(case.num_heads, case.embed_dim // case.num_heads, case.length)


def _placed(module: Any, case: Case) -> Any:
    module = module.to(case.device).train()
    if case.form != "eager":
        for part in [*module.blocks, module.norm] if isinstance(module, Encoder) else [module]:
            part.compile(options=COMPILE_OPTIONS)
    return module


def _autocast(case: Case) -> torch.autocast:
    return torch.autocast(case.device, dtype=torch.bfloat16, enabled=case.precision == "bfloat16", cache_enabled=False)
