"""Many layers at once: processes side by side, or for less work on a GPU two threads, of which one fits while the other decomposes."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from typing import TypeVar

from scalespec.analysis.spectral.esd import use_gpu

Item = TypeVar("Item")
Result = TypeVar("Result")

GPU_THREADS = 2
"""Each with a stream of its own. More would wait for one another: fits hold the interpreter."""

WORTH_S, GPU_WORTH_S = 8.0, 60.0
"""Less work than this is done before more processes have loaded their libraries: 1 to 2 s each, with CUDA 8 s."""

GPU_PROCESSES = 8
"""Each takes half a GiB of the GPU beside its matrices, and the GPU serves them in turns."""


def each(
    function: Callable[[Item], Result], items: Sequence[Item], *, seconds: float, cpus: int, device: str = "auto"
) -> Iterator[tuple[int, Result]]:
    """(index, function(item)) of every item, as they are done. The function must be importable, its items and results plain.

    seconds: what all items would take on one CPU thread, about. Raises what the function raises. Where a process is killed, for
    want of memory most likely, this one does the rest, one item at a time.
    """
    gpu = use_gpu(device)
    workers = min(cpus, len(items), GPU_PROCESSES if gpu else cpus)
    if workers > 1 and seconds > (GPU_WORTH_S if gpu else WORTH_S):
        # forked processes would inherit locks of threads that they do not have
        spawn = multiprocessing.get_context("spawn")
        yield from _pooled(function, items, ProcessPoolExecutor(workers, spawn, initializer=_quiet))
    elif gpu:
        _load_solvers()
        yield from _pooled(function, items, ThreadPoolExecutor(GPU_THREADS, initializer=_own_stream))
    else:
        yield from enumerate(map(function, items))


def _pooled(function: Callable[[Item], Result], items: Sequence[Item], pool: Executor) -> Iterator[tuple[int, Result]]:
    left = dict(enumerate(items))
    with pool:
        try:
            futures = {pool.submit(function, item): index for index, item in left.items()}
            for future in as_completed(futures):
                result = future.result()
                del left[futures[future]]
                yield futures[future], result
        except BrokenExecutor:
            pass
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    yield from ((index, function(item)) for index, item in left.items())


def shapes_first(shapes: Iterable[tuple[int, ...]], costs: Sequence[float]) -> list[int]:
    """The order in which to start: the costliest of each shape, then the next of each.

    Layers of one shape share a null. Started together, each process would draw it for itself.
    """
    by_cost = sorted(enumerate(shapes), key=lambda item: -costs[item[0]])
    seen: dict[tuple[int, ...], int] = {}
    ranks = {}
    for index, shape in by_cost:
        ranks[index] = seen[shape] = seen.get(shape, -1) + 1
    return sorted(ranks, key=lambda index: (ranks[index], -costs[index]))


def _load_solvers() -> None:
    # torch loads its CUDA solvers at their first call, which two threads may not make at once:
    # https://github.com/pytorch/pytorch/issues/90613
    import torch

    one = torch.ones(1, 1, dtype=torch.float64, device="cuda")
    torch.linalg.eigvalsh(one)
    torch.linalg.svdvals(one)


def _own_stream() -> None:
    import torch

    torch.cuda.set_stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]


def _quiet() -> None:
    # on Ctrl-C the parent says what there is to say
    signal.signal(signal.SIGINT, signal.SIG_DFL)
