import copy

import numpy as np
import pytest
import torch
from common import readout_of

from sklearn_sae._data.trials import Trials
from sklearn_sae._inference.data_term import log_likelihood, mean_loss
from sklearn_sae._inference.prior import Prior
from sklearn_sae._model.autoencoder import SequentialAutoencoder
from sklearn_sae._model.dynamics import Flow
from sklearn_sae._model.encoder import Encoder
from sklearn_sae._model.likelihoods import Poisson
from sklearn_sae._model.solvers import RungeKutta
from sklearn_sae._model.state_maps import MLP
from sklearn_sae._training import initial_conditions, optimizers
from sklearn_sae._training.initial_conditions import EncodedInitialConditions, FreeInitialConditions
from sklearn_sae._training.initialization import pca_start
from sklearn_sae._training.loop import Member, Record, shuffled, train
from sklearn_sae._training.optimizers import OPTIMIZERS, Soap
from sklearn_sae._training.schedule import Schedule

CPU = torch.device("cpu")


def spikes(n_trials=40, n_bins=20, n_neurons=8, seed=0):
    """Oscillations of any phase: two latents explain them."""
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 2 * np.pi, (n_trials, 1, 1)) + 0.3 * np.arange(n_bins)[:, np.newaxis]
    return rng.poisson(np.exp(0.5 + np.sin(phase + np.arange(n_neurons))))


class Setup:
    """Everything that ``train`` takes, small."""

    def __init__(self, data=None, inference="free", has_missing=False, seed=0, **changes):
        self.trials = Trials(spikes() if data is None else data, has_missing=has_missing)
        self.generator = torch.Generator().manual_seed(seed)
        mlp = MLP(2, (16,), "tanh", self.generator)
        dynamics = Flow(mlp, RungeKutta("midpoint"), 10.0)
        likelihood = Poisson(self.trials.n_neurons)
        rng = np.random.default_rng(seed)
        weight, table = pca_start(self.trials, likelihood, 2, 1.0, rng)
        dropout = changes.pop("dropout", 0.0)
        encoder = None
        if inference == "encoded":
            mean = torch.from_numpy(self.trials.mean_counts()).float()
            encoder = Encoder(mean, likelihood.spread(mean), 2, 8, dropout, self.generator)
        self.model = SequentialAutoencoder(dynamics, readout_of(weight), likelihood, encoder)
        if encoder is None:
            self.initial_conditions = FreeInitialConditions(
                table, self.model, self.trials, dropout, self.generator
            )
        else:
            self.initial_conditions = EncodedInitialConditions(
                self.model, self.trials, 0.2, dropout, self.generator
            )
        self.optimizer = Soap(
            self.model.generative_parameters() + self.initial_conditions.parameters(),
            weight_decay=changes.pop("weight_decay", 0.0),
            **OPTIMIZERS[changes.pop("optimizer", "soap")],
        )
        self.settings = {
            "clip_norm": 1.0,
            "batch_size": 10,
            "max_epochs": 12,
            "device": CPU,
        }
        schedule = {
            "learning_rate": 3e-2,
            "shape": "onecycle",
            "n_bins": self.trials.n_bins,
            "horizon_start": 5,
            "horizon_step": 1,
            "horizon_growth": 0.5,
        }
        schedule |= {key: changes.pop(key) for key in list(changes) if key in schedule}
        self.settings |= changes
        self.schedule = Schedule(**schedule)

    def train(self, n_done=0):
        return train(
            [Member(self.model, self.initial_conditions, self.generator)],
            self.trials,
            self.schedule,
            self.optimizer,
            n_done=n_done,
            **self.settings,
        )


@pytest.fixture(params=["free", "encoded"])
def inference(request):
    return request.param


def test_one_record_per_epoch(inference):
    setup = Setup(inference=inference)
    records = list(setup.train())
    assert [record.epoch for record in records] == list(range(1, 13))
    assert all(np.isfinite(record.loss) for record in records)
    horizons = [record.horizon for record in records]
    assert horizons == sorted(horizons)
    assert 5 <= horizons[0] < 20
    assert horizons[-6:] == [20] * 6
    assert [record.complete for record in records] == [horizon == 20 for horizon in horizons]
    last_batch = (np.arange(12) + 0.75) / 12
    expected = [setup.schedule.learning_rate_at(progress) for progress in last_batch]
    assert [record.learning_rate for record in records] == pytest.approx(expected)


