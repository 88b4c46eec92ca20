"""The benchmark of the paper's figures runs small, resumes, and leaves the full results alone."""

import csv
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CELL = ("recipe", "system", "model", "n_latents", "seed")


def run(*arguments):
    # The benchmarks belong to this checkout, whatever else is installed.
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "paper.py"), *arguments],
        env={**os.environ, "PYTHONPATH": path, "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_quick_run_resumes(tmp_path):
    small = ("--quick", "--systems", "Arneodo", "--n-latents", "3", "--out", str(tmp_path))
    part = run(*small, "--recipe", "ours")
    assert part.returncode == 0, part.stderr
    before = (tmp_path / "paper.csv").read_text()

    whole = run(*small)
    assert whole.returncode == 0, whole.stderr
    assert "10 cells: 2 done, 8 to run." in whole.stdout
    assert "| ablation | Arneodo | vanilla RNN | 3 | 1 |" in whole.stdout
    after = (tmp_path / "paper.csv").read_text()
    assert after.startswith(before)

    rows = list(csv.DictReader(after.splitlines()))
    assert len({tuple(row[name] for name in CELL) for row in rows}) == len(rows) == 10
    for row in rows:
        assert float(row["validation_rate_r2"]) <= 1
        assert 0 <= float(row["test_state_r2"]) <= 1
    for figure in ("paper.png", "ablation.png"):
        assert (tmp_path / figure).read_bytes().startswith(b"\x89PNG")


def test_refusals():
    for arguments, message in [
        (["--quick", "--out", str(ROOT / "benchmarks" / "results")], "must not mix"),
        ([], "or a filter"),
        (["--recipe", "ours", "--systems", "Chua"], "invalid choice: 'Chua'"),
        (["--recipe", "ours", "--models", "oracle"], "No cell matches"),
    ]:
        result = run(*arguments)
        assert result.returncode != 0
        assert message in result.stderr
        assert "Traceback" not in result.stderr
