"""`study approximation`: distance of each method's output from the attention that it approximates (Figure 1).

Query, key and value are `(B, H, n, p)`, without padding. The exact attentions are dense and in float64.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from skyformer.attention import Attention, SkyformerAttention
from skyformer.attention.reformer import SELF_PENALTY
from skyformer.exceptions import RunError
from skyformer.installation import command_parser
from skyformer.ops.gaussian import gaussian_attention
from skyformer.ops.kernel import half_square
from skyformer.ops.nystrom import nystrom_gaussian_attention
from skyformer.report.style import style_of
from skyformer.study.approximation_pictures import draw_choices, draw_errors, seconds_in_all
from skyformer.study.backends import Description, make_attention, read_backends, with_defaults
from skyformer.study.inputs import Heads, heads_of_encoder, heads_of_setting
from skyformer.study.matrices import relative_distance, softmax_target
from skyformer.study.peers import import_peers, measure_peers
from skyformer.study.setting import Setting, make_parser, print_tables, write_rows
from skyformer.study.theorem import measure_bound, measure_choices


def shared_target(query: Tensor, value: Tensor) -> Tensor:
    """Return what Reformer approximates: softmax over the other tokens' normalised queries (Kitaev et al., §2)."""
    query = query.double()
    logits = query @ (query / query.norm(dim=-1, keepdim=True)).mT * query.shape[-1] ** -0.5
    logits.diagonal(dim1=-2, dim2=-1).sub_(SELF_PENALTY)
    return logits.softmax(dim=-1) @ value.double()


def target_of(backend: Attention, query: Tensor, key: Tensor, value: Tensor) -> tuple[str, Tensor]:
    """Name and output of the attention that a backend approximates: softmax, unless it is Skyformer's or shares its
    keys.
    """
    if isinstance(backend, SkyformerAttention):
        return "kernelized", gaussian_attention(query.double(), key.double(), value.double())
    if backend.shares_query_and_key:
        return "shared softmax", shared_target(query, value)
    return "softmax", softmax_target(query, key, value)


