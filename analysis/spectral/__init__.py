"""Spectra of weight matrices: WeightWatcher's numbers exactly, faster, and whether they can be believed."""

from scalespec.analysis.spectral.analyze import analyze
from scalespec.analysis.spectral.esd import KINDS, NATIVE, PROFILES, WW, SpectrumError
from scalespec.analysis.spectral.layers import (
    content_key,
    cost,
    layer_rows,
    matrices,
    memory,
    null_cost,
    parts,
)
from scalespec.analysis.spectral.metrics import fit_columns
from scalespec.analysis.spectral.parallel import each, shapes_first
from scalespec.analysis.spectral.summary import summaries, summarize

__all__ = [
    "KINDS",
    "NATIVE",
    "PROFILES",
    "WW",
    "SpectrumError",
    "analyze",
    "content_key",
    "cost",
    "each",
    "fit_columns",
    "layer_rows",
    "matrices",
    "memory",
    "null_cost",
    "parts",
    "shapes_first",
    "summaries",
    "summarize",
]
