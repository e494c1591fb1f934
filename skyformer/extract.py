"""`python run.py extract`: take Retrieval's files out of the Long Range Arena release."""

from pathlib import Path

from datamodules.retrieval import FILES, FOLDER
from datamodules.sources.release import SUMS, extract
from skyformer.installation import command_parser


def run_extract(args: list[str]) -> Path:
    """Extract the pairs of papers and print their checksums; return their folder.

    Args:
        args: arguments after `extract`.

    Raises:
        PreparedDataError: if the archive or the disk does not allow it.
        SystemExit: 2 for a wrong argument.
    """
    parser = command_parser(
        "extract",
        "Take Retrieval's pairs of papers out of the Long Range Arena release, without unpacking the rest. "
        "Reads up to the last pair. Files that are whole are kept, so run it again after an interruption.",
    )
    parser.add_argument("--source", type=str, required=True, help="lra_release.gz, its URL, or - for standard input.")
    parser.add_argument("--output", type=str, default="data/lra_release", help="Folder to write to.")
    given = parser.parse_args(args)
    folder = Path(given.output).expanduser() / FOLDER
    for name, digest in extract(given.source, list(FILES.values()), folder).items():
        print(f"{name}: {(folder / name).stat().st_size / 1e6:,.0f} MB, sha256 {digest}")
    print(f"They are in {folder}, with {SUMS}. Train on them with --data.source {given.output}")
    return folder