def skyformer_softmax(layer: SkyformerAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Skyformer's approximation of softmax attention: of A = exp(Q Kᵀ / √p), and then of D = diag(A 1).

    `A = D_Q^½ C D_K^½` (Eq. 3), so that with C̃ and weights w = exp(‖k‖² / 2), k scaled, `D̃⁻¹ Ã V = C̃ (w V) / C̃ w`;
    D_Q cancels.
    """
    landmarks, _ = layer.landmarks(query, key, None)
    exponent = half_square(key * key.shape[-1] ** -0.25)
    weights = (exponent - exponent.amax(dim=2, keepdim=True)).exp()
    both = [
        nystrom_gaussian_attention(query, key, right, landmarks, ridge=layer.ridge, solver=layer.solver)
        for right in (weights * value, weights)
    ]
    return both[0] / both[1]


# Arguments that are d.
_SIZES = ("num_landmarks", "projected_length", "num_features", "num_queries")


def sized(attention: Description, num_landmarks: int, length: int, seed: int) -> Description:
    """A backend at size d, its own seed set.

    d is the number of landmarks, features or queries, or the projected length. For Reformer and BigBird it is the
    number of keys that a query sees: two chunks a round, or five blocks and the random ones. Nyströmformer's
    convolution is omitted, because it approximates nothing.

    Args:
        attention: with all its arguments: see `with_defaults`.
        num_landmarks: d.
        length: n.
        seed: seed of the backend's random numbers.

    Raises:
        RunError: for a backend without such an argument.
    """
    arguments = dict(attention.get("init_args") or {})
    changed: dict[str, int] = {name: num_landmarks for name in _SIZES if name in arguments}
    if "chunk_length" in arguments:
        chunk = max(1, num_landmarks // (2 * arguments.get("num_rounds", 1)))
        changed |= {"chunk_length": chunk, "num_buckets": 2 * max(1, length // (2 * chunk))}
    if "block_size" in arguments:
        changed["block_size"] = max(1, num_landmarks // (5 + arguments.get("num_random_blocks", 0)))
    if not changed:
        known = ", ".join((*_SIZES, "chunk_length", "block_size"))
        raise RunError(f"{attention['class_path']} has no size to vary; its class must take one of {known}")
    own = {"seed": seed, "conv_kernel": 0}
    changed |= {name: value for name, value in own.items() if name in arguments}
    return {**attention, "init_args": {**arguments, **changed}}


def measure_backends(
    inputs: dict[int, Heads], backends: Sequence[str], sizes: Sequence[int], draws: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Return a row for each method, target, length, d and draw.

    `error` is the spectral norm of the difference between the two outputs. `relative` is `error` divided by the
    target's norm. Both are means over the heads.

    Args:
        inputs: query, key and value `(1, H, n, p)`, by length.
        backends: overlays or YAML files.
        sizes: the d; those below n are taken.
        draws: seeds of the methods' random numbers.

    Raises:
        RunError: for a backend that cannot be made, before anything is measured.
    """
    named = {name: with_defaults(attention) for name, (_, attention) in read_backends(backends).items()}
    for attention in named.values():
        for num_landmarks in sizes:
            make_attention(sized(attention, num_landmarks, num_landmarks, 0), 1, 8, num_landmarks, 0)
    for length, heads in inputs.items():
        exact = softmax_target(*heads)
        _, num_heads, _, head_dim = heads[0].shape
        for name, attention in named.items():
            print(f"n = {length:,}: {name}", file=sys.stderr)
            for num_landmarks in (size for size in sizes if size < length):
                for draw in draws:
                    at_size = sized(attention, num_landmarks, length, draw)
                    backend = make_attention(at_size, num_heads, head_dim, length, draw)
                    place = {"length": length, "num_landmarks": num_landmarks, "draw": draw, "method": name}
                    for target, method_error in _errors(backend, heads, exact):
                        yield {**place, "target": target, **method_error}


@torch.no_grad()
def _errors(backend: Attention, heads: Heads, exact: Tensor) -> Iterator[tuple[str, dict[str, float]]]:
    query, key, value = (x.double() for x in heads)
    out = backend(query, query if backend.shares_query_and_key else key, value, None)
    target, approximated = target_of(backend, query, key, value)
    yield target, relative_distance(out, approximated)
    if target != "softmax":
        yield "softmax", relative_distance(out, exact)
    if isinstance(backend, SkyformerAttention):
        yield "softmax through A and D", relative_distance(skyformer_softmax(backend, query, key, value), exact)


BACKENDS = ["skyformer", "nystromformer", "linformer", "informer", "performer", "reformer", "bigbird"]
LENGTHS = (512, 1024, 2048, 4096)
_DESCRIPTION = (
    "Spectral-norm errors of methods and of choices of landmarks against d and n (Figure 1, Theorem 2). With --encoder "
    "<name or folder> --text <file> in place of --config, of a Hugging Face encoder; --encoder x --help shows the rest."
)
_NOTES = (
    "Means over heads and draws; a method's own parameters (Linformer's projections) are newly drawn. Skyformer is far "
    "from softmax itself, since C has no row normaliser: through A and D it approximates softmax (Figure 1). Reformer "
    "takes the queries for keys."
)
RIDGES = (0.1, 0.0)  # the default γ, and what the theorem has


def run_approximation(args: list[str]) -> None:
    """Errors of methods and of choices of landmarks against d and n: `errors.csv`, `landmarks.csv`, `bound.csv`,
    `approximation.md` and two pictures.
    """
    config, inputs, source = _of_encoder(args) if _names_encoder(args) else _of_setting(args)
    draws = range(config.seed_everything, config.seed_everything + config.draws)
    errors = [
        *measure_backends(inputs, config.backends, config.num_landmarks, draws),
        *measure_peers(inputs, config.peers, config.num_landmarks, config.seed_everything),
    ]
    choices = list(measure_choices(inputs, config.num_landmarks, RIDGES, draws))
    bounds = list(measure_bound(inputs))
    output = Path(config.output).expanduser()
    for name, rows in (("errors", errors), ("landmarks", choices), ("bound", bounds)):
        write_rows(output / f"{name}.csv", rows)
    title = f"Approximation of attention, {source}"
    tables = [*_error_tables(errors), *_choice_tables(choices), _bound_table(bounds)]
    print_tables(output / "approximation.md", title, tables)
    draw_errors(errors, title, output / "approximation.png")
    draw_choices(choices, bounds, title, output / "landmarks.png")
    print(f"{output}: approximation.md, errors.csv, landmarks.csv, bound.csv, approximation.png, landmarks.png")


def _names_encoder(args: list[str]) -> bool:
    return any(argument.partition("=")[0] == "--encoder" for argument in args)


def _of_setting(args: list[str]) -> tuple[Namespace, dict[int, Heads], str]:
    parser = make_parser("approximation", _DESCRIPTION, BACKENDS, "report/approximation")
    _add_arguments(parser)
    setting = Setting.read(parser, args)
    config = setting.config
    longest = setting.data.max_length
    lengths = config.lengths or [n for n in LENGTHS if n <= longest] or [longest]
    _check(config, lengths)
    return config, heads_of_setting(setting, lengths, config.layer), f"{setting.task}, {setting.source}"


def _of_encoder(args: list[str]) -> tuple[Namespace, dict[int, Heads], str]:
    parser = command_parser("study approximation", _DESCRIPTION)
    add = parser.add_argument
    add("--encoder", type=str, required=True, help="Name or folder of a Hugging Face encoder.")
    add("--text", type=str, required=True, help="Text file; its first tokens are used.")
    add("--backends", type=list[str], default=BACKENDS, help="Overlays of configs/attention, or YAML files.")
    add("--output", type=str, default="report/approximation", help="Folder to write to.")
    add("--seed_everything", type=int, default=0, help="Seed of the random draws.")
    _add_arguments(parser)
    config = parser.parse_args(args)
    lengths = config.lengths or [512]
    _check(config, lengths)
    inputs = heads_of_encoder(config.encoder, Path(config.text).expanduser(), lengths, config.layer)
    return config, inputs, config.encoder


def _add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--lengths",
        type=list[int] | None,
        help="n; default: 512, 1024, 2048, 4096, those that the task or encoder has.",
    )
    add("--num_landmarks", type=list[int], default=[16, 32, 64, 128, 256], help="d.")
    add("--peers", type=list[str], default=[], help="Other libraries: taylor-series-linear-attention, pykeops.")
    add("--layer", type=int, default=-1, help="Layer to measure, from 0; -1 is the last.")
    add("--draws", type=int, default=3, help="Repeats with other random numbers.")


