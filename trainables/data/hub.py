"""Datasets by name, through `datasets`: the only module that may touch the network for data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from scalespec.trainables.errors import TaskError


class Split(Protocol):
    """The part of `datasets.Dataset` that is used here."""

    @property
    def column_names(self) -> list[str]: ...
    def iter(self, batch_size: int) -> Iterator[Mapping[str, list[Any]]]: ...


def splits(name: str) -> Mapping[str, Split]:
    """All splits of a dataset `owner/name`, `owner/name:config` or a local folder, from the cache where it is there.

    Raises TaskError with the remedy where it can be neither found nor fetched.
    """
    import datasets  # takes two seconds, and most studies do not need it

    path, _, config = name.partition(":")
    try:
        found: Mapping[str, Split] = datasets.load_dataset(path, config or None)
    except Exception as error:  # the network, the cache and the dataset's own files each raise their own
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise TaskError(
            f"data.source: cannot fetch {name} through datasets ({reason}); use files: --set data.path=DIR"
        ) from error
    return found
