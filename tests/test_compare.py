"""The comparison: what each row is, pairing, cross-validation, what happens where a row is not defined."""

import dataclasses
import functools
import json
import math
import multiprocessing
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pytest

import refica as ri
from refica import compare as module
from refica.compare import Comparison, Entry, Score, Settings, compare
from refica.compare_report import as_text, page, to_dict
from refica.datasets import Dataset, from_csv, from_example, iris
from refica.fit import fit_mle, fit_vae


@pytest.fixture(autouse=True)
def short_fits(monkeypatch):
    """Fits that end early: what is tested here is who is compared with what, not how good they are."""
    shorten(monkeypatch)


def shorten(monkeypatch):
    monkeypatch.setattr(module, "fit_vae", functools.partial(fit_vae, max_iter=200))
    monkeypatch.setattr(module, "fit_mle", functools.partial(fit_mle, max_iter=10))
    monkeypatch.setattr(module, "FOLDS", 3)
    monkeypatch.setattr(module, "SCORED", 0)


def plane(size=60, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((size, 1)) @ [[1.0, -0.5]] + 0.2 * rng.standard_normal((size, 2))


PLANE, SMALL = Dataset("plane", ("a", "b"), plane(31)), Settings(hidden=2, n_starts=1, seed=4)


class Run(NamedTuple):
    """A comparison, what was told meanwhile, and the data that each linear model was fitted to."""

    result: Comparison
    told: list
    seen: list


@pytest.fixture(scope="module")
def run():
    """One comparison, with cross-validation, of which several tests look at a part."""
    told, seen = [], []

    def spy(train, latent_dim):
        seen.append(train)
        return ri.probabilistic_pca(train, latent_dim)

    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        patch.setattr(module, "GAP_ROWS", {1: 7})
        patch.setattr(module, "probabilistic_pca", spy)
        return Run(compare(PLANE, SMALL, told.append), told, seen)


def test_a_simulated_comparison_has_the_truth_and_recovery():
    data = from_example("polynomial")
    small = Dataset(data.name, data.columns, data.x[:80], data.truth, data.z[:80], data.held_out[:90])
    result = compare(small, Settings(hidden=3, n_starts=1))
    assert [entry.name for entry in result.entries] == ["truth", "linear", "direct MLE", "VAE"]
    truth, linear, mle, _ = result.entries
    by_hand = ri.log_likelihood(data.truth, data.held_out[:90])
    np.testing.assert_array_equal(truth.held_out.per_observation, by_hand.per_observation)
    assert truth.recovery.procrustes_r2 > linear.recovery.procrustes_r2
    mean, error = result.difference(mle, "truth")
    d = mle.held_out.per_observation - truth.held_out.per_observation
    assert (mean, error) == (d.mean(), d.std(ddof=1) / math.sqrt(90))
    assert result.difference(truth, "truth") is None


def test_the_bound_stands_beside_the_truth_with_its_gaps(run):
    result, data = run.result, PLANE
    *others, entry = result.entries
    assert all(other.tightness is None for other in others)
    vae, found = entry.fit.vae, entry.tightness
    bound = ri.elbo_quadrature(vae, data.x, gradient=False)
    np.testing.assert_array_equal(found.elbo.per_observation, bound.per_observation)
    assert found.elbo.mean < entry.train.mean
    np.testing.assert_array_equal(found.x, data.x[::5])
    ledger = ri.gaps(vae, data.x[::5])
    np.testing.assert_array_equal(found.ledger.amortisation, ledger.amortisation)
    total = ledger.log_p - ledger.elbo
    told = to_dict(result)["entries"][-1]
    assert told["elbo"]["mean"] == bound.per_observation.mean()
    assert told["gaps"]["total"]["mean"] == pytest.approx(total.mean())
    assert told["gaps"]["amortisation"]["standard_error"] == pytest.approx(
        ledger.amortisation.std(ddof=1) / math.sqrt(7)
    )
    assert told["gaps"]["approximation"]["mean"] + told["gaps"]["amortisation"]["mean"] == pytest.approx(
        told["gaps"]["total"]["mean"]
    )
    text = as_text(result)
    assert f"{entry.train.mean:.4f}  {found.elbo.mean:.4f}" in text
    assert f"{total.mean():.4f} ({total.std(ddof=1) / math.sqrt(7):.4f})" in text
    assert "mean over training observations (7 of 31, evenly spaced)" in text
    assert max(map(len, text.splitlines())) <= 116  # the longest note; the tables are below 110


@pytest.mark.parametrize("rows", [{1: 7}, {1: 1000}])
def test_of_many_data_the_elbo_is_that_of_the_same_rows(rows, monkeypatch):
    monkeypatch.setattr(module, "GAP_ROWS", rows)
    monkeypatch.setattr(module, "ELBO_ROWS", {1: 20})
    x = plane(31)
    vae = ri.initial_vae(ri.probabilistic_pca(x, 1), x, 2)
    found = module._tightness(vae, x)
    assert len(found.x) == len(found.elbo.per_observation) == min(rows[1], 31)
    np.testing.assert_array_equal(found.elbo.per_observation, found.ledger.elbo)


def test_gaps_that_are_not_to_be_trusted_are_said_so():
    x = plane(5)
    vae = ri.initial_vae(ri.probabilistic_pca(x, 1), x, 2)
    found = module._tightness(vae, x)
    entry = Entry("VAE", vae.model, "", "", train=Score(np.zeros(5), 1e-9, 5, ""), tightness=found)
    data = Dataset("plane", ("a", "b"), x)
    sure = Comparison(data, Settings(), (entry,), "nothing")
    assert sure.trustworthy
    assert "not to be trusted" not in as_text(sure)
    ledger = dataclasses.replace(found.ledger, converged=np.arange(5) > 0)
    doubt = dataclasses.replace(entry, tightness=found._replace(ledger=ledger))
    doubtful = Comparison(data, Settings(), (doubt,), "nothing")
    assert not doubtful.trustworthy
    assert "some ELBOs or gaps are not to be trusted" in as_text(doubtful)


def test_cross_validation_scores_each_row_with_a_model_that_has_not_seen_it(run):
    result, _, seen = run
    x = PLANE.x
    assert [len(train) for train in seen] == [31, 20, 21, 21]
    held_out = result.entries[0].held_out.per_observation
    for train in seen[1:]:
        rest = [i for i in range(31) if not (train == x[i]).all(axis=1).any()]
        model = ri.probabilistic_pca(train, 1)
        expected = ri.log_likelihood(model, x[rest]).per_observation
        np.testing.assert_allclose(held_out[rest], expected, rtol=1e-12)
    assert result.held_out_kind == "by 3-fold cross-validation"


def test_larger_data_are_split_once(monkeypatch):
    monkeypatch.setattr(module, "SMALL", 50)
    result = compare(Dataset("plane", ("a", "b"), plane(60)), Settings(hidden=2, n_starts=1))
    linear = result.entries[0]
    assert (len(linear.train.per_observation), len(linear.held_out.per_observation)) == (48, 12)


def test_linear_is_not_defined_where_n_equals_m():
    data = from_example("polynomial-1-1")
    small = Dataset(data.name, data.columns, data.x[:40], data.truth, data.z[:40], data.held_out[:40])
    result = compare(small, Settings(hidden=2, n_starts=1))
    linear = result.entries[1]
    assert (linear.status, linear.model, linear.train) == ("not defined", None, None)
    assert "not defined" in as_text(result)


def test_direct_mle_is_never_below_the_vae_in_training(run):
    """The VAE's solution is one of the starts of direct MLE."""
    _, mle, vae = run.result.entries
    assert mle.train.mean >= vae.train.mean - mle.train.error - vae.train.error


def test_the_same_seed_gives_the_same_results(run, monkeypatch):
    monkeypatch.setattr(module, "GAP_ROWS", {1: 7})
    first, second = to_dict(run.result), to_dict(compare(PLANE, SMALL))
    for result in (first, second):
        for entry in result["entries"]:
            entry.pop("seconds")
            entry.pop("history")
    assert first == second


def begin_worker():
    """Short fits in another process too, until that ends."""
    shorten(pytest.MonkeyPatch())
    module.GAP_ROWS = {1: 7}


@pytest.mark.parametrize(
    "executor",
    [
        lambda: ThreadPoolExecutor(2),
        lambda: ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), initializer=begin_worker),
    ],
)
def test_the_executor_does_not_matter(executor, run, monkeypatch):
    monkeypatch.setattr(module, "GAP_ROWS", {1: 7})
    told = []
    with executor() as workers:
        result = compare(PLANE, SMALL, told.append, workers)
    for entry, expected in zip(result.entries, run.result.entries, strict=True):
        for mine, other in ((entry.train, expected.train), (entry.held_out, expected.held_out)):
            np.testing.assert_array_equal(mine.per_observation, other.per_observation)
            assert mine[1:] == other[1:]
        assert entry.model.theta.tobytes() == expected.model.theta.tobytes()
        assert (entry.status, entry.message) == (expected.status, expected.message)
    np.testing.assert_array_equal(
        result.entries[-1].tightness.ledger.elbo, run.result.entries[-1].tightness.ledger.elbo
    )
    assert told == run.told


