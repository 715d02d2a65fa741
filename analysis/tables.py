"""The schemas of everything a study writes: one place that names each field, its type, its unit and whether it may be null.

`docs/contract.md` shows the same tables to people, and a test compares the two with what a study really wrote. Adding a
nullable column keeps `SCHEMA_VERSION`; renaming a column or changing its meaning raises it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA_VERSION = 1

RUN_STATUSES = ("done", "diverged", "failed")
ERROR_REASONS = ("non_finite", "loss_bound", "oom", "worker_died", "stalled", "data_changed", "storage", "bug")
SPECTRUM_STATUSES = ("ok", "too_small", "nan", "zero", "unreadable", "failed_fit")
FIT_STATUSES = (
    "converged",
    "at_bound",
    "did_not_move",
    "flat_basin",
    "too_few_points",
    "too_narrow",
    "not_converged",
)

STR, INT, FLOAT, BOOL, TIME = pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.timestamp("ms", tz="UTC")


def _field(name: str, kind: pa.DataType, unit: str, description: str, *, null: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=null, metadata={"unit": unit, "description": description})


def _schema(*fields: pa.Field) -> pa.Schema:
    return pa.schema(fields, metadata={"schema_version": str(SCHEMA_VERSION)})


RUNS = _schema(
    _field("study", STR, "", "name of the study"),
    _field("run_key", STR, "", "readable axes and hash of everything that changes the numbers"),
    _field("family_key", STR, "", "the runs that differ only in data fraction; resample these, not runs"),
    _field("task", STR, "", "built-in name or package.module:Class"),
    _field("width", INT, "", "model width after rounding by the task"),
    _field("data_fraction", FLOAT, "", "share of the training data offered, a prefix of the seed's permutation"),
    _field("seed", INT, "", "one number for the three streams: initialisation, order, dropout"),
    _field("batch_size", INT, "examples", "global batch size"),
    _field("lr", FLOAT, "", "peak learning rate after the batch rule, at the reference width"),
    _field(
        "reference_width", INT, "", "the width at which lr holds; the width rule carries it on from there", null=True
    ),
    _field("lr_base", FLOAT, "", "optim.lr of the study, at the reference batch size"),
    _field("optimizer", STR, "", "optimizer name"),
    _field("schedule", STR, "", "learning-rate schedule name"),
    _field("steps", INT, "steps", "optimizer steps from step 0, trunk included"),
    _field("samples", INT, "images or tokens", "D: images, or predicted tokens, processed from step 0"),
    _field("unique_samples", INT, "images or tokens", "distinct samples among them"),
    _field("params_total", INT, "", "all parameters, a tied tensor once"),
    _field("params_embedding", INT, "", "parameters that are only looked up"),
    _field("params_matmul", INT, "", "N: weights of a matmul or convolution, the head once even if tied"),
    _field("flops_train", FLOAT, "FLOP", "C: executed forward and backward, attention not halved, no evaluation"),
    _field("flops_6nd", FLOAT, "FLOP", "6 · params_matmul · samples"),
    _field("flops_matmul", FLOAT, "FLOP", "flops_train without the attention scores and their product with values"),
    _field("flops_causal", FLOAT, "FLOP", "flops_train with attention halved for the causal mask"),
    _field("flops_convention", STR, "", "in words, what flops_train counts"),
    _field("val_loss", FLOAT, "nats", "mean loss of the final weights over the whole validation set", null=True),
    _field("val_loss_se", FLOAT, "nats", "its standard error over examples", null=True),
    _field("val_loss_select", FLOAT, "nats", "over the first half of the fixed permutation: for selection", null=True),
    _field("val_loss_select_se", FLOAT, "nats", "its standard error", null=True),
    _field("val_loss_report", FLOAT, "nats", "over the second half: for reporting what was selected", null=True),
    _field("val_loss_report_se", FLOAT, "nats", "its standard error", null=True),
    _field("val_accuracy", FLOAT, "", "share of correct predictions (tokens for text)", null=True),
    _field("train_loss_ema", FLOAT, "nats", "bias-corrected moving average of the training loss", null=True),
    _field("role", STR, "", "result | probe: laws read results only; asks.parquet says which stage asked", null=True),
    _field("status", STR, "", "done | diverged | failed"),
    _field("error", STR, "", "typed reason and its text: " + ", ".join(ERROR_REASONS), null=True),
    _field("precision", STR, "", "fp32 | bf16"),
    _field("device", STR, "", "name of the processor that trained it"),
    _field("workers", INT, "", "DDP workers"),
    _field("samples_per_s", FLOAT, "images or tokens / s", "median training throughput, all workers", null=True),
    _field("mfu", FLOAT, "", "flops_train per second over the peak of the device, where the peak is known", null=True),
    _field("cost_usd", FLOAT, "USD", "duration_s × resources.price_per_hour", null=True),
    _field(
        "duration_s", FLOAT, "s", "marginal wall time of this run: a shared trunk counts for the run it was trained in"
    ),
    _field("started_at", TIME, "", "when its first attempt began"),
    _field("mlflow_run_id", STR, "", "the child run in MLflow", null=True),
    _field("code_version", STR, "", "version and git commit of scalespec", null=True),
)

CURVES = _schema(
    _field("run_key", STR, "", "the run"),
    _field("step", INT, "steps", "optimizer steps done"),
    _field("samples", INT, "images or tokens", "samples processed by then"),
    _field("flops", FLOAT, "FLOP", "flops_train by then"),
    _field(
        "metric",
        STR,
        "",
        "train_loss, train_loss_ema, val_loss, val_accuracy, lr, grad_norm, samples_per_s; for GPT-2 tokens also n_eff_ema, n_eff_batches, n_eff_clamped_ema, n_eff_clamped_batches …",
    ),
    _field("value", FLOAT, "", "its value"),
)

METRICS_PART = _schema(
    _field("step", INT, "steps", "optimizer steps done"),
    _field("samples", INT, "images or tokens", "samples processed by then"),
    _field("flops", FLOAT, "FLOP", "flops_train by then"),
    _field("metric", STR, "", "as in curves"),
    _field("value", FLOAT, "", "its value"),
    _field("time_ms", INT, "ms since epoch", "when it was logged; sent to MLflow, so that a retry is no second point"),
)

VAL = _schema(
    _field("example_id", INT, "", "position in the validation split; the same for every run"),
    _field("half", STR, "", "select | report: the half of the fixed permutation"),
    _field("loss", FLOAT, "nats", "loss of the final weights on this example (mean over tokens for text)"),
    _field("correct", FLOAT, "", "1 or 0, or the share of correct tokens", null=True),
)

CHECKPOINTS = _schema(
    _field("run_key", STR, "", "the run"),
    _field("step", INT, "steps", "optimizer steps done"),
    _field("samples", INT, "images or tokens", "samples processed by then"),
    _field("flops", FLOAT, "FLOP", "flops_train by then"),
    _field("path", STR, "", "of the safetensors file, inside the study folder"),
    _field("bytes", INT, "bytes", "its size"),
    _field("sha256", STR, "", "of the file; equal for a trunk's checkpoint in every run of the family"),
    _field("val_loss", FLOAT, "nats", "validation loss at this step", null=True),
    _field("val_accuracy", FLOAT, "", "validation accuracy at this step", null=True),
)

SPECTRA = _schema(
    _field("run_key", STR, "", "the run; for loose files the path"),
    _field("step", INT, "steps", "step of the checkpoint"),
    _field("layer", STR, "", "tensor name; [q], [3] a part of a fused tensor, :3 a kernel position"),
    _field("profile", STR, "", "ww-0.7.7 | native"),
    _field("samples", INT, "images or tokens", "samples processed by then", null=True),
    _field("kind", STR, "", "dense | conv1d | conv2d | embedding"),
    _field("rows", INT, "", "N: the larger dimension"),
    _field("cols", INT, "", "M: the smaller dimension"),
    _field("matrices", INT, "", "matrices whose eigenvalues are pooled: kernel positions", null=True),
    _field("content", STR, "", "hash of the tensor (native): equal for tied and frozen tensors", null=True),
    _field("num_evals", INT, "", "eigenvalues of the layer, kernel positions pooled", null=True),
    _field("alpha", FLOAT, "", "power-law exponent of the tail", null=True),
    _field("xmin", FLOAT, "", "eigenvalue where the tail starts", null=True),
    _field("xmax", FLOAT, "", "largest eigenvalue of the fit", null=True),
    _field("D", FLOAT, "", "Kolmogorov–Smirnov distance of the tail from the fit, left limits only", null=True),
    _field("sigma", FLOAT, "", "(alpha − 1)/√num_pl_spikes", null=True),
    _field("num_pl_spikes", INT, "", "eigenvalues in the tail", null=True),
    _field(
        "warning", STR, "", "over-trained (alpha < 2) | under-trained (alpha > 6): WeightWatcher's words", null=True
    ),
    _field("alpha_ks2", FLOAT, "", "native: exponent by the two-sided distance, tail of at least 10", null=True),
    _field("xmin_ks2", FLOAT, "", "native: where that tail starts", null=True),
    _field("D_ks2", FLOAT, "", "native: two-sided Kolmogorov–Smirnov distance", null=True),
    _field("sigma_ks2", FLOAT, "", "native: (alpha_ks2 − 1)/√num_pl_spikes_ks2", null=True),
    _field("num_pl_spikes_ks2", INT, "", "native: eigenvalues in that tail", null=True),
    _field("alpha_hill", FLOAT, "", "Hill estimate with the tail fixed at the median", null=True),
    _field("alpha_farms", FLOAT, "", "the same over pooled 128 × 128 windows, so that shapes compare", null=True),
    _field("alpha_weighted", FLOAT, "", "alpha · log10(spectral_norm)", null=True),
    _field("log_alpha_norm", FLOAT, "", "log10 of Σ λ^alpha", null=True),
    _field("norm", FLOAT, "", "Σ λ, the squared Frobenius norm", null=True),
    _field("log_norm", FLOAT, "", "log10 of the squared Frobenius norm", null=True),
    _field("spectral_norm", FLOAT, "", "largest eigenvalue = largest singular value squared", null=True),
    _field("lambda_max", FLOAT, "", "WeightWatcher's other name of spectral_norm", null=True),
    _field("log_spectral_norm", FLOAT, "", "log10(spectral_norm)", null=True),
    _field("sigma_max", FLOAT, "", "native: largest singular value, the operator norm of one matrix", null=True),
    _field("sv_max", FLOAT, "", "largest singular value", null=True),
    _field("sv_min", FLOAT, "", "smallest singular value; of several matrices, the largest such", null=True),
    _field("stable_rank", FLOAT, "", "Σ λ / max λ", null=True),
    _field("matrix_rank", INT, "", "singular values above max σ · N · eps", null=True),
    _field("rank_loss", INT, "", "singular values at or below it, matrix by matrix", null=True),
    _field("weak_rank_loss", INT, "", "eigenvalues below 1e-6", null=True),
    _field("entropy", FLOAT, "", "of the normalised eigenvalues over ln(matrix_rank)", null=True),
    _field("mp_softrank", FLOAT, "", "upper edge of the Marchenko–Pastur bulk over max λ", null=True),
    _field("num_spikes", INT, "", "eigenvalues above the Marchenko–Pastur edge", null=True),
    _field("sigma_mp", FLOAT, "", "width of the fitted bulk, of the spectrum scaled to mean 1", null=True),
    _field("bulk_min", FLOAT, "", "lower edge of the bulk", null=True),
    _field("bulk_max", FLOAT, "", "upper edge of the bulk", null=True),
    _field("W_scale", FLOAT, "", "its square scales the eigenvalues to mean 1", null=True),
    _field("num_traps", INT, "", "num_spikes after shuffling the elements: correlation traps", null=True),
    _field("rand_num_spikes", INT, "", "WeightWatcher's other name of num_traps", null=True),
    _field("rand_sigma_mp", FLOAT, "", "sigma_mp of the shuffle", null=True),
    _field("rand_mp_softrank", FLOAT, "", "mp_softrank of the shuffle", null=True),
    _field("rand_bulk_min", FLOAT, "", "bulk_min of the shuffle", null=True),
    _field("rand_bulk_max", FLOAT, "", "bulk_max of the shuffle", null=True),
    _field("rand_W_scale", FLOAT, "", "W_scale of the shuffle", null=True),
    _field("max_rand_eval", FLOAT, "", "max λ of the shuffle (of five below 100 eigenvalues)", null=True),
    _field("rand_distance", FLOAT, "", "Jensen–Shannon distance from the shuffled spectrum", null=True),
    _field("ww_softrank", FLOAT, "", "max λ of the shuffle over max λ", null=True),
    _field("ww_maxdist", FLOAT, "", "max λ minus max λ of the shuffle", null=True),
    _field("detX_num", INT, "", "eigenvalues in the tail whose rescaled product is just under 1 (ERG)", null=True),
    _field("num_ERG_spikes", INT, "", "WeightWatcher's other name of detX_num", null=True),
    _field("detX_val", FLOAT, "", "first eigenvalue of that tail", null=True),
    _field(
        "detX_val_unrescaled", FLOAT, "", "the same of the spectrum scaled to mean 1, for all its name says", null=True
    ),
    _field("ERG_gap", INT, "", "detX_num − num_pl_spikes", null=True),
    *(
        _field(f"{place}_{moment}_{name}", FLOAT, unit, f"{words} of the {place} eigenvectors, {law}", null=True)
        for name, unit, law in (
            ("vec_entropy", "nats", "entropy of 100-bin histograms"),
            ("loc_ratio", "", "‖v‖₁/‖v‖∞"),
            ("part_ratio", "", "‖v‖₂/‖v‖₄"),
        )
        for place in ("bulk", "tail")
        for moment, words in (("mean", "mean"), ("var", "variance"))
    ),
    _field("distance_from_init", FLOAT, "", "‖W − W0‖_F / ‖W0‖_F", null=True),
    _field("init_sigma_max", FLOAT, "", "largest singular value of W − W0", null=True),
    _field("update_norm", FLOAT, "", "‖W − V‖_F / ‖V‖_F, V the weights of the checkpoint before", null=True),
    _field("update_sigma_max", FLOAT, "", "largest singular value of W − V", null=True),
    _field("update_stable_rank", FLOAT, "", "stable rank of W − V", null=True),
    _field("update_alpha_hill", FLOAT, "", "alpha_hill of W − V", null=True),
    _field(
        "alpha_lo", FLOAT, "", "5 % quantile of the profile's exponent over bootstrap samples of eigenvalues", null=True
    ),
    _field("alpha_hi", FLOAT, "", "95 % quantile", null=True),
    _field("alpha_spread", FLOAT, "", "range of the exponent over xmin with D within 5 % of the best", null=True),
    _field("alpha_null_lo", FLOAT, "", "5 % quantile of the exponent of Gaussian matrices of this shape", null=True),
    _field("alpha_null_hi", FLOAT, "", "95 % quantile", null=True),
    _field("alpha_z", FLOAT, "", "log of the exponent in standard deviations from that null", null=True),
    _field("D_null", FLOAT, "", "5 % quantile of D of that null", null=True),
    _field("alpha_hill_null_lo", FLOAT, "", "5 % quantile of alpha_hill of that null", null=True),
    _field("alpha_hill_null_hi", FLOAT, "", "95 % quantile", null=True),
    _field("alpha_hill_z", FLOAT, "", "log of alpha_hill in standard deviations from that null", null=True),
    _field("stable_rank_z", FLOAT, "", "log of stable_rank in standard deviations from that null", null=True),
    _field(
        "rand_distance_null", FLOAT, "", "95 % quantile of the distance between two matrices of that null", null=True
    ),
    _field("modes", INT, "", "modes of the density of log λ", null=True),
    _field("tail_modes", INT, "", "the same of the tail alone", null=True),
    _field(
        "lr_exponential",
        FLOAT,
        "nats",
        "log-likelihood of the power law minus the exponential's on the tail",
        null=True,
    ),
    _field("p_exponential", FLOAT, "", "Vuong's two-sided p of it", null=True),
    _field(
        "lr_lognormal", FLOAT, "nats", "log-likelihood of the power law minus the lognormal's on the tail", null=True
    ),
    _field("p_lognormal", FLOAT, "", "Vuong's two-sided p of it", null=True),
    _field("trusted", BOOL, "", "every check passed; null: a check was not computed", null=True),
    _field("why", STR, "", "the checks that failed or were not computed", null=True),
    _field("status", STR, "", " | ".join(SPECTRUM_STATUSES)),
    _field("error", STR, "", "what went wrong, for a status other than ok", null=True),
    _field(
        "eigenvalues", pa.list_(FLOAT), "", "σ², ascending, unscaled (ww-0.7.7 halves those of convolutions)", null=True
    ),
)

SPECTRA_SUMMARY = _schema(
    _field("run_key", STR, "", "the run"),
    _field("step", INT, "steps", "step of the checkpoint"),
    _field("profile", STR, "", "ww-0.7.7 | native"),
    _field("alpha_median", FLOAT, "", "median over the layers used", null=True),
    _field("alpha_q25", FLOAT, "", "lower quartile over the layers used", null=True),
    _field("alpha_q75", FLOAT, "", "upper quartile over the layers used", null=True),
    _field("alpha_trimmed", FLOAT, "", "mean over the layers used without alpha > 8", null=True),
    _field("alpha_ks2_median", FLOAT, "", "native: median of alpha_ks2 over the layers used", null=True),
    _field(
        "alpha_ks2_trimmed", FLOAT, "", "native: mean of alpha_ks2 over the layers used without those > 8", null=True
    ),
    _field("alpha_hill_median", FLOAT, "", "median of alpha_hill over all layers with a spectrum", null=True),
    _field("ww_mean_alpha", FLOAT, "", "WeightWatcher's plain mean, failed fits (−1) included", null=True),
    _field("mean_alpha_weighted", FLOAT, "", "plain mean", null=True),
    _field("mean_log_norm", FLOAT, "", "plain mean", null=True),
    _field("mean_log_spectral_norm", FLOAT, "", "plain mean", null=True),
    _field("mean_log_alpha_norm", FLOAT, "", "plain mean", null=True),
    _field("mean_stable_rank", FLOAT, "", "plain mean", null=True),
    _field("mean_mp_softrank", FLOAT, "", "plain mean", null=True),
    _field(
        "n_used", INT, "", "layers whose alpha entered the median: trusted, or all fits where trust was not computed"
    ),
    _field("n_total", INT, "", "layers looked at, a tied tensor once under native"),
    _field("reasons", STR, "", "why layers were left out, with counts", null=True),
)

ASKS = _schema(
    _field("stage", STR, "", "name of the stage that asked; `grid` for a study of one grid"),
    _field("ask", INT, "", "number of the ask, as in asks/000003.json"),
    _field("round", INT, "", "position among the asks of its stage"),
    _field("role", STR, "", "result | probe"),
    _field("run_key", STR, "", "a run that it asked for; a run may be asked for by several"),
    _field("why", STR, "", "in words"),
)

LAWS = _schema(
    _field("id", STR, "", "name of the fit within the study"),
    _field("form", STR, "", "chinchilla | power | frontier …"),
    _field("target", STR, "", "the column that was fitted"),
    _field("n_column", STR, "", "the column used for N", null=True),
    _field("d_column", STR, "", "the column used for D", null=True),
    _field("c_column", STR, "", "the column used for C", null=True),
    _field("param", STR, "", "parameter name", null=True),
    _field("value", FLOAT, "", "estimate", null=True),
    _field("lo", FLOAT, "", "lower end of the interval", null=True),
    _field("hi", FLOAT, "", "upper end of the interval", null=True),
    _field("level", FLOAT, "", "confidence level of the interval", null=True),
    _field("resampling", STR, "", "what was resampled for the interval", null=True),
    _field("n_points", INT, "", "points offered"),
    _field("n_used", INT, "", "points that entered the fit"),
    _field("objective", FLOAT, "", "value of the objective at the fit", null=True),
    _field("delta", FLOAT, "", "Huber threshold on log loss", null=True),
    _field("status", STR, "", "space-separated subset of: " + " ".join(FIT_STATUSES)),
)

EVIDENCE_FILE = "laws.parquet"
"""Beside laws.json: what the intervals of the laws are made of."""

LAW_EVIDENCE = _schema(
    _field("id", STR, "", "the law, as in laws.json"),
    _field(
        "kind",
        STR,
        "",
        "draw: a parameter in a bootstrap draw; residual: ln(observed) − ln(fitted) of a used point; influence: change of a"
        " parameter without that point; column: a variable or the loss of a used point; widening: by how much intervals are"
        " wider than the percentiles of the draws",
    ),
    _field("name", STR, "", "the parameter, or the variable; empty for residual and widening"),
    _field("at", INT, "", "number of the draw or of the point, from 0"),
    _field("key", STR, "", "name of the point: a run_key, or a budget", null=True),
    _field("value", FLOAT, "", "NaN where a draw has none"),
)

TABLES: Mapping[str, pa.Schema] = {
    "runs": RUNS,
    "curves": CURVES,
    "checkpoints": CHECKPOINTS,
    "spectra": SPECTRA,
    "spectra_summary": SPECTRA_SUMMARY,
    "asks": ASKS,
}

KEYS: Mapping[str, tuple[str, ...]] = {
    "runs": ("run_key",),
    "curves": ("run_key", "metric", "step"),
    "checkpoints": ("run_key", "step"),
    "spectra": ("run_key", "step", "layer", "profile"),
    "spectra_summary": ("run_key", "step", "profile"),
    "asks": ("ask", "run_key"),
}


THREADS_FROM = 20_000_000
"""Values of a Parquet file from which its columns are read by several threads."""


class TableError(ValueError):
    """A table that does not match its schema, or a Parquet file that must not be converted."""


def with_axes(schema: pa.Schema, axes: Mapping[str, pa.DataType]) -> pa.Schema:
    """`schema` with a column for every extra axis of a study, after `seed`; a name the schema has already is left alone."""
    extra = [
        _field(name, kind, "", "axis of the study", null=True)
        for name, kind in axes.items()
        if name not in schema.names
    ]
    if not extra:
        return schema
    at = schema.get_field_index("seed") + 1
    fields = list(schema)
    return pa.schema(fields[:at] + extra + fields[at:], metadata=schema.metadata)


def from_rows(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table of exactly `schema`.

    Raises `TableError` for an unknown column or a null where none is allowed. NaN stays NaN; numpy scalars are welcome.
    """
    rows = list(rows)
    unknown = {key for row in rows for key in row} - set(schema.names)
    if unknown:
        raise TableError(f"columns that the schema does not have: {', '.join(sorted(unknown))}")
    columns = []
    for field in schema:
        column = pa.array([row.get(field.name) for row in rows], type=field.type)
        if not field.nullable and column.null_count:
            raise TableError(f"column {field.name} may not be null")
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=schema)


