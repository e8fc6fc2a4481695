"""A user's decoder, named on the command line."""

from __future__ import annotations

import importlib
import sys
from typing import Any

__all__ = ["load_decoder"]


def load_decoder(words: str) -> Any:
    """Return the decoder that ``module:name`` names: an instance, or what makes one when it is called.

    The module is looked for in the working directory first, as ``python -m`` does.

    Raises
    ------
    ValueError
        If there is no such module or name, or calling it fails.
    """
    module, _, name = words.partition(":")
    sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), name)
        return found if not isinstance(found, type) and hasattr(found, "n_params") else found()
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise ValueError(f"the decoder must be MODULE:NAME, got {words!r}: {error}") from error
    finally:
        sys.path.remove("")
