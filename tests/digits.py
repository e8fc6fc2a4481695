"""mpmath where it is installed (the dev extra), for tests that compare with many digits."""

import pytest

try:
    import mpmath
except ImportError:
    mpmath = None

needs_mpmath = pytest.mark.skipif(mpmath is None, reason="mpmath comes with the dev extra")

__all__ = ["mpmath", "needs_mpmath"]
