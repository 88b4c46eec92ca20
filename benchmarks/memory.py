"""Peak memory of a process that fits NODESAE.

python benchmarks/memory.py [--quick]
python benchmarks/memory.py --large [--quick] [--out benchmarks/results/memory.csv]

By default: 2000 trials of 70 bins and 10 neurons, all epochs. With --large (on Linux): one epoch on
a memory-mapped file of 2 GB in a temporary folder, 20000 trials of 200 bins and 500 neurons in
uint8. Pages of the file are not counted, as the system drops them when memory runs short; all else
of the process is, Python and torch included.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from _results import add_arguments, path_of, write

from sklearn_sae import NODESAE, __version__

#: Trials, bins, neurons.
LARGE, LARGE_QUICK = (20_000, 200, 500), (400, 40, 50)


def main(quick):
    epochs = {"max_epochs": 2} if quick else {}
    imported = peak_megabytes()
    phase = np.random.default_rng(0).uniform(0, 2 * np.pi, (2000, 1, 1))
    phase = phase + 0.2 * np.arange(70)[:, np.newaxis]
    spikes = np.random.default_rng(1).poisson(np.exp(np.sin(phase + np.arange(10))))
    estimator = NODESAE(n_latents=3, random_state=0, **epochs).fit(spikes)
    fitted = peak_megabytes()
    estimator.score(spikes)
    print(f"spikes {spikes.shape}, {spikes.nbytes / 1e6:.0f} MB")
    print(f"peak after imports {imported:.0f} MB, after fit {fitted:.0f} MB,", end=" ")
    print(f"after score {peak_megabytes():.0f} MB")


def peak_megabytes() -> float:
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


# ----------------------------------------------------------------------------- a mapped file


def main_large(quick, out):
    with tempfile.TemporaryDirectory(prefix="memory-") as folder:
        path = Path(folder) / "spikes.npy"
        write_spikes(path, LARGE_QUICK if quick else LARGE)
        # A fresh process: one that has made the file may hold memory that a fit then reuses.
        command = [sys.executable, __file__, "--fit", str(path), "--out", str(out)]
        subprocess.run(command, check=True)


def write_spikes(path, shape, n_drawn=200):
    """Sparse Poisson counts that follow a rotation; the same few trials over and over."""
    n_trials, n_bins, n_neurons = shape
    rng = np.random.default_rng(0)
    phase = rng.uniform(0, 2 * np.pi, (n_drawn, 1, 1)) + 0.1 * np.arange(n_bins)[:, np.newaxis]
    drawn = rng.poisson(np.exp(np.sin(phase + np.arange(n_neurons)) - 2.5)).astype(np.uint8)
    mapped = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    for start in range(0, n_trials, n_drawn):
        mapped[start : start + n_drawn] = drawn
    mapped.flush()


def fit_mapped(path, out):
    spikes = np.load(path, mmap_mode="r")
    imported = anonymous_megabytes()
    with Peak() as peak:
        start = time.process_time()
        NODESAE(n_latents=3, max_epochs=1, random_state=0).fit(spikes)
        seconds = time.process_time() - start
    row = dict(zip(("trials", "bins", "neurons"), spikes.shape, strict=True)) | {
        "dtype": spikes.dtype,
        "file_megabytes": round(spikes.nbytes / 1e6),
        "imported_megabytes": round(imported),
        "peak_megabytes": round(peak.megabytes),
        "processor_seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "version": __version__,
    }
    print(
        "{trials} trials, {bins} bins, {neurons} neurons: a file of {file_megabytes} MB\n"
        "beyond it {imported_megabytes} MB after imports, at most {peak_megabytes} MB in one epoch "
        "of fit, which took {processor_seconds} s of processors".format(**row)
    )
    write(out, [row])


class Peak:
    """The most anonymous memory this process holds meanwhile, looked up every few milliseconds."""

    def __enter__(self):
        self.megabytes, self.done = 0.0, threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self):
        while not self.done.wait(0.005):
            self.megabytes = max(self.megabytes, anonymous_megabytes())

    def __exit__(self, *error):
        self.done.set()
        self.thread.join()


def anonymous_megabytes() -> float:
    """Resident memory that is not backed by a file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError("/proc/self/status has no RssAnon")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--large", action="store_true", help="a memory-mapped file of 2 GB")
    parser.add_argument("--fit", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.fit:
        fit_mapped(arguments.fit, arguments.out)
    elif arguments.large:
        main_large(arguments.quick, path_of("memory", arguments))
    else:
        main(arguments.quick)
