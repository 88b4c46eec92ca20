"""A fit that was killed goes on as if nothing had happened, and never from another's file."""

import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV

import sklearn_sae
from sklearn_sae import NODESAE, RNNSAE, _rollout_fits
from sklearn_sae._base import BaseSAE
from sklearn_sae._inference import fitted_model
from sklearn_sae._saving import files
from sklearn_sae._saving.files import read, write
from sklearn_sae._training import checkpoint as checkpoint_module
from sklearn_sae._training.path_fit import PathFit

STOPPING = {"early_stopping": True, "horizon_growth": 0.3, "validation_fraction": 0.25}
AMORTIZED = {"inference": "amortized", "dropout": 0.2}

#: Every kind of state: optimizers, inferences, dropout, validation, the learned and the drawn.
KINDS = {
    "node": NODESAE(**SMALL),
    "node, early stopping": NODESAE(**SMALL, **STOPPING),
    "node, adam, dropout": NODESAE(**SMALL, optimizer="adam", initial_condition_dropout=0.2),
    "node, two layers, one wide": NODESAE(**SMALL | {"hidden_sizes": (300, 4)}),
    "node, inferred inputs": NODESAE(**SMALL, n_inferred_inputs=1),
    "node, three of them": NODESAE(**SMALL, **STOPPING, n_init=3),
    "amortized": NODESAE(**SMALL, **AMORTIZED, initial_condition_dropout=0.1),
    "amortized, early stopping": RNNSAE(**SMALL, **AMORTIZED, **STOPPING),
    "gru": RNNSAE(**SMALL),
    "negative binomial": NODESAE(**SMALL, **STOPPING, likelihood="negative_binomial"),
    "gaussian": NODESAE(**SMALL, likelihood="gaussian"),
    "amortized, negative binomial": NODESAE(**SMALL, **AMORTIZED, likelihood="negative_binomial"),
    "mlp cell": RNNSAE(**SMALL, cell="mlp", residual=0.1, weight_decay=0.1, clip_norm=None),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "fit.ckpt"


@pytest.fixture
def est(path, rollouts):
    """A small NODESAE that writes checkpoints after the 2nd, 4th ... of its 6 epochs."""
    return NODESAE(**SMALL | {"max_epochs": 6}, checkpoint_path=path, checkpoint_every=2)


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the package catches it."""


class Writes:
    """Counts the checkpoints written, stops a fit at one of them, and notes where fits begin."""

    def __init__(self, monkeypatch):
        self.n_written, self.stop_after, self.error = 0, None, Killed
        self.began_after = []
        monkeypatch.setattr(checkpoint_module, "write", self.write)
        monkeypatch.setattr(_rollout_fits, "train", self.train)
        epochs = PathFit.epochs

        def noted(fit, n_done=0):
            self.began_after.append(n_done)
            return epochs(fit, n_done)

        monkeypatch.setattr(PathFit, "epochs", noted)

    def write(self, *args, write=checkpoint_module.write):
        write(*args)
        self.n_written += 1
        if self.n_written == self.stop_after:
            raise self.error

    def train(self, *args, train=_rollout_fits.train, **kwargs):
        self.began_after.append(kwargs["n_done"])
        return train(*args, **kwargs)

    def kill(self, estimator, X, n_written):
        """Fit until the n-th checkpoint is written, and no further."""
        self.n_written, self.stop_after = 0, n_written
        with pytest.raises(Killed):
            estimator.fit(X)
        self.stop_after = None


@pytest.fixture
def writes(monkeypatch):
    return Writes(monkeypatch)


@pytest.fixture(scope="module")
def checkpoint(spikes, tmp_path_factory):
    """Bytes of the checkpoint that a killed fit of ``est`` leaves after 4 of its 6 epochs."""
    path = tmp_path_factory.mktemp("left") / "fit.ckpt"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(BaseSAE, "_on_paths", lambda self: False)
        est = NODESAE(**SMALL | {"max_epochs": 6}, checkpoint_path=path, checkpoint_every=2)
        Writes(monkeypatch).kill(est, spikes, 3)
    return path.read_bytes()


@pytest.fixture
def left(checkpoint, path):
    """The same in the place where ``est`` looks for it."""
    path.write_bytes(checkpoint)
    return path


@pytest.fixture(scope="module")
def uninterrupted(spikes):
    """What a fit of ``est`` finds; shared, so leave it as it is."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(BaseSAE, "_on_paths", lambda self: False)
        return NODESAE(**SMALL | {"max_epochs": 6}).fit(spikes)


def assert_same(one, other):
    """All that two fits learned agrees to the last bit."""
    assert vars(one).keys() == vars(other).keys()
    for name, value in (vars(one) | one._fitted_model.learned()).items():
        if name == "model_":
            state, others = value.state_dict(), other.model_.state_dict()
            assert state.keys() == others.keys()
            assert all(torch.equal(state[key], others[key]) for key in state)
        elif name.endswith("_"):
            np.testing.assert_array_equal(value, getattr(other, name), strict=True)


# ------------------------------------------------------------------ killed


CHILD = """
    import os, signal, sys
    import numpy as np
    import torch
    from sklearn_sae import NODESAE, RNNSAE
    from sklearn_sae._training import checkpoint as checkpoint_module
    from sklearn_sae._saving import files

    torch.set_num_threads(1)
    module, function, n_calls = {module}, {function!r}, 0
    original = getattr(module, function)

    def deadly(*args):
        global n_calls
        n_calls += 1
        if n_calls == {n_before} + 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)

    setattr(module, function, deadly)
    {estimator}.set_params(checkpoint_path={path!r}, checkpoint_every=7).fit(np.load({spikes!r}))
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
@pytest.mark.parametrize(
    ("kind", "module", "function"),
    [
        ("node", "checkpoint_module", "write"),  # killed when a checkpoint is due
        ("amortized", "files.os", "fsync"),  # while one is half written
        ("gru", "files.os", "replace"),  # before the new takes the place of the old
    ],
)
def test_a_fit_killed_by_the_system_goes_on_to_the_same_bits(
    kind, module, function, spikes, path, writes
):
    plain = clone(KINDS[kind]).fit(spikes)
    np.save(path.with_name("spikes.npy"), spikes)
    script = textwrap.dedent(CHILD).format(
        module=module,
        function=function,
        n_before=4,
        estimator=f"{KINDS[kind]!r}",
        path=str(path),
        spikes=str(path.with_name("spikes.npy")),
    )
    # The environment of this process names the package that is under test.
    environment = os.environ | {"PYTHONPATH": str(Path(sklearn_sae.__file__).parents[1])}
    child = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True)
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    assert path.exists()
    # Of the checkpoint that was being written.
    n_left = len([*path.parent.glob(".sklearn_sae-*.tmp")])
    assert n_left == (module == "files.os")

    resumed = clone(KINDS[kind]).set_params(checkpoint_path=path).fit(spikes)
    # Four were written whole: at the start and after 7, 14 and 21 epochs.
    assert writes.began_after == [0, 21]
    assert_same(plain, resumed)
    np.testing.assert_array_equal(plain.predict(spikes), resumed.predict(spikes))
    assert [*path.parent.iterdir()] == [path.with_name("spikes.npy")]


@pytest.mark.parametrize("kind", KINDS)
def test_any_kind_of_fit_goes_on_from_any_epoch(kind, holes, path, writes, monkeypatch):
    plain = clone(KINDS[kind]).set_params(max_epochs=20).fit(holes)
    assert plain.n_iter_ >= 20
    est = clone(plain).set_params(checkpoint_path=path, checkpoint_every=1)
    written = []

    def keep(*args, write=checkpoint_module.write):
        write(*args)
        written.append(path.read_bytes())

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "write", keep)
        assert_same(plain, clone(est).fit(holes))
    # In between, where the fit to all trials may begin, and once all are done.
    for n_done in {1, 13, 20, min(plain.n_iter_, 24), plain.n_iter_}:
        path.write_bytes(written[n_done])
        resumed = clone(est).fit(holes)
        assert writes.began_after[-1] == n_done
        assert_same(plain, resumed)


def test_a_fit_may_be_killed_again_and_again(est, spikes, uninterrupted, writes):
    for n_written in (2, 1, 1):
        writes.kill(est, spikes, n_written)
    est.fit(spikes)
    assert writes.began_after == [0, 2, 4, 6]
    assert_same(uninterrupted, est)


def test_early_stopping_stops_in_the_same_epoch(est, spikes, writes):
    # Never a gain, so that it stops after the fifth epoch; its count begins before the kill.
    est.set_params(max_epochs=40, early_stopping=True, horizon_growth=0, tol=100.0)
    est.set_params(n_iter_no_change=4)
    writes.kill(est, spikes, 3)
    assert est.fit(spikes).n_iter_ == 5
    assert writes.began_after[-1] == 4
    assert_same(clone(est).fit(spikes), est)


def test_a_fit_without_a_seed_goes_on_with_the_one_it_drew(est, spikes, path, writes):
    est.set_params(random_state=None, early_stopping=True)
    writes.kill(est, spikes, 3)
    left = path.read_bytes()
    first = clone(est).fit(spikes)
    path.write_bytes(left)
    assert_same(first, clone(est).fit(spikes))
    assert first.loss_curve_ != clone(est).fit(spikes).loss_curve_


def test_a_random_state_is_used_up_as_ever(est, spikes, writes):
    uninterrupted = clone(est).set_params(random_state=np.random.RandomState(3)).fit(spikes)
    writes.kill(clone(est).set_params(random_state=np.random.RandomState(3)), spikes, 2)
    resumed = clone(est).set_params(random_state=np.random.RandomState(3)).fit(spikes)
    assert_same(uninterrupted, resumed)
    assert uninterrupted.random_state.randint(2**31) == resumed.random_state.randint(2**31)


@pytest.mark.parametrize("inference", ["amortized", "semi-amortized"])
def test_a_warm_start_goes_on_too(est, spikes, inference, writes):
    est.set_params(inference=inference, warm_start=True).fit(spikes)
    uninterrupted = pickle.loads(pickle.dumps(est)).fit(spikes)
    writes.kill(pickle.loads(pickle.dumps(est)), spikes, 3)
    est.fit(spikes)
    assert writes.began_after[-1] == 4
    assert len(est.loss_curve_) == 12 and est.n_iter_ == 6
    assert_same(uninterrupted, est)


def test_progress_goes_on_from_there(est, left, spikes, capsys):
    est.set_params(verbose=True).fit(spikes)
    shown = capsys.readouterr().err
    assert "4/6" in shown and "6/6" in shown and "1/6" not in shown


def test_ctrl_c_keeps_the_checkpoint_and_says_so(est, spikes, uninterrupted, path, writes):
    writes.stop_after, writes.error = 2, KeyboardInterrupt
    said = rf"model as it stands is kept; another fit goes on from {re.escape(str(path))}"
    with pytest.warns(ConvergenceWarning, match=said):
        est.fit(spikes)
    assert est.n_iter_ == 2 and np.isfinite(est.predict(spikes)).all()
    est.fit(spikes)
    assert writes.began_after == [0, 2]
    assert_same(uninterrupted, est)


# ------------------------------------------------------------------ what is written, and where


def test_checkpoints_change_nothing_and_are_gone_in_the_end(est, spikes, uninterrupted, path):
    for _ in range(2):  # the second starts afresh
        assert_same(uninterrupted, est.fit(spikes))
        assert [*path.parent.iterdir()] == []


@pytest.mark.parametrize(("every", "n_written"), [(1, 7), (2, 4), (4, 2), (7, 1), (None, 0)])
def test_checkpoint_every(est, spikes, writes, every, n_written):
    if every is None:
        est.set_params(checkpoint_path=None)
    else:
        est.set_params(checkpoint_every=every)
    est.fit(spikes)
    assert writes.n_written == n_written


@pytest.mark.parametrize("kind", ["node", "node, three of them", "node, inferred inputs"])
def test_a_checkpoint_in_an_epoch_of_gauss_newton_steps(kind, spikes, path, writes):
    est = KINDS[kind].__class__(**KINDS[kind].get_params() | {"max_epochs": 24})
    expected = clone(est).fit(spikes)
    est.set_params(checkpoint_path=path, checkpoint_every=10)
    writes.kill(est, spikes, 2)
    est.fit(spikes)
    assert writes.began_after[-1] == 10
    est.set_params(checkpoint_path=None, checkpoint_every=expected.checkpoint_every)
    assert_same(est, expected)


def test_spikes_are_not_in_the_file(est, left):
    size = {}
    for name, array in read(left)[1].items():
        part = name.removeprefix("0.").split(".")[0]
        size[part] = size.get(part, 0) + array.size
    weights = 16 * 3 + 2 * 17 + 6 * 3
    assert size.pop("generator") == len(torch.Generator().get_state())
    assert size == {
        # With the private dispersion of each neuron.
        "model": weights + 6,
        # With mean and precision of their prior.
        "initial_conditions": 24 * (3 * 2 + 1) + 2 + 4,
        # Means and squares; a basis and a spread of each of three matrices; steps.
        "optimizer": 2 * weights + 2 * ((16 * 3) ** 2 + (2 * 17) ** 2 + (6 * 3) ** 2) + 1,
        "loss_curve": 4,
    }


def test_an_interrupted_write_leaves_the_last_checkpoint(
    est, spikes, uninterrupted, left, writes, monkeypatch
):
    before = left.read_bytes()

    def fail(descriptor):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(files.os, "fsync", fail)
        est.fit(spikes)
    assert left.read_bytes() == before
    assert [*left.parent.iterdir()] == [left]
    est.fit(spikes)
    assert writes.began_after[-2:] == [4, 4]
    assert_same(uninterrupted, est)


class Disk:
    """A disk that is full in some of the calls that write to it."""

    def __init__(self, monkeypatch, *full_in):
        self.full_in, self.n_calls = full_in, 0
        monkeypatch.setattr(files.os, "fsync", self.fsync)

    def fsync(self, descriptor, fsync=os.fsync):
        self.n_calls += 1
        if self.n_calls in self.full_in:
            raise OSError("No space left on device")
        fsync(descriptor)


def test_a_full_disk_does_not_end_a_fit(est, spikes, uninterrupted, path, writes, monkeypatch):
    disk = Disk(monkeypatch, 2, 3)
    match = r"fit\.ckpt could not be written \(No space left on device\).*tries again"
    with pytest.warns(UserWarning, match=match) as seen:
        est.set_params(checkpoint_every=1).fit(spikes)
    assert [warning.filename for warning in seen] == [__file__] * 2
    # Of those at the start and after each of 6 epochs.
    assert (disk.n_calls, writes.n_written) == (7, 5)
    assert_same(uninterrupted, est)
    assert [*path.parent.iterdir()] == []


def test_a_disk_that_is_full_from_the_start_is_an_error(est, spikes, path, writes, monkeypatch):
    Disk(monkeypatch, 1)
    with pytest.raises(OSError, match="No space left"):
        est.fit(spikes)
    assert writes.began_after == [] and [*path.parent.iterdir()] == []


@pytest.mark.parametrize(("owner", "function"), [(Path, "unlink"), (checkpoint_module, "read")])
def test_a_file_that_cannot_be_deleted_does_not_fail_the_fit(
    est, spikes, uninterrupted, path, monkeypatch, owner, function
):
    def fail(*args, **kwargs):
        raise PermissionError("Permission denied")

    def finish(*args, variance=fitted_model.model_variance):
        monkeypatch.setattr(owner, function, fail)
        return variance(*args)

    monkeypatch.setattr(fitted_model, "model_variance", finish)
    with pytest.warns(UserWarning, match=r"could not be deleted \(Permission denied\)") as seen:
        est.fit(spikes)
    assert [warning.filename for warning in seen] == [__file__]
    monkeypatch.undo()
    assert path.exists()
    assert_same(uninterrupted, est)


def test_a_folder_that_is_not_there_is_named_before_the_first_epoch(est, spikes, path, writes):
    est.set_params(checkpoint_path=path / "fit.ckpt")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*fit\.ckpt"):
        est.fit(spikes)
    # A file of that name would be found to be none only in the next search.
    est.set_params(checkpoint_path=f"{path}/")
    with pytest.raises(
        FileNotFoundError, match=r"checkpoint_path: there is no folder .*fit\.ckpt/"
    ):
        est.fit(spikes)
    assert writes.began_after == [] and not path.exists()


def test_a_link_stays_and_its_file_goes(est, spikes, left, tmp_path, writes):
    link = tmp_path / "link"
    link.symlink_to(left)
    est.set_params(checkpoint_path=str(link)).fit(spikes)
    assert writes.began_after[-1] == 4
    assert link.is_symlink() and not left.exists()


def test_an_estimator_with_a_path_can_be_saved(est, spikes, path):
    est.fit(spikes).save(path)
    assert sklearn_sae.load(path).checkpoint_path == path


def test_no_default_device_is_needed(est, spikes, left, writes):
    with torch.device("meta"):
        est.fit(spikes)
    assert writes.began_after[-1] == 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("devices", [("cuda", "cuda"), ("cuda", "cpu"), ("cpu", "cuda")])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_goes_on_on_a_gpu(kind, devices, spikes, path, writes):
    first, second = devices
    est = clone(KINDS[kind]).set_params(checkpoint_path=path, checkpoint_every=1)
    writes.kill(clone(est).set_params(device=first), spikes, 15)
    resumed = est.set_params(device=second).fit(spikes)
    assert writes.began_after[-1] == 14
    np.testing.assert_allclose(
        resumed.loss_curve_[:16], clone(KINDS[kind]).fit(spikes).loss_curve_[:16], rtol=1e-2
    )


# ------------------------------------------------------------------ the same fit, or another


#: Values that ``est`` does not have.
CHANGES = {"n_latents": 3, "max_epochs": 7, "learning_rate": 0.02, "random_state": 1}


def refused(est, X, path, match):
    """Fit raises a ValueError that names the parameter and the file, and leaves the file alone."""
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"(?s)checkpoint_path: .*{path.name}.*{match}") as caught:
        est.fit(X)
    assert path.read_bytes() == before
    assert "to start afresh" in str(caught.value)


@pytest.mark.parametrize("name", CHANGES)
def test_other_parameters_are_refused(est, left, spikes, name):
    old, new = est.get_params()[name], CHANGES[name]
    est.set_params(**{name: new})
    refused(
        est, spikes, left, f"another fit, with {name}={old!r}; this has {name}={new}.*delete it"
    )


def test_a_parameter_that_is_long_to_write_is_cut(est, left, spikes):
    est.set_params(hidden_sizes=tuple(range(1, 100)))
    refused(
        est, spikes, left, r"with hidden_sizes=\(16,\); this has hidden_sizes=\(1, 2.{,60}\. To"
    )


@pytest.mark.parametrize("kept", [{"verbose": True}, {"device": "auto"}, {"checkpoint_every": 3}])
def test_parameters_that_do_not_matter_may_change(est, left, spikes, writes, kept):
    est.set_params(**kept).fit(spikes)
    assert writes.began_after[-1] == 4


def test_other_spikes_are_refused(est, left, spikes):
    refused(est, spikes[:, :, :5], left, r"X of shape \(24, 12, 6\); this X has \(24, 12, 5\)")
    refused(est, spikes[::-1], left, "to other spikes or inputs of the same shape")
    hole = spikes.astype(float)
    hole[tuple(np.argwhere(spikes == 0)[0])] = np.nan
    refused(est, hole, left, "to other spikes or inputs of the same shape")


def test_the_same_spikes_may_come_in_another_container(est, left, spikes, writes):
    est.fit(list(spikes.astype("float32")))
    assert writes.began_after[-1] == 4


def test_another_class_is_refused(est, left, spikes):
    rnn = RNNSAE(**SMALL, checkpoint_path=left)
    refused(rnn, spikes, left, "another fit, of NODESAE; this is RNNSAE")


def test_another_version_is_refused(est, left, spikes, monkeypatch):
    monkeypatch.setattr(checkpoint_module, "__version__", "7.8.9")
    refused(est, spikes, left, r"begun by sklearn_sae [^;]+; this is 7\.8\.9")


def test_a_warm_start_from_other_weights_is_refused(est, spikes, path, writes):
    est.set_params(warm_start=True).fit(spikes)
    writes.kill(pickle.loads(pickle.dumps(est)), spikes, 2)
    other = clone(est).set_params(checkpoint_path=None).fit(spikes[::-1])
    latents = other.transform(spikes)
    refused(other.set_params(checkpoint_path=path), spikes, path, "from other weights")
    assert np.array_equal(other.transform(spikes), latents)


def test_a_refusal_leaves_the_old_model(uninterrupted, spikes, left):
    fitted = pickle.loads(pickle.dumps(uninterrupted))
    refused(fitted.set_params(checkpoint_path=left, tol=1.0), spikes, left, r"this has tol=1\.0")
    np.testing.assert_array_equal(fitted.transform(spikes), uninterrupted.transform(spikes))


def test_a_parameter_that_no_file_can_hold_is_named(est, spikes, path, writes):
    est.set_params(hidden_sizes=range(16, 17))
    with pytest.raises(TypeError, match=r"hidden_sizes .*range.*or fit without checkpoint_path"):
        est.fit(spikes)
    assert not path.exists()


# ------------------------------------------------------------------ files that are none


@pytest.mark.parametrize(
    "data", [b"", b"an ordinary text", bytes(range(255, 0, -1)), pickle.dumps([1.0] * 100)]
)
def test_a_foreign_file_is_refused(est, spikes, path, data):
    path.write_bytes(data)
    refused(est, spikes, path, "no checkpoint that fit could go on from. Delete it")


def test_a_damaged_checkpoint_is_refused(est, spikes, left):
    whole = left.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [whole[:length] for length in rng.integers(len(whole), size=20)]
    for i in rng.integers(8, len(whole), size=20):
        damaged.append(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
    for data in damaged:
        left.write_bytes(data)
        refused(est, spikes, left, "no checkpoint that fit could go on from. Delete it")


def test_a_saved_estimator_is_refused(est, spikes, uninterrupted, path):
    uninterrupted.save(path)
    refused(est, spikes, path, r"holds an estimator that est\.save wrote")


def test_a_checkpoint_is_not_an_estimator(left):
    with pytest.raises(ValueError, match=r"fit\.ckpt is the checkpoint of a fit.*fit again with"):
        sklearn_sae.load(left)


@pytest.mark.parametrize("name", ["0.loss_curve", "0.model.readout.weight", "optimizer.0.mean"])
def test_a_state_of_another_kind_is_refused(est, spikes, left, name):
    content, arrays = read(left)
    del arrays[name]
    write(left, content, arrays)
    refused(est, spikes, left, "holds another state than this fit has")


# ------------------------------------------------------------------ several fits


def test_each_fit_of_a_search_has_a_file_of_its_own_in_a_folder(est, spikes, tmp_path, writes):
    est.set_params(checkpoint_path=tmp_path)
    search = GridSearchCV(est, {"n_latents": [1, 2]}, cv=2)
    search.fit(spikes)
    scores = search.cv_results_["mean_test_score"]
    assert np.isfinite(scores).all()
    assert [*tmp_path.iterdir()] == []

    # The second fit is killed, and its file meets all the fits of the next search.
    writes.kill(search, spikes, 4 + 3)
    assert len([*tmp_path.iterdir()]) == 1
    writes.began_after.clear()
    search.fit(spikes)
    assert writes.began_after == [0, 4, 0, 0, 0]
    np.testing.assert_array_equal(search.cv_results_["mean_test_score"], scores)
    assert [*tmp_path.iterdir()] == []


def test_a_fit_that_another_overtakes_does_not_replace_its_file(est, spikes, left, monkeypatch):
    theirs = left.read_bytes()
    left.unlink()
    est.set_params(n_latents=3)

    def written(*args, write=checkpoint_module.write):
        write(*args)
        left.write_bytes(theirs)

    monkeypatch.setattr(checkpoint_module, "write", written)
    refused_at = rf"{left.name} .* another fit, with n_latents=2.*need a folder"
    with pytest.raises(ValueError, match=refused_at):
        est.fit(spikes)
    assert left.read_bytes() == theirs


def test_a_fit_that_is_overtaken_at_its_end_leaves_the_others_file(est, spikes, left, monkeypatch):
    theirs = left.read_bytes()
    left.unlink()
    est.set_params(n_latents=3)

    def finish(*args, variance=fitted_model.model_variance):
        left.write_bytes(theirs)
        return variance(*args)

    monkeypatch.setattr(fitted_model, "model_variance", finish)
    assert est.fit(spikes).n_iter_ == 6
    assert left.read_bytes() == theirs
