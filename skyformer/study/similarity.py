"""`study similarity`: how far a sentence encoder's similarities move when landmarks approximate its softmax attention.

Nothing is trained. A text's vector is the mean over its tokens, at length one; a similarity is the product of two.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from skyformer.exceptions import RunError
from skyformer.hf import register
from skyformer.installation import command_parser
from skyformer.study.setting import print_tables, write_rows

SENTENCES = (
    "The ferry leaves the harbour at seven and reaches the island before noon.",
    "A storm delayed all boats to the island until the following morning.",
    "The bakery on the corner sells rye bread that is still warm at six.",
    "Fresh bread and coffee are what most customers buy before work.",
    "The committee postponed its vote on the new railway budget.",
    "Parliament will debate the cost of high-speed trains next week.",
    "Our telescope recorded the light of a galaxy ten billion years old.",
    "Astronomers measured how fast distant stars move away from us.",
    "The goalkeeper saved two penalties and the home team won the cup.",
    "Fans celebrated the victory in the streets until late at night.",
    "Stir the onions slowly in butter until they are soft and golden.",
    "Add a spoon of vinegar to the soup just before you serve it.",
    "The patient was given antibiotics and recovered within a week.",
    "Doctors advise washing hands often to avoid an infection.",
    "The program crashes because the pointer is used after it is freed.",
    "A unit test caught the memory error before the release.",
)


def texts(length: int) -> list[str]:
    """16 texts of at least `length` words: every third sentence is the text's own, the others differ in their order."""
    count = len(SENTENCES)
    return [
        " ".join(
            SENTENCES[own if place % 3 == 0 else (3 * own + 5 * place) % count] for place in range(length // 8 + 1)
        )
        for own in range(count)
    ]


@torch.no_grad()
def measure_similarities(
    model: Any, inputs: dict[int, Tensor], sizes: Sequence[int], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Return a row for each length, d and seed of the landmarks.

    `error` and `correlation` compare the similarities of all pairs of texts with the original ones, whose standard
    deviation is `spread`. `cosine` compares the two vectors of a text, on average.

    Args:
        model: an encoder of transformers, in evaluation mode.
        inputs: token ids `(texts, n)` by length n, without padding.
        sizes: the d.
        seeds: seeds of the landmarks.
    """
    rows = []
    for length, ids in inputs.items():
        model.set_attn_implementation("eager")
        original = _vectors(model, ids)
        pairs = torch.ones(len(ids), len(ids), dtype=torch.bool).triu(1)
        expected = (original @ original.T)[pairs]
        model.set_attn_implementation("skyformer_softmax")
        for num_landmarks in sizes:
            for seed in seeds:
                model.config.skyformer = {"num_landmarks": num_landmarks, "seed": seed}
                vectors = _vectors(model, ids)
                found = (vectors @ vectors.T)[pairs]
                row = {
                    "length": length,
                    "num_landmarks": num_landmarks,
                    "seed": seed,
                    "error": (found - expected).abs().mean().item(),
                    "correlation": torch.corrcoef(torch.stack([found, expected]))[0, 1].item(),
                    "cosine": (vectors * original).sum(dim=-1).mean().item(),
                    "spread": expected.std().item(),
                }
                rows.append(row)
    return rows


def _vectors(model: Any, ids: Tensor) -> Tensor:
    return torch.nn.functional.normalize(model(ids).last_hidden_state.mean(dim=1), dim=-1)


_CAPTIONS = {
    "error": "Mean |similarity − original| over the 120 pairs of texts; spread is the deviation of the original ones",
    "correlation": "Correlation of the 120 similarities with the original ones",
    "cosine": "Cosine of a text's vectors with and without the approximation, mean over the 16 texts",
}


def run_similarity(args: list[str]) -> None:
    """Similarities of 16 texts with an encoder's own attention and with `skyformer_softmax`: `similarity.csv` and
    `similarity.md`.

    Args:
        args: arguments after `study similarity`.

    Raises:
        RunError: for an encoder or a number that cannot be used.
        SystemExit: 2 for a wrong argument.
    """
    parser = command_parser(
        "study similarity",
        "Similarities of 16 texts by a Hugging Face sentence encoder, with its softmax attention and with "
        "skyformer_softmax in its place.",
    )
    add = parser.add_argument
    add("--encoder", type=str, required=True, help="Name or folder of a Hugging Face encoder.")
    add("--lengths", type=list[int], default=[64, 128, 256, 512], help="Tokens of a text.")
    add("--num_landmarks", type=list[int], default=[16, 32, 64, 128, 256], help="d.")
    add("--draws", type=int, default=3, help="Repeats with other landmarks.")
    add("--seed_everything", type=int, default=0, help="Seed of the first draw.")
    add("--output", type=str, default="report/similarity", help="Folder to write to.")
    config = parser.parse_args(args)
    numbers = [*config.lengths, *config.num_landmarks, config.draws]
    if not config.lengths or not config.num_landmarks or min(numbers) < 1:
        raise RunError("--lengths, --num_landmarks and --draws must be at least 1. Fix: leave them out")
    model, inputs = _load(config.encoder, config.lengths)
    seeds = range(config.seed_everything, config.seed_everything + config.draws)
    rows = measure_similarities(model, inputs, config.num_landmarks, seeds)
    output = Path(config.output).expanduser()
    write_rows(output / "similarity.csv", rows)
    tables = [(caption, _table(rows, key)) for key, caption in _CAPTIONS.items()]
    print_tables(output / "similarity.md", f"skyformer_softmax in {Path(config.encoder).name}", tables)
    print(f"{output}: similarity.md, similarity.csv")


def _load(encoder: str, lengths: Sequence[int]) -> tuple[Any, dict[int, Tensor]]:
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise RunError("--encoder needs transformers. Fix: pip install -e '.[hf]'") from error
    try:
        model = AutoModel.from_pretrained(encoder).eval()
        tokenizer = AutoTokenizer.from_pretrained(encoder)
    except (OSError, ValueError) as error:
        raise RunError(f"--encoder {encoder}: {' '.join(str(error).split())[:300]}") from error
    most = getattr(model.config, "max_position_embeddings", max(lengths))
    if max(lengths) > most:
        raise RunError(f"--lengths {list(lengths)}: {encoder} has {most} positions. Fix: name smaller numbers")
    register()
    inputs = {}
    for length in lengths:
        ids = tokenizer(texts(length), truncation=True, max_length=length)["input_ids"]
        inputs[length] = torch.tensor(ids)
    return model, inputs


def _table(rows: Sequence[dict[str, Any]], key: str) -> list[dict[str, str]]:
    """Lengths down, d across; means over the draws."""
    table = []
    for length in dict.fromkeys(row["length"] for row in rows):
        own = [row for row in rows if row["length"] == length]
        cells = {"n": str(length)} | ({"spread": f"{own[0]['spread']:.3f}"} if key == "error" else {})
        for size in dict.fromkeys(row["num_landmarks"] for row in own):
            cells[f"d = {size}"] = f"{fmean(row[key] for row in own if row['num_landmarks'] == size):.3f}"
        table.append(cells)
    return table
