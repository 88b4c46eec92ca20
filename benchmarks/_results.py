"""Where benchmarks leave their figures."""

import csv
import tempfile
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def add_arguments(parser, quick="tiny sizes, to check that it runs"):
    """The options ``--quick`` and ``--out``, that all benchmarks with a CSV have."""
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument(
        "--out",
        type=Path,
        help="the CSV (default: in benchmarks/results; in a temporary folder if quick)",
    )


def path_of(name, arguments):
    """The CSV that the arguments ask for, or that of the benchmark called ``name``."""
    if arguments.out:
        return arguments.out
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-quick-")) if arguments.quick else RESULTS
    return folder / f"{name}.csv"


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"Saved {path}")