def test_an_executor_must_be_one():
    with pytest.raises(TypeError, match=r"executor must be a concurrent\.futures\.Executor, got 2"):
        compare(PLANE, SMALL, executor=2)


def test_a_warning_of_the_data_is_said_once(monkeypatch):
    monkeypatch.setattr(module, "_scored", lambda entry, *_: entry)
    monkeypatch.setattr(module, "_evaluate", lambda model, x: Score(np.zeros(len(x)), 0.0, len(x), ""))
    before = list(warnings.filters)
    with pytest.warns(UserWarning, match="duplicate rows") as said:
        compare(dataclasses.replace(PLANE, x=np.vstack([PLANE.x[:20], PLANE.x[:1]])), SMALL)
    assert [str(each.message)[:28] for each in said] == ["x has 1 duplicate rows of 21"]
    assert warnings.filters == before


@pytest.mark.parametrize("name", ["fit_vae", "fit_mle"])
def test_ctrl_c_in_a_fit_ends_the_comparison(name, monkeypatch):
    """A fit returns its best model so far: no other fit may begin then."""
    told = []

    def interrupt(step):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, name, functools.partial(getattr(module, name), callback=interrupt))
    with pytest.raises(KeyboardInterrupt, match="interrupted by Ctrl-C"):
        compare(PLANE, SMALL, told.append)
    assert told == ["fitting all of the data, and 3 folds"]