def test_an_epoch_is_trained_only_when_asked_for(inference):
    setup = Setup(inference=inference)
    before = setup.model.readout.weight.detach().clone()
    records = setup.train()
    assert torch.equal(setup.model.readout.weight, before)
    next(records)
    after = setup.model.readout.weight.detach().clone()
    assert not torch.equal(after, before)
    records.close()
    assert torch.equal(setup.model.readout.weight, after)
    assert torch.is_grad_enabled()


def test_stopping_early_leaves_a_model_that_can_go_on(inference):
    setup = Setup(inference=inference)
    for record in setup.train():
        if record.epoch == 3:
            break
    assert all(weight.grad is None for weight in setup.model.parameters())
    assert [record.epoch for record in setup.train()] == list(range(1, 13))


@pytest.mark.parametrize("n_done", [0, 1, 11, 12])
def test_another_training_goes_on_to_the_last_bit(inference, n_done):
    # Of the twelve epochs, the tenth moves all free initial conditions.
    def parts(setup):
        return setup.model, setup.initial_conditions, setup.optimizer

    first, second = (Setup(inference=inference, dropout=0.1) for _ in range(2))
    records = first.train()
    for _ in range(n_done):
        next(records)
    states = [copy.deepcopy(part.state_dict()) for part in parts(first)]
    drawn = first.generator.get_state()
    rest = list(records)

    next(second.train())  # it stood elsewhere
    for part, state in zip(parts(second), states, strict=True):
        part.load_state_dict(state)
    second.generator.set_state(drawn)
    assert list(second.train(n_done)) == rest
    assert len(rest) == 12 - n_done
    for part, other in zip(parts(first), parts(second), strict=True):
        state, others = part.state_dict(), other.state_dict()
        assert state.keys() == others.keys()
        assert all(torch.equal(state[name], others[name]) for name in state)


def test_the_loss_falls_to_near_what_noise_allows(inference):
    setup = Setup(inference=inference, max_epochs=60, horizon_growth=0.3)
    records = list(setup.train())
    rng = np.random.default_rng(0)
    phase = rng.uniform(0, 2 * np.pi, (40, 1, 1)) + 0.3 * np.arange(20)[:, np.newaxis]
    log_rates = torch.from_numpy(0.5 + np.sin(phase + np.arange(8))).float().permute(1, 2, 0)
    batch = setup.trials.batch(np.arange(40), CPU)
    limit = mean_loss(Poisson(8), log_rates, batch).item()
    mean = torch.from_numpy(setup.trials.mean_counts()).float().log()[:, None]
    null = mean_loss(Poisson(8), mean.expand(20, 8, 40), batch).item()
    share = (null - records[-1].loss) / (null - limit)
    assert share > 0.75
    assert records[-1].loss < records[0].loss


def test_every_weight_is_trained(inference):
    setup = Setup(inference=inference, max_epochs=1)
    before = {name: weight.clone() for name, weight in setup.model.state_dict().items()}
    table = getattr(setup.initial_conditions, "table", torch.zeros(1)).clone()
    list(setup.train())
    for name, weight in setup.model.state_dict().items():
        moved = not torch.equal(weight, before[name])
        # The encoder's standardisation is no weight.
        assert moved == (
            name not in ("encoder.mean", "encoder.spread", "likelihood.private_dispersion")
        ), name
    if inference == "free":
        assert (setup.initial_conditions.table != table).any(1).all()


def test_the_seed_decides_and_nothing_global_is_drawn(inference):
    torch.manual_seed(1)
    np.random.seed(1)
    expected = torch.rand(1), np.random.random()
    torch.manual_seed(1)
    np.random.seed(1)
    losses = []
    for seed in (0, 0, 1):
        setup = Setup(inference=inference, seed=seed, dropout=0.1)
        losses.append([record.loss for record in setup.train()])
    assert losses[0] == losses[1] != losses[2]
    assert (torch.rand(1), np.random.random()) == expected


