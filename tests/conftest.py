"""Set-up that must come before anything imports NumPy, and the Hypothesis profiles.

``HYPOTHESIS_PROFILE=thorough python -m pytest`` draws twenty times as many examples.
"""

import os

# One BLAS thread: the products here are small, where OpenBLAS's own threads cost up to a hundred times
# what they save, and a sum split over threads may round differently from run to run. BLAS reads these when
# NumPy is first imported, and child processes inherit them. `setdefault`, so that whoever wants threads can
# still ask for them.
for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
    os.environ.setdefault(variable, "1")
# No test opens a window. Set, not defaulted: a backend from the user's session would fail without a display.
os.environ["MPLBACKEND"] = "Agg"

from hypothesis import HealthCheck, settings  # noqa: E402 (the environment comes first)

# No deadline and no "too slow": both measure the machine, not the code.
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "print_blob": True}

# In CI the same examples each time, so that a red run is about the change; elsewhere new ones, to find new
# faults.
settings.register_profile("default", derandomize=bool(os.environ.get("CI")), **_COMMON)
settings.register_profile("thorough", max_examples=2000, derandomize=False, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
