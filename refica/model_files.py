"""Models as JSON files that load back bit for bit."""

from __future__ import annotations

from os import PathLike
from typing import Any

from refica.files import DataError, read_json, write_json
from refica.model import NonlinearICA
from refica.vae import VAE

__all__ = ["SCHEMA", "VERSION", "columns_of", "load_model", "save_model"]

SCHEMA = "refica-model"
VERSION = 1


def save_model(path: str | PathLike[str], model: NonlinearICA | VAE, **about: Any) -> None:
    """Write a model, or a VAE with its encoder, as JSON, atomically.

    Parameters
    ----------
    path : str or path-like
    model : NonlinearICA or VAE
    **about
        Further entries for the reader of the file, such as ``status``: plain values.

    Raises
    ------
    OutputError
        If the file cannot be written.
    TypeError
        If the decoder is neither an MLP nor a Polynomial.
    """
    kind = "vae" if isinstance(model, VAE) else "model"
    write_json(path, {"schema": SCHEMA, "version": VERSION, kind: model.to_dict(), "about": about})


def columns_of(path: str | PathLike[str]) -> tuple[str, ...]:
    """Return the names of the columns of data that a model was fitted to; none where its file has none.

    Raises
    ------
    DataError
        If the file is missing, is no such file, or was written by a newer refica.
    """
    about = read_json(path, SCHEMA, [VERSION]).get("about")
    columns = about.get("columns", []) if isinstance(about, dict) else []
    return tuple(columns) if all(isinstance(name, str) for name in columns) else ()


def load_model(path: str | PathLike[str]) -> NonlinearICA | VAE:
    """Return what `save_model` wrote: every parameter has the same bits.

    Raises
    ------
    DataError
        If the file is missing, is no such file, or was written by a newer refica.
    """
    content = read_json(path, SCHEMA, [VERSION])
    try:
        if "vae" in content:
            return VAE.from_dict(content["vae"])
        return NonlinearICA.from_dict(content["model"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not a complete {SCHEMA} file: {error}") from None
