"""Spectra: the stage on Ray Data, the standalone verb, and the one reader of weights."""
