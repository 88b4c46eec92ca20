"""Benchmarks run small and leave the full results alone; that of the paper resumes."""

import csv
import sys
from pathlib import Path

import pytest
from common import ROOT, run_script

CELL = ("recipe", "system", "model", "n_latents", "seed")


def run(benchmark, *arguments):
    return run_script(Path("benchmarks", benchmark), *arguments)


def test_quick_run_resumes(tmp_path):
    small = ("--quick", "--systems", "Arneodo", "--n-latents", "3", "--out", str(tmp_path))
    part = run("paper.py", *small, "--recipe", "ours")
    assert part.returncode == 0, part.stderr
    before = (tmp_path / "paper.csv").read_text()

    whole = run("paper.py", *small)
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
        result = run("paper.py", *arguments)
        assert result.returncode != 0
        assert message in result.stderr
        assert "Traceback" not in result.stderr


def test_sweeps(tmp_path):
    result = run("sweeps.py", "--quick", "--out", str(tmp_path / "sweeps.csv"))
    assert result.returncode == 0, result.stderr
    rows = list(csv.DictReader((tmp_path / "sweeps.csv").read_text().splitlines()))
    assert [row["n_jobs"] for row in rows] == ["1", "1", "2"]
    # conftest.py sets one thread for all processes, and then fits are equal to the last bit.
    assert [row["threads_per_fit"] for row in rows] == ["1", "1", "1"]
    assert "equal scores: True" in result.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells memory apart by what backs it")
def test_memory_of_a_mapped_file(tmp_path):
    result = run("memory.py", "--large", "--quick", "--out", str(tmp_path / "memory.csv"))
    assert result.returncode == 0, result.stderr
    [row] = csv.DictReader((tmp_path / "memory.csv").read_text().splitlines())
    assert (row["trials"], row["bins"], row["neurons"]) == ("400", "40", "50")
    assert (row["dtype"], row["file_megabytes"]) == ("uint8", "1")
    # Batches alone take more than what the file holds.
    assert float(row["peak_megabytes"]) > float(row["imported_megabytes"]) + 1


def test_the_readme_holds_the_table_of_performance(tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    printed = run("performance_table.py", "--quick")
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout.count("\n") == 10
    copy = tmp_path / "README.md"
    copy.write_text(readme.replace(printed.stdout, "an old table\n"), encoding="utf-8")
    assert copy.read_text(encoding="utf-8") != readme
    written = run("performance_table.py", "--readme", str(copy))
    assert written.returncode == 0, written.stderr
    assert copy.read_text(encoding="utf-8") == readme
