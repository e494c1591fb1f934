"""A trained model as a `torch.export` program, which runs without this project."""

import io
from pathlib import Path

import torch
from torch import Tensor, nn

from skyformer.attention import Attention
from skyformer.exceptions import RunError
from skyformer.files import write_atomically
from skyformer.loading import load_model

_TRACED = (2, 512)  # batch and length of the example that is traced
_TOLERANCE = 1e-4  # of class scores, in float32


class _Scores(nn.Module):
    """`(tokens, mask)` → class scores; positions are 0 … N − 1."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.model(tokens, mask)


def export_program(source: Path, target: Path) -> int:
    """Write the model of a checkpoint as a program for any batch size and any length from 64 on; return its bytes.

    `torch.export.load(target).module()(tokens, mask)` gives `(B, classes)` float32 scores for `(B, N)` int64 tokens and
    their bool mask, or `(B, 2, N)` for two documents. Image tasks take all pixels and mask the black ones. Sequences
    shorter than 64 tokens must be padded to 64.

    Raises:
        CheckpointError: for a source that cannot be read.
        RunError: for an attention whose operations depend on the sizes of the example that is traced, or a model that
            was pretrained only.
    """
    model = load_model(source)
    model.check_classifies()
    scores = _Scores(model)
    encoder, documents = model.encoder, model.head.num_documents
    longest = encoder.max_length

    def example(batch: int, length: int) -> tuple[Tensor, Tensor]:
        shape = (batch, length) if documents == 1 else (batch, documents, length)
        generator = torch.Generator().manual_seed(batch)
        tokens = torch.randint(encoder.tokens.num_embeddings, shape, generator=generator)
        lengths = torch.randint(1, length + 1, (*shape[:-1], 1), generator=generator)
        return tokens, torch.arange(length) < lengths

    last = 1 if documents == 1 else 2
    any_size = {0: torch.export.Dim.AUTO, last: torch.export.Dim.AUTO}
    try:
        with torch.no_grad():
            traced = example(_TRACED[0], min(_TRACED[1], longest))
            program = torch.export.export(scores, traced, dynamic_shapes=(any_size, any_size), strict=False)
            exported = program.module()
            for batch, length in ((1, longest), (3, longest), (3, longest // 2 + 1), (1, min(64, longest))):
                inputs = example(batch, length)
                worst = (exported(*inputs) - scores(*inputs)).abs().max().item()
                if not worst < _TOLERANCE:
                    raise RunError(
                        f"export: scores differ by {worst:.1e} from the model's at {batch} × {length} tokens"
                    )
    except (AssertionError, RuntimeError) as error:
        if isinstance(error, RunError):
            raise
        name = type(next(module for module in encoder.modules() if isinstance(module, Attention))).__name__
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunError(
            f"export: {name} has no program for all batch sizes and lengths ({reason}). Fix: export a checkpoint, "
            "--output <name>.ckpt"
        ) from error
    content = io.BytesIO()
    torch.export.save(program, content)
    write_atomically(target, content.getbuffer())
    return target.stat().st_size