def _check(config: Namespace, lengths: Sequence[int]) -> None:
    sizes = config.num_landmarks
    for name, values in (("lengths", lengths), ("num_landmarks", sizes)):
        if not values or min(values) < 16:
            raise RunError(f"--{name} {values}: name numbers of at least 16")
    if min(lengths) <= min(sizes):
        raise RunError(
            f"--lengths {list(lengths)}, --num_landmarks {sizes}: each length must exceed one number of them"
        )
    import_peers(config.peers)
    if config.draws < 1:
        raise RunError(f"--draws {config.draws} must be at least 1")


def _error_tables(rows: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, str]]]]:
    """Return a table for each length: methods and targets down, d across."""
    tables = []
    for length in dict.fromkeys(row["length"] for row in rows):
        own = [row for row in rows if row["length"] == length]
        pairs = dict.fromkeys((row["method"], row["target"]) for row in own)
        table = [
            {"method": style_of(method).label, "approximated": target}
            | _across([row for row in own if (row["method"], row["target"]) == (method, target)])
            for method, target in pairs
        ]
        tables.append((f"n = {length:,}: ‖output − target‖₂ / ‖target‖₂ by d. {_NOTES}", table))
    return tables


def _choice_tables(rows: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, str]]]]:
    """Return a table for each length: choices and γ down, d across, and the time of the largest d."""
    tables = []
    for length in dict.fromkeys(row["length"] for row in rows):
        own = [row for row in rows if row["length"] == length]
        most = max(row["num_landmarks"] for row in own)
        table = []
        for ridge, choice in dict.fromkeys((row["ridge"], row["choice"]) for row in own):
            chosen = [row for row in own if (row["ridge"], row["choice"]) == (ridge, choice)]
            largest = [row for row in chosen if row["num_landmarks"] == most]
            seconds = fmean(row["seconds"] for row in largest), fmean(map(seconds_in_all, largest))
            cells = {"landmarks": choice, "γ": f"{ridge:g}"} | _across(chosen)
            times = (f"{1000 * x:.1f}" for x in seconds)
            table.append(cells | dict(zip((f"ms at {most}", "with attention"), times, strict=True)))
        tables.append((f"n = {length:,}: ‖C̃ − C‖₂ / ‖C‖₂ by choice of landmarks and d; CPU time of a head.", table))
    return tables


def _across(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    sizes = dict.fromkeys(row["num_landmarks"] for row in rows)
    return {str(d): f"{fmean(row['relative'] for row in rows if row['num_landmarks'] == d):.2g}" for d in sizes}


def _bound_table(rows: Sequence[dict[str, Any]]) -> tuple[str, list[dict[str, str]]]:
    table = [
        {
            "n": f"{row['length']:,}",
            "λ / ‖C‖": f"{row['relative']:.2g}",
            "d_stat": f"{row['d_stat']:.1f}",
            "d of the bound": f"{row['bound']:,.0f}",
        }
        for row in rows
    ]
    return "Theorem 2, the worst head: d = 2n max ℓ_i(λ) · ln(n / 0.1), its constant C taken as one, δ = 0.1.", table
