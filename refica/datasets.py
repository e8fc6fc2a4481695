"""Data to fit: a named example with its truth, Fisher's iris measurements, or a CSV file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from refica.examples import DEFAULT, example, held_out
from refica.files import DataError, read_csv
from refica.model import NonlinearICA
from refica.validation import Array

__all__ = ["Dataset", "from_csv", "from_example", "iris"]


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Observations, and what is known of where they come from.

    Attributes
    ----------
    name : str
    columns : tuple of str
        Names of the n coordinates.
    x : (N, n)
        The observations to fit.
    truth : NonlinearICA or None
        The model they were drawn from.
    z : (N, m) or None
        Their true latents.
    held_out : (N', n) or None
        An independent sample; without one, cross-validation or a split stands in.
    """

    name: str
    columns: tuple[str, ...]
    x: Array
    truth: NonlinearICA | None = None
    z: Array | None = None
    held_out: Array | None = None


def from_example(name: str = DEFAULT, seed: int | None = None) -> Dataset:
    """Return a named example's sample and an independent one of 10 000 observations (1000 for m > 1).

    Parameters
    ----------
    name : str
        One of `refica.examples.EXAMPLES`.
    seed : int, optional
        For the sample; None is the example's own.

    Raises
    ------
    ValueError
        For an unknown name.
    """
    chosen = example(name)
    z, x = chosen.simulate(rng=seed)
    columns = tuple(f"x{j + 1}" for j in range(x.shape[1]))
    return Dataset(name, columns, x, chosen.model, z, held_out(chosen)[1])


def iris() -> Dataset:
    """Return Fisher's four measurements of 150 iris flowers, in cm, rounded to 0.1 (Fisher 1936)."""
    with resources.as_file(resources.files("refica") / "data" / "iris.csv") as path:
        columns = ["sepal_length_cm", "sepal_width_cm", "petal_length_cm", "petal_width_cm"]
        table = read_csv(path, columns)
    return Dataset("iris", table.columns, table.values)


def from_csv(path: str, columns: Sequence[str] | None = None) -> Dataset:
    """Return the numeric columns of a CSV file.

    Parameters
    ----------
    path : str
    columns : sequence of str, optional
        Names or 1-based numbers of the columns to use; None for all.

    Raises
    ------
    DataError
        As `refica.files.read_csv`, or if there are fewer than two rows.
    """
    table = read_csv(path, columns)
    if len(table.values) < 2:
        raise DataError(f"{path}: expected at least 2 rows of data to fit, got {len(table.values)}")
    return Dataset(str(path), table.columns, table.values)