def test_the_loss_sees_the_horizon_only(inference):
    # What happens after bin 5 cannot matter in the first epoch; the encoder alone reads it.
    changed = spikes()
    changed[:, 5:] = changed[:, 5:][:, ::-1]
    first, other = (
        Setup(data, inference, horizon_growth=1.0, horizon_step=100, max_epochs=1)
        for data in (spikes(), changed)
    )
    other.model.load_state_dict(first.model.state_dict())
    if inference == "free":
        other.initial_conditions.table.copy_(first.initial_conditions.table)
    records = [next(setup.train()) for setup in (first, other)]
    assert records[0].horizon == 5
    same = torch.equal(first.model.readout.weight, other.model.readout.weight)
    assert same == (inference == "free")


def test_unobserved_entries_do_not_matter(inference):
    data = spikes().astype(float)
    data[::3, :, 2] = np.nan
    data[5:15, 12:] = np.nan
    holes = np.isnan(data)
    setup = Setup(data, inference, has_missing=True, max_epochs=3)
    losses = [record.loss for record in setup.train()]
    assert np.isfinite(losses).all()
    again = Setup([trial.copy() for trial in data], inference, has_missing=True, max_epochs=3)
    assert [record.loss for record in again.train()] == losses
    # Values under the mask are zeros to begin with; the loss is per observed entry.
    batch = setup.trials.batch(np.arange(40), CPU)
    assert batch.mask.sum() == (~holes).sum()


def test_free_initial_conditions_take_their_trials_rows():
    setup = Setup()
    conditions = setup.initial_conditions
    batch = setup.trials.batch(np.array([7, 2]), CPU)
    drawn = conditions.draw(batch)
    assert torch.equal(drawn.variables, conditions.table[[7, 2]].T)
    before = conditions.table.clone()
    (drawn.variables * torch.tensor([[9.0, 0.0], [-9.0, 0.0]])).sum().backward()
    conditions.make_step([conditions])([batch], [drawn], 0.01)
    moved = conditions.table - before
    torch.testing.assert_close(
        moved[7], 0.01 * initial_conditions.INITIAL_CONDITION_SPEED * torch.tensor([-1.0, 1.0])
    )
    # Where spikes say nothing, the prior does.
    pull = conditions.prior.precision @ (conditions.prior.mean - before[2])
    torch.testing.assert_close(
        moved[2],
        0.01 * initial_conditions.INITIAL_CONDITION_SPEED * pull.sign(),
        rtol=1e-4,
        atol=1e-4,
    )
    moved[[7, 2]] = 0
    assert not moved.any()


def test_the_prior_pulls_as_hard_as_the_gradient_of_its_share_of_the_loss(monkeypatch):
    conditions = Setup().initial_conditions
    batch = conditions.trials.batch(np.array([7, 2]), CPU)
    drawn = conditions.draw(batch)
    (-conditions.prior.log_density(drawn.variables).sum() / batch.counts.numel()).backward()
    by_hand, seen = drawn.leaf.grad.T, []
    drawn.leaf.grad = torch.zeros_like(drawn.leaf)
    monkeypatch.setattr(
        optimizers.RowAdam,
        "step",
        lambda self, rows, gradient, learning_rate: seen.append(gradient),
    )
    conditions.make_step([conditions])([batch], [drawn], 0.01)
    torch.testing.assert_close(seen[0][0], by_hand)


def test_now_and_then_initial_conditions_catch_up_with_the_weights():
    setup = Setup(max_epochs=100)
    conditions = setup.initial_conditions
    batch = setup.trials.batch(np.arange(40), CPU, 10)

    def log_posterior(prior):
        with torch.no_grad():
            z0 = conditions.table.T
            output = setup.model.output(z0, 10)
            fit = log_likelihood(setup.model.likelihood, output, batch.counts, batch.mask)
            return fit + prior.log_density(z0)

    prior = Prior.from_samples(conditions.table)
    before, table = log_posterior(prior), conditions.table.clone()
    between = conditions.epochs_between_steps
    for epoch in range(between - 1):
        conditions.end_epoch(epoch, 10)
    assert torch.equal(conditions.table, table)
    conditions.end_epoch(between - 1, 10)
    after = log_posterior(prior)
    assert (after >= before - 1e-3).all()
    assert (after > before + 0.1).any()


