"""What a process has set in torch neither breaks nor changes a fit, nor what it is good for."""

import contextlib
import threading

import numpy as np
import pytest
import torch
from conftest import SMALL
from sklearn.base import clone

import sklearn_sae
from sklearn_sae import NODESAE, RNNSAE
from sklearn_sae._torch_state import own_torch_state

FAST = SMALL | {"max_epochs": 2}


@contextlib.contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def all_of_them():
    with contextlib.ExitStack() as stack:
        for name, state in STATES.items():
            if name != "all":
                stack.enter_context(state())
        yield


STATES = {
    "float64": default_dtype,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default device": lambda: torch.device("meta"),
    "all": all_of_them,
}
ESTIMATORS = {
    "inferred inputs": NODESAE(**FAST, n_inferred_inputs=1),
    "GRU": RNNSAE(**FAST),
    "encoder, early stopping": NODESAE(**FAST, inference="amortized", early_stopping=True),
    "dispersed, several": NODESAE(**FAST, likelihood="negative_binomial", n_init=2),
    "Gaussian": NODESAE(**FAST, likelihood="gaussian"),
}


def now():
    """All that a method could leave behind."""
    return (
        torch.get_default_dtype(),
        torch.empty(0).device,
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
    )


def answers(est, spikes):
    """What every public method says."""
    z0 = est.initial_conditions(spikes)
    found = {
        "z0": z0,
        "latents": est.transform(spikes),
        "rates": est.predict(spikes),
        "rates of latents": est.inverse_transform(z0),
        "score": est.score(spikes),
        "forecast": est.forecast(spikes[:, :10], 3),
        "simulation": est.simulate(z0, 5),
        "step": est.step(z0),
    }
    if isinstance(est, NODESAE):
        found["vector field"] = est.vector_field(z0)
    if est.inference == "semi-amortized":
        found["latents and std"] = est.transform(spikes, return_std=True)
        found["rates and std"] = est.predict(spikes, return_std=True)
        found["model variance"] = est.model_variance_
    if est.n_inferred_inputs:
        found["inputs and std"] = est.infer_inputs(spikes, return_std=True)
        found["input matrix"] = est.inferred_input_matrix_
    return found


#: Every state for one kind of model, and all states together for each.
CASES = [(kind, "all") for kind in ESTIMATORS]
CASES += [("inferred inputs", state) for state in STATES if state != "all"]


@pytest.mark.parametrize(("kind", "state"), CASES)
def test_answers_are_the_same_to_the_last_bit(kind, state, spikes, tmp_path):
    spikes = spikes[:20]
    est = clone(ESTIMATORS[kind]).fit(spikes)
    expected = answers(est, spikes)
    with STATES[state]():
        before = now()
        again = clone(est).fit(spikes)
        found = answers(again, spikes)
        of_usual = answers(est, spikes)
        again.save(tmp_path / "again.safetensors")
        loaded = sklearn_sae.load(tmp_path / "again.safetensors")
        assert now() == before
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
        np.testing.assert_array_equal(of_usual[name], value, err_msg=name)
    # What was made then can be used, and trained on, when nothing is set.
    for one in (again, loaded):
        np.testing.assert_array_equal(one.predict(spikes), expected["rates"])
        one.set_params(warm_start=True, max_epochs=1, early_stopping=False).fit(spikes)


def test_known_inputs(node, spikes):
    spikes = spikes[:20]
    known = np.random.default_rng(0).normal(size=(*spikes.shape[:2], 1)).astype(np.float32)
    node.set_params(max_epochs=2)
    expected = clone(node).fit(spikes, inputs=known)
    with all_of_them():
        node.fit(spikes, inputs=known)
        found = node.simulate(np.zeros(2), 4, inputs=known[0, :4])
    np.testing.assert_array_equal(found, expected.simulate(np.zeros(2), 4, inputs=known[0, :4]))


def test_it_is_restored_after_an_error_too(node, spikes):
    spikes = spikes[:20]
    with all_of_them():
        before = now()
        with pytest.raises(ValueError, match="random_state"):
            node.set_params(random_state=-1).fit(spikes)
        with pytest.raises(ValueError, match="neurons|features"):
            node.set_params(random_state=0, max_epochs=1).fit(spikes).predict(spikes[..., 1:])
        assert now() == before


def test_threads_share_the_default_dtype():
    with default_dtype():
        entered, leave = threading.Event(), threading.Event()

        def other():
            with own_torch_state():
                entered.set()
                leave.wait(5)

        thread = threading.Thread(target=other)
        with own_torch_state():
            thread.start()
            assert entered.wait(5)
        assert torch.get_default_dtype() == torch.float32  # the other is still within
        leave.set()
        thread.join()
        assert torch.get_default_dtype() == torch.float64


@pytest.mark.parametrize("grad", [True, False])
def test_gradients_are_recorded_only_if_asked_for(grad):
    for outer in (torch.no_grad, torch.enable_grad, torch.inference_mode):
        with outer(), own_torch_state(grad=grad):
            assert torch.is_grad_enabled() == grad
            assert not torch.empty(0).is_inference()
