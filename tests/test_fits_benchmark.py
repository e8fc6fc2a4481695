"""The benchmark of fits: its data are the same each time, and its verdicts can fail."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

sys.path.insert(0, str(Path(__file__).parent.parent))  # the benchmarks are not installed

from benchmarks import _fits_figure, fits

TRUTH = {
    "setting": "tanh", "seed": 0, "row": "truth", "m": 1, "n": 2, "p": 35, "status": "", "train": -1.5,
    "train_error": 1e-9, "to_truth": 0.0, "to_truth_se": 0.0, "sigma2": 0.01, "recovery": 0.99,
    "processor_seconds": 0.0, "megabytes": 0.0, "log_sigma2_se": None, "off": 0.0, "off_allowed": 1e-9,
}  # fmt: skip
VAE = TRUTH | {"row": "VAE", "train": -1.49, "to_truth": -0.03, "p": 67}
GOOD = TRUTH | {"row": "l-bfgs", "train": -1.48, "to_truth": -0.05, "log_sigma2_se": 0.05, "p": 67}


def verdict(**changes):
    return fits.verdicts([TRUTH, VAE, GOOD | changes])["tanh"]


def test_a_good_fit_holds_all():
    found = verdict()
    assert found["held_out_within"]
    counts = ("train_at_least_truth", "train_at_least_vae", "sigma2_within_3_se", "equals_another")
    assert [found[name] for name in counts] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"to_truth": -0.09}, "held_out_within"),  # .05 + 67/2000 = .0835
        ({"train": -1.51}, "train_at_least_truth"),
        ({"train": -1.495}, "train_at_least_vae"),
        ({"sigma2": 0.012}, "sigma2_within_3_se"),  # log 1.2 = .18
        ({"off": 1e-3}, "equals_another"),
    ],
)
def test_each_verdict_can_fail(changes, name):
    assert not verdict(**changes)[name]


def test_the_held_out_verdict_allows_two_standard_errors_and_no_more():
    assert verdict(to_truth=-0.09, to_truth_se=0.004)["held_out_within"]
    assert not verdict(to_truth=-0.09, to_truth_se=0.003)["held_out_within"]


def test_where_the_noise_is_not_identified_it_is_not_judged():
    assert verdict(n=1, sigma2=1e-5)["sigma2_within_3_se"] is None


@pytest.mark.parametrize("setting", fits.SETTINGS)
def test_data_are_the_same_each_time_and_differ_by_seed(setting):
    one, again, other = (fits.data_of(setting, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.x, again.x)
    np.testing.assert_array_equal(one.fresh, again.fresh)
    assert not np.array_equal(one.x, other.x)
    assert (one.truth.sigma2, len(one.x), one.decoder.sizes[1]) == (0.01, 1000, 16)
    assert (one.decoder.latent_dim, one.decoder.data_dim) == (one.truth.latent_dim, one.truth.data_dim)


def test_the_linear_row_needs_fewer_latents_than_data():
    assert "linear" in fits.rows_of("tanh", 0)
    assert "linear" not in fits.rows_of("polynomial-1-1", 0)


def test_table_and_figure():
    rows = [TRUTH, VAE, GOOD, GOOD | {"seed": 1, "to_truth": -2.0}, TRUTH | {"seed": 1}]
    table = fits.summary(rows)
    assert any(line.startswith("tanh            l-bfgs") and "   2   0.0200" in line for line in table)
    assert len(fits.small_png(_fits_figure.draw(rows, fits.GAP, fits.N), dpi=40)) > 1000


def test_a_journal_is_read_back(tmp_path):
    path = tmp_path / "journal"
    path.write_text('{"setting": "tanh", "seed": 0, "row": "VAE", "p": 67}\n', encoding="utf-8")
    assert fits._read(path)["tanh", 0, "VAE"]["p"] == 67
    assert fits._read(tmp_path / "none") == {}
