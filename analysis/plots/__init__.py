"""Figures: data are markers, models are lines, dark is large, nothing excluded is hidden."""
