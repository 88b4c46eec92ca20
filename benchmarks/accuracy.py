"""Accuracy of the default estimators on Arneodo spikes, as the paper makes them.

One fit of NODESAE and of RNNSAE at the true latent dimension, beside the paper's published figures
and the limit that spike noise sets, then a grid search over the latent dimension.

    python benchmarks/accuracy.py [--quick]
"""

import argparse
import time

import pandas as pd
from sklearn.model_selection import GridSearchCV

from sklearn_sae import NODESAE, RNNSAE
from sklearn_sae.datasets import make_chaotic_spikes, oracle_rates
from sklearn_sae.metrics import rate_r2, state_r2

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--quick", action="store_true", help="a tiny version, for a smoke test")
quick = parser.parse_args().quick
sizes = {"n_trials": 60, "n_bins": 20} if quick else {}
settings = {"random_state": 0, **({"max_epochs": 10} if quick else {})}

data = make_chaotic_spikes("Arneodo", random_state=0, **sizes)
train = data.spikes[data.train]

rows = []
for name, estimator, published in [
    ("NODESAE", NODESAE(n_latents=3, **settings), "0.912 / 0.940"),
    ("RNNSAE", RNNSAE(n_latents=3, **settings), "0.511 / 0.686"),
]:
    start = time.perf_counter()
    estimator.fit(train)
    seconds = time.perf_counter() - start
    for part in ("validation", "test"):
        trials = data[part]
        latents = estimator.transform(data.spikes[trials])
        rates = estimator.predict(data.spikes[trials])
        rows.append(
            {
                "estimator": name,
                "trials": part,
                "rate R2": rate_r2(data.rates[trials], rates),
                "state R2": state_r2(data.latents[trials], latents),
                "paper (rate / state)": published,
                "limit (rate)": rate_r2(data.rates[trials], oracle_rates(data, trials=trials)),
                "bits/spike": estimator.score(data.spikes[trials]),
                "fit seconds": seconds,
            }
        )
print(pd.DataFrame(rows).round(4).to_string(index=False), flush=True)

search = GridSearchCV(NODESAE(**settings), {"n_latents": [2, 3, 5]}, cv=3, n_jobs=2).fit(train)
columns = ["param_n_latents", "mean_test_score", "std_test_score", "mean_fit_time"]
print("\nGridSearchCV(NODESAE(random_state=0), n_latents), bits/spike, 3 folds of training trials")
print(pd.DataFrame(search.cv_results_)[columns].round(4).to_string(index=False))
