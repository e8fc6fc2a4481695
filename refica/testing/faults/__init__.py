"""Known ways to be wrong, each a small patch that can be planted into refica and taken out again.

    with faults.plant("missing-half"):
        ...  # here log N(x; g, σ² I) lacks a ½, and whoever checks refica should notice

`CATALOGUE` maps each name to a `Fault`, which says in a sentence what is wrong and where: ``place`` is the
function that is replaced, as `refica verify` names it at the line that turns red. Grade your own tests with
it: `graded` runs a check with each fault planted and returns the names of those that it did not notice.
"""

from refica.testing.faults.catalogue import CATALOGUE
from refica.testing.faults.planting import Fault, graded, located, plant

__all__ = ["CATALOGUE", "Fault", "graded", "located", "plant"]
