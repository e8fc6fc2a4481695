"""The catalogue of planted faults: `refica verify` notices each, first at the line that names its place."""

import sys
import threading

import numpy as np
import pytest

import refica as ri
from refica import likelihood, model
from refica.testing import faults
from refica.testing.faults import CATALOGUE, graded, located, plant
from refica.verify import results
from refica.verify.run import CHECKS

FEWEST = 30


def first_failure():
    """The first finding that fails, on one random model; None if all hold."""
    return next((finding for finding in results(models=1) if not finding.passed), None)


def test_the_catalogue_is_large_and_says_what_is_wrong():
    assert len(CATALOGUE) >= FEWEST
    for name, fault in CATALOGUE.items():
        assert fault.name == name
        assert fault.sentence.strip()
        assert not fault.sentence.endswith(".")
        located(fault.place)
    sentences = [fault.sentence for fault in CATALOGUE.values()]
    assert len(set(sentences)) == len(sentences)


def test_without_a_fault_everything_holds():
    assert first_failure() is None


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_planted_fault_is_noticed_where_it_is(name):
    with plant(name) as fault:
        found = first_failure()
    assert found is not None, f"{fault.sentence}: verify passes"
    assert fault.place in found.check.code, f"{fault.sentence}: first seen at {found.check.name}"


def test_the_places_that_verify_names_exist():
    for check in CHECKS:
        assert check.code
        for place in check.code:
            located(place)


def everything():
    """Every attribute of every module and class of refica, by identity."""
    held = {}
    for name, module in list(sys.modules.items()):
        if name == "refica" or name.startswith("refica."):
            for key, value in list(vars(module).items()):
                held[name, key] = id(value)
                if isinstance(value, type) and value.__module__.startswith("refica"):
                    held.update({(value, part): id(each) for part, each in list(vars(value).items())})
    return held


def test_every_fault_is_taken_out_again():
    before = everything()
    for name in CATALOGUE:
        with plant(name):
            assert everything() != before, f"{name} changes nothing"
        assert everything() == before, name
    with pytest.raises(RuntimeError, match="inside"), plant("missing-half"):
        raise RuntimeError("inside")
    assert everything() == before


def test_faults_are_planted_wherever_the_function_is_held():
    true = model.log_prior
    with plant("prior-twice"):
        assert likelihood.log_prior is model.log_prior is not true
    assert likelihood.log_prior is model.log_prior is true


def test_faults_nest():
    z = np.zeros((1, 1))
    plain = model.log_prior(z)[0]
    with plant("prior-twice"):
        with plant("lost-prior-constant"):
            assert model.log_prior(z)[0] == pytest.approx(plain)  # -log 2π + ½ log 2π
        assert model.log_prior(z)[0] == pytest.approx(2.0 * plain)
    assert model.log_prior(z)[0] == plain


def test_threads_see_a_fault():
    seen = []
    with plant("forgotten-prior"):
        thread = threading.Thread(target=lambda: seen.append(model.log_prior(np.ones((1, 1)))[0]))
        thread.start()
        thread.join()
    assert seen == [0.0]


def test_an_unknown_fault_is_refused():
    with pytest.raises(ValueError, match="did you mean 'missing-half'"), plant("missing-halve"):
        pass
    with pytest.raises(ValueError, match="there is no"):
        located("model.nothing")


def test_tests_can_be_graded():
    """A check of values at one point alone lets gradients off, and a check must pass to begin with."""

    def values_only():
        model_, x = ri.NonlinearICA(ri.MLP((1, 1)), [0.7, 0.2], sigma2=0.5), [[0.3]]
        total = ri.log_likelihood(model_, x, gradient=False).total
        assert abs(total + 0.5 * (np.log(2.0 * np.pi * 0.99) + 0.01 / 0.99)) < 1e-12

    names = ["missing-half", "sigma-for-sigma2", "lost-constant", "log-sigma2-gradient", "kl-reversed"]
    assert graded(values_only, names) == ["log-sigma2-gradient", "kl-reversed"]
    with pytest.raises(ValueError, match="no fault planted"):
        graded(lambda: (_ for _ in ()).throw(AssertionError), names)


def test_the_catalogue_has_the_slips_of_the_best_known_earlier_program():
    assert {"forgotten-1/K", "short-grid", "floored-density"} <= set(faults.CATALOGUE)
