"""The two estimators document what they share in the same words, and all that they have."""

import ast
import inspect
import re

import numpy as np
import pytest

from sklearn_sae import NODESAE, RNNSAE

ESTIMATORS = [NODESAE, RNNSAE]

#: Shared parameters and attributes that mean to differ, and why.
DIFFERENT = {
    "hidden_sizes": "of the vector field, or of one of the cells only",
    "activation": "of the vector field, or of one of the cells only",
    "n_init": "other dynamics can be trained together",
    "warm_start": "names the parameters of the dynamics",
}


def documented(estimator, section):
    """Types and descriptions of a section's entries, by name; lines are joined."""
    text = inspect.getdoc(estimator)
    body = re.search(rf"^{section}\n-+\n(.*?)(?=^[\w ]+\n-+\n|\Z)", text, re.DOTALL | re.MULTILINE)
    entries = {}
    for entry in re.split(r"\n(?=\S)", body[1].strip()):
        names, kind, description = re.fullmatch(
            r"([\w, ]+) : (.*?)\n(.*)", entry, re.DOTALL
        ).groups()
        for name in names.split(", "):
            assert name not in entries
            entries[name] = kind, " ".join(description.split())
    return entries


def defaults(estimator):
    parameters = [*inspect.signature(estimator.__init__).parameters.values()][1:]
    return {parameter.name: parameter.default for parameter in parameters}


@pytest.mark.parametrize("section", ["Parameters", "Attributes"])
def test_what_both_estimators_have_is_documented_in_the_same_words(section):
    node, rnn = (documented(estimator, section) for estimator in ESTIMATORS)
    shared = node.keys() & rnn.keys()
    assert len(shared) > 20
    different = {name for name in shared if node[name] != rnn[name]}
    assert different == DIFFERENT.keys() & shared


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_parameters_are_documented_in_order_with_their_defaults(estimator):
    entries = documented(estimator, "Parameters")
    found = {
        name: ast.literal_eval(re.search(r"default=(.*)$", kind)[1])
        for name, (kind, _) in entries.items()
    }
    assert [*found.items()] == [*defaults(estimator).items()]
    assert all(description.endswith(".") for _, description in entries.values())


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_learned_attribute_is_documented(estimator, spikes):
    few = {"n_latents": 2, "max_epochs": 1, "horizon_growth": 0, "device": "cpu", "random_state": 0}
    fits = [
        {"likelihood": "poisson", "n_init": 2, "n_inferred_inputs": 1},
        {"likelihood": "negative_binomial", "early_stopping": True, "validation_fraction": 0.2},
        {"likelihood": "gaussian"},
        {"inference": "amortized"},
    ]
    learned = set()
    for settings in fits:
        # Some trials too long to be trained on whole.
        X = np.tile(spikes, (1, 20, 1)) if settings == {"likelihood": "gaussian"} else spikes
        fitted = estimator(**few, **settings).fit(X, inputs=np.zeros((*X.shape[:2], 1)))
        names = {name for name in dir(fitted) if re.fullmatch(r"[a-z]\w*[^_]_", name)}
        learned |= {name for name in names if hasattr(fitted, name)}
        assert fitted._fitted_model.learned().keys() <= learned
    assert learned == documented(estimator, "Attributes").keys()
