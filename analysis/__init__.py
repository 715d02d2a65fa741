"""Mathematics on arrays and tables: spectra, fits, laws, statistics, plots, and the table schemas. Useful alone in a notebook."""

from scalespec.analysis.results import Results, load

__all__ = ["Results", "load"]
