"""`python run.py study approximation`: Figure 1 and Theorem 2, and the choice of landmarks."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from skyformer.installation import program_name
from skyformer.report.style import style_of
from skyformer.runs import RunError
from skyformer.study.approximation import measure_backends
from skyformer.study.approximation_pictures import draw_choices, draw_errors
from skyformer.study.hugging_face import heads_of_encoder
from skyformer.study.inputs import Heads, heads_of_setting
from skyformer.study.output import say_tables, write_rows
from skyformer.study.setting import Setting, make_parser
from skyformer.study.theorem import measure_bound, measure_choices

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
    errors = list(measure_backends(inputs, config.backends, config.num_landmarks, draws))
    choices = list(measure_choices(inputs, config.num_landmarks, RIDGES, draws))
    bounds = list(measure_bound(inputs))
    output = Path(config.output).expanduser()
    for name, rows in (("errors", errors), ("landmarks", choices), ("bound", bounds)):
        write_rows(output / f"{name}.csv", rows)
    title = f"Approximation of attention, {source}"
    tables = [*_error_tables(errors), *_choice_tables(choices), _bound_table(bounds)]
    say_tables(output / "approximation.md", title, tables)
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
    return config, heads_of_setting(setting, lengths, config.layer, config.example), f"{setting.task}, {setting.source}"


def _of_encoder(args: list[str]) -> tuple[Namespace, dict[int, Heads], str]:
    parser = ArgumentParser(prog=f"{program_name()} study approximation", description=_DESCRIPTION, allow_abbrev=False)
    add = parser.add_argument
    add("--encoder", type=str, required=True, help="Name or folder of a Hugging Face encoder.")
    add("--text", type=str, required=True, help="A text file, of whose beginning the tokens are.")
    add("--backends", type=list[str], default=BACKENDS, help="Overlays of configs/attention, or YAML files.")
    add("--output", type=str, default="report/approximation", help="Folder to write to.")
    add("--seed_everything", type=int, default=0, help="Of the draws.")
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
    add("--layer", type=int, default=-1, help="Whose query, key and value; -1 is the last.")
    add("--example", type=int, default=0, help="Which of the dev set's examples that are long enough.")
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
    if config.draws < 1 or config.example < 0:
        raise RunError(f"--draws {config.draws} must be at least 1, --example {config.example} at least 0")


def _error_tables(rows: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, str]]]]:
    """For each length: methods and targets down, d across."""
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
    """For each length: choices and γ down, d across, and the time of the largest d."""
    tables = []
    for length in dict.fromkeys(row["length"] for row in rows):
        own = [row for row in rows if row["length"] == length]
        most = max(row["num_landmarks"] for row in own)
        table = []
        for ridge, choice in dict.fromkeys((row["ridge"], row["choice"]) for row in own):
            chosen = [row for row in own if (row["ridge"], row["choice"]) == (ridge, choice)]
            seconds = fmean(row["seconds"] for row in chosen if row["num_landmarks"] == most)
            cells = {"landmarks": choice, "γ": f"{ridge:g}"} | _across(chosen)
            table.append(cells | {f"ms at {most}": f"{seconds * 1000:.1f}"})
        tables.append((f"n = {length:,}: ‖C̃ − C‖₂ / ‖C‖₂ by choice of landmarks and d; time to choose, a head.", table))
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