def test_the_results_are_plain_json_and_name_every_number(run):
    plain = to_dict(run.result)
    entry = plain["entries"][0]
    assert (plain["schema"], plain["version"]) == ("refica-comparison", 1)
    assert entry["train"]["mean"] == run.result.entries[0].train.mean
    assert plain["baseline"] == "linear"
    json.dumps(plain, allow_nan=False, default=lambda value: pytest.fail(f"not plain: {value!r}"))


def test_how_sure_direct_mle_is(monkeypatch):
    monkeypatch.setattr(module, "SCORED", 150)
    monkeypatch.setattr(module, "FOLDS", 2)
    data = Dataset("line", ("a", "b"), plane(100))
    result = compare(data, Settings(hidden=2, n_starts=1))
    direct = next(entry for entry in result.entries if entry.name == "direct MLE")
    assert [entry.name for entry in result.entries if entry.certainty] == ["direct MLE"]
    assert direct.certainty.centrality.passed()
    assert direct.certainty.centrality.size == 150
    written = to_dict(result)["entries"][1]["certainty"]
    assert written["log_sigma2_standard_error"] == direct.certainty.errors.log_sigma2
    assert written["score_centrality"]["passed"]
    assert f"standard error {direct.certainty.errors.log_sigma2:.3g}" in page(result)
    monkeypatch.setattr(module, "SCORED", 99)
    unsure = dataclasses.replace(direct, certainty=None)
    assert module._doubted(unsure, data.x, 0, print).certainty is None


def test_numbers_that_are_not_to_be_trusted_are_said_so():
    good = Score(np.zeros(3), 1e-9, 3, "a grid")
    bad = Score(np.zeros(3), 0.3, 1, "a coarse grid")
    data = Dataset("plane", ("a", "b"), plane(3))
    entries = (Entry("linear", None, "", "", train=good), Entry("VAE", None, "", "", train=bad))
    doubtful = Comparison(data, Settings(), entries, "nothing")
    assert not doubtful.trustworthy
    assert "VAE: 2 of 3 integrals are not to be trusted" in as_text(doubtful)
    assert Comparison(data, Settings(), entries[:1], "nothing").trustworthy


def test_streams_of_one_seed_are_independent():
    """The generated sample must not repeat the noise that the data were drawn with."""
    first = [module.stream(3, use).random() for use in module.STREAMS]
    assert len({*first, np.random.default_rng(3).random()}) == len(module.STREAMS) + 1
    assert first == [module.stream(3, use).random() for use in module.STREAMS]


def test_progress_is_told(run):
    assert run.told == [
        "fitting all of the data, and 3 folds",
        "all of the data fitted",
        *(f"fold {number} of 3 fitted" for number in (1, 2, 3)),
    ]
    told = []
    compare(dataclasses.replace(PLANE, held_out=PLANE.x[:5]), SMALL, told.append)
    assert told[:2] == ["fitting the VAE", "fitting by direct maximum likelihood"]


def test_iris_is_the_four_measurements():
    data = iris()
    assert data.x.shape == (150, 4)
    assert data.columns[0] == "sepal_length_cm"
    np.testing.assert_array_equal(data.x[0], [5.1, 3.5, 1.4, 0.2])


def test_cross_validation_needs_two_rows_to_fit():
    data = Dataset("two", ("a", "b"), np.array([[0.0, 1.0], [1.0, 0.5]]))
    with pytest.raises(ValueError, match="at least 3 observations, got 2"):
        compare(data, Settings(hidden=1))


def test_a_csv_needs_two_rows(tmp_path):
    path = tmp_path / "one.csv"
    path.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="at least 2 rows"):
        from_csv(str(path))