def from_frame(frame: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    """A DataFrame as a table of exactly `schema`: what is missing or NaN becomes null, other columns are dropped."""
    return pa.Table.from_pandas(frame.reindex(columns=schema.names), schema=schema, preserve_index=False)


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table written under an older or newer minor version of `schema`, as one of exactly `schema`.

    Columns the table lacks become null, columns the schema lacks are dropped. Raises TableError for a missing column that may
    not be null.
    """
    columns = []
    for field in schema:
        if field.name in table.column_names:
            columns.append(table[field.name].cast(field.type))
        elif field.nullable:
            columns.append(pa.nulls(table.num_rows, field.type))
        else:
            raise TableError(f"column {field.name} is missing")
    return pa.Table.from_arrays(columns, schema=schema)


def sorted_by_key(table: pa.Table, name: str) -> pa.Table:
    """`table` in the order of its key, so that equal content is an equal file. One that is in order is returned as it is."""
    ranks = _ranks(table, KEYS[name])
    return table if all(_in_order(ranks)) else table.take(pa.array(np.lexsort(ranks[::-1])))


def last_of_each_key(table: pa.Table, name: str) -> pa.Table:
    """The last row of each key, in the order of the keys."""
    ranks = _ranks(table, KEYS[name])
    order = np.lexsort(ranks[::-1])  # stable: of equal keys the last row comes last
    last = np.zeros(len(order), dtype=np.bool_)
    last[-1:] = True
    for rank in ranks:
        last[:-1] |= rank[order[1:]] != rank[order[:-1]]
    kept, columns, schema = pa.array(order[last]), table.columns, table.schema
    del table, ranks
    out = []
    for _ in schema:  # column by column, so that a table that nobody else holds is not in memory twice
        out.append(columns.pop(0).take(kept))
        pa.default_memory_pool().release_unused()
    return pa.Table.from_arrays(out, schema=schema)


def _in_order(ranks: Sequence[Any]) -> Iterator[bool]:
    """Whether the rows do not fall, by the first of `ranks`, where it stays by the second …"""
    equal = np.ones(max(0, len(ranks[0]) - 1), dtype=np.bool_)
    for rank in ranks:
        yield not (equal & (rank[1:] < rank[:-1])).any()
        equal &= rank[1:] == rank[:-1]


def _ranks(table: pa.Table, columns: Sequence[str]) -> list[Any]:
    """Each column as numbers in the same order: strings by their place among the different ones, which are few."""
    return [
        _places(table[name]) if pa.types.is_string(table[name].type) else table[name].to_numpy() for name in columns
    ]


def _places(column: pa.ChunkedArray) -> Any:
    chunks = column.dictionary_encode().unify_dictionaries().chunks
    if not chunks:
        return np.empty(0, dtype=np.int32)
    order = np.argsort(np.array(chunks[0].dictionary.to_pylist(), dtype=object))
    places = np.empty(len(order), dtype=np.int32)
    places[order] = np.arange(len(order))
    return places[np.concatenate([chunk.indices.to_numpy() for chunk in chunks])]


def read_parquet(source: Any, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads a Parquet file from anywhere, refusing extension types before anything is converted.

    With Ray imported, converting a hostile extension column runs a pickle (CVE-2026-41486 is the same class of fault).
    """
    file = pq.ParquetFile(source)
    refuse_extension_types(file.schema_arrow)
    # for the small parts of a run, threads cost more than they save
    threads = file.metadata.num_rows * file.metadata.num_columns > THREADS_FROM
    return file.read(columns=list(columns) if columns is not None else None, use_threads=threads)


def refuse_extension_types(schema: pa.Schema) -> None:
    """Raises `TableError` where a column, at any depth, has an Arrow extension type."""
    for field in schema:
        if _has_extension(field):
            raise TableError(
                f"column {field.name} has an Arrow extension type ({field.type}); write it as a plain type"
            )


def _has_extension(field: pa.Field) -> bool:
    if isinstance(field.type, pa.BaseExtensionType) or b"ARROW:extension:name" in (field.metadata or {}):
        return True
    return any(_has_extension(field.type.field(i)) for i in range(field.type.num_fields))


def to_pandas(table: pa.Table) -> pd.DataFrame:
    """A DataFrame with numpy-backed numbers; a nullable integer column becomes Int64 so that no count turns into a float."""
    frame: pd.DataFrame = table.to_pandas(
        types_mapper={pa.int64(): pd.Int64Dtype()}.get if _has_null_ints(table) else None
    )
    return frame


def _has_null_ints(table: pa.Table) -> bool:
    return any(pa.types.is_integer(column.type) and column.null_count for column in table.columns)