def test_dropout_of_the_initial_condition():
    setup = Setup(dropout=0.5)
    z0 = setup.initial_conditions.draw(setup.trials.batch(np.arange(40), CPU)).variables
    share = (z0 == 0).float().mean()
    assert 0.3 < share < 0.7
    doubled = z0[z0 != 0] / setup.initial_conditions.table.T[z0 != 0]
    torch.testing.assert_close(doubled, torch.full_like(doubled, 2.0))


@pytest.mark.parametrize("n_trials", [1, 2, 9, 10, 11, 40, 97])
@pytest.mark.parametrize("batch_size", [1, 10, 1000])
def test_shuffled(n_trials, batch_size):
    generator = torch.Generator().manual_seed(0)
    batches = shuffled(n_trials, batch_size, generator)
    np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(n_trials))
    sizes = [len(rows) for rows in batches]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1
    assert max(sizes) <= max(1, 1.5 * batch_size)
    if n_trials > 10:
        again = shuffled(n_trials, batch_size, generator)
        assert not np.array_equal(np.concatenate(again), np.concatenate(batches))


@pytest.mark.parametrize("horizon_start", [1, 2, 20, 100])
def test_any_horizon_start(horizon_start, inference):
    records = list(Setup(inference=inference, horizon_start=horizon_start, max_epochs=3).train())
    assert records[-1].complete
    assert all(np.isfinite(record.loss) for record in records)


@pytest.mark.parametrize("shape", [(1, 2, 1), (1, 20, 3), (3, 2, 1)])
def test_small_recordings(shape, inference):
    data = np.random.default_rng(0).poisson(2.0, shape)
    records = list(Setup(data, inference, max_epochs=11).train())
    assert all(np.isfinite(record.loss) for record in records)


@pytest.mark.parametrize("optimizer", ["soap", "adam"])
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_loss_that_explodes_says_what_to_lower(optimizer, clip_norm, inference):
    setup = Setup(
        inference=inference,
        optimizer=optimizer,
        clip_norm=clip_norm,
        learning_rate=1e4,
        shape="constant",
        max_epochs=30,
    )
    with pytest.raises(FloatingPointError, match=r"epoch \d+. Lower learning_rate or clip_norm"):
        list(setup.train())


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "adam"},
        {"weight_decay": 1.0},
        {"clip_norm": 0.02},
        {"batch_size": 20},
        {"learning_rate": 1e-3},
        {"shape": "constant"},
        {"horizon_start": 8},
        {"horizon_step": 4},
        {"horizon_growth": 0.2},
        {"dropout": 0.1},
    ],
    ids=str,
)
def test_every_setting_matters(change, inference):
    losses = [
        [record.loss for record in Setup(inference=inference, max_epochs=8, **settings).train()]
        for settings in ({}, change)
    ]
    assert losses[0] != losses[1]


def test_the_encoder_is_trained_on_part_of_the_entries():
    data = np.ones((40, 20, 8))
    setup = Setup(data, "encoded")
    seen = []
    setup.initial_conditions.encoder.register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0])
    )
    short = setup.trials.batch(np.arange(10), CPU, 5)
    z0 = setup.initial_conditions.draw(short).variables
    assert z0.shape == (2, 10)
    assert seen[0].counts.shape == (20, 8, 10)
    assert seen[0].mask.float().mean().item() == pytest.approx(0.8, abs=0.05)


def test_dropout_reaches_encoded_initial_conditions_too():
    setup = Setup(inference="encoded", dropout=0.5)
    z0 = setup.initial_conditions.draw(setup.trials.batch(np.arange(40), CPU)).variables
    assert 0.3 < (z0 == 0).float().mean() < 0.7


def test_weight_decay_shrinks_weights():
    sizes = []
    for weight_decay in (0.0, 10.0):
        setup = Setup(weight_decay=weight_decay)
        list(setup.train())
        sizes.append(setup.model.dynamics.mlp.weights[0].norm().item())
    assert sizes[1] < 0.9 * sizes[0]


def test_the_loss_of_a_record_leaves_out_models_that_diverged():
    record = Record(3, (np.nan, 2.0, np.inf, 4.0), horizon=5, learning_rate=0.1, complete=False)
    assert record.loss == 3.0
