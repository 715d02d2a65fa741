"""The study: spec, grid, plan, sweep on Ray, spectra on Ray Data, tracking in MLflow, store, report, command line."""
