"""Peak memory of a process that fits NODESAE to 2000 trials of 70 bins and 10 neurons.

python benchmarks/memory.py [--quick]
"""

import argparse
import resource
import sys

import numpy as np

from sklearn_sae import NODESAE

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--quick", action="store_true", help="two epochs instead of all")
epochs = {"max_epochs": 2} if parser.parse_args().quick else {}


def peak_megabytes() -> float:
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


imported = peak_megabytes()
phase = np.random.default_rng(0).uniform(0, 2 * np.pi, (2000, 1, 1))
time = 0.2 * np.arange(70)[:, np.newaxis]
spikes = np.random.default_rng(1).poisson(np.exp(np.sin(phase + time + np.arange(10))))
estimator = NODESAE(n_latents=3, random_state=0, **epochs).fit(spikes)
fitted = peak_megabytes()
estimator.score(spikes)
print(f"spikes {spikes.shape}, {spikes.nbytes / 1e6:.0f} MB")
print(f"peak after imports {imported:.0f} MB, after fit {fitted:.0f} MB,", end=" ")
print(f"after score {peak_megabytes():.0f} MB")
