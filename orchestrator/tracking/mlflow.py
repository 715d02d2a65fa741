"""MLflow as a view of the disk: what is committed of runs is sent to it, by `tracking.recorder` and by `sync`.

The study is a parent run and every run a child, found by tags, so that no restart makes a second one. Metric points carry
the time at which they were logged and are sent once a (metric, step). Training neither waits for MLflow nor dies of it.
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import math
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import psutil

from scalespec.analysis import tables
from scalespec.orchestrator.store import watch
from scalespec.orchestrator.store.folder import StudyStore
from scalespec.orchestrator.version import git_commit
from scalespec.trainables.history import CLAIM, attempt_folder
from scalespec.trainables.keys import keys_of
from scalespec.trainables.rules.scaling import scaled_optim
from scalespec.trainables.spec import SECTIONS, RunSpec

for _key, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # the client's own default keeps trying for four minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "GIT_PYTHON_REFRESH": "quiet",
}.items():
    os.environ.setdefault(_key, _value)

BATCH = 1000
"""MLflow's own limit on metrics in one request."""

NETWORK_DISKS = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "fuse", "9p", "afs")
"""SQLite's locks do not hold on these (https://www.sqlite.org/faq.html#q5)."""

SUMMARY_METRICS = tuple(
    name for name in tables.SPECTRA_SUMMARY.names if name not in ("run_key", "step", "profile", "reasons")
)
SQLITE = "sqlite:///"
PARENT, STUDY_TAG, KEY_TAG = "mlflow.parentRunId", "scalespec.study", "run_key"
STATUS_TAG, ERROR_TAG = "scalespec.status", "scalespec.error"


@dataclass(frozen=True)
class Target:
    """Where a study is tracked."""

    uri: str
    artifacts: str | None = None
    """Artifact folder of a new experiment; None: the server's choice."""


def target_of(store: StudyStore, uri: str | None) -> Target | None:
    """The given server, or SQLite inside the study folder; None where that folder is no local disk."""
    if uri is not None:
        return Target(uri)
    path = store.local_path
    if path is None or not is_local_disk(path):
        return None
    return Target(f"sqlite:///{path}/mlflow.db", Path(path, "mlartifacts").as_uri())


def is_local_disk(path: str) -> bool:
    """Whether a path is on a disk of this machine, by the file system it is mounted with."""
    mounts = sorted(psutil.disk_partitions(all=True), key=lambda part: len(part.mountpoint), reverse=True)
    real = os.path.realpath(path)
    kind = next((part.fstype for part in mounts if os.path.commonpath([part.mountpoint, real]) == part.mountpoint), "")
    return not kind.lower().startswith(NETWORK_DISKS)


class Told(NamedTuple):
    """What was committed of a run and is not in MLflow yet."""

    claim: str = ""
    """Path of its first claim."""
    parts: tuple[str, ...] = ()
    """Paths of metric parts that no resume can take back."""
    result: Mapping[str, Any] | None = None


@dataclass
class Tracker:
    """The MLflow side of one study."""

    store: StudyStore
    target: Target
    study: str
    client: Any = None
    experiment_id: str = ""
    parent_id: str = ""
    run_ids: dict[str, str] = field(default_factory=dict)
    _sent: dict[str, set[tuple[str, int]]] = field(default_factory=dict)
    _described: set[str] = field(default_factory=set)
    _source: Mapping[str, str] = field(default_factory=lambda: source_tags())
    _written: bool = False
    """Whether mlflow.json is there."""
    _ended: dict[str, int] = field(default_factory=dict)
    """run_key → when it ended, of runs that MLflow has whole."""

    def open(self) -> None:
        """Connects, and finds or makes the experiment and the parent run. Safe to repeat."""
        if self.client is not None:
            return
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):  # after the import, which sets up its own logging
            logging.getLogger(name).setLevel(logging.ERROR)

        _make(self.target.uri)
        client = MlflowClient(tracking_uri=self.target.uri)
        experiment = client.get_experiment_by_name(self.study)
        self.experiment_id = (
            experiment.experiment_id
            if experiment is not None
            else client.create_experiment(self.study, artifact_location=self.target.artifacts)
        )
        tags = {STUDY_TAG: self.study, "scalespec.root": self.store.root}
        found = client.search_runs([self.experiment_id], f"tags.`{STUDY_TAG}` = '{self.study}'", max_results=1)
        if found:
            self.parent_id = found[0].info.run_id
        else:
            created = client.create_run(self.experiment_id, tags={**tags, **self._source}, run_name=self.study)
            self.parent_id = created.info.run_id
        for run in _all_children(client, self.experiment_id, self.parent_id):
            self.run_ids[run.data.tags[KEY_TAG]] = run.info.run_id
            if run.info.status == "FINISHED":  # the last thing that is said of a run
                self._ended[run.data.tags[KEY_TAG]] = run.info.end_time
        self.client = client

    def record(self, specs: Sequence[RunSpec], told: Mapping[str, Told] = MappingProxyType({})) -> None:
        """Sends what the disk has of these runs and MLflow has not; `told`: of which runs what that is, so that nobody looks."""
        self.open()
        known = len(self.run_ids)
        for spec in specs:
            self._record_run(spec, told[spec.run_key] if spec.run_key in told else self._look(spec.run_key))
        if len(self.run_ids) != known or not self._written:
            ids = {"uri": self.target.uri, "parent": self.parent_id, "runs": self.run_ids}
            self.store.write_json("mlflow.json", ids)
            self._written = True

    def _look(self, run_key: str) -> Told:
        """All that counts of a run; of one that MLflow has whole its result alone."""
        found = watch.finished(self.store.files, run_key)
        result = None if found is None else found[1]
        if result is not None and self._has(run_key, result):
            return Told(result=result)
        seen = watch.Watcher(self.store).history(run_key)
        claims = [f"runs/{run_key}/{attempt_folder(attempt)}/{CLAIM}" for attempt in seen.attempts]
        return Told(next(iter(claims), ""), seen.settled_parts, result)

    def _has(self, run_key: str, result: Mapping[str, Any]) -> bool:
        return self._ended.get(run_key) == _end_of(result)

    def _record_run(self, spec: RunSpec, told: Told) -> None:
        if told == Told() or (told.result is not None and self._has(spec.run_key, told.result)):
            return
        result, folder = told.result, self.store.run(spec.run_key)
        run_id = self._child(spec, told)
        rows = [(row["metric"], row["step"], row["value"], row["time_ms"]) for row in folder.read_parts(told.parts)]
        if result is not None:
            now = int(time.time() * 1000)
            final = {"final/val_loss": result.get("val_loss"), "final/val_loss_se": result.get("val_loss_se")}
            final |= {"final/val_accuracy": result.get("val_accuracy"), "N": result["params_matmul"]}
            final |= {"D": result["samples"], "C": result["flops_train"]}
            rows += [(name, result["steps"], float(value), now) for name, value in final.items() if value is not None]
        self._send(spec.run_key, rows)
        if result is not None:
            status = "FAILED" if result["status"] == "failed" else "FINISHED"
            self.client.set_tag(run_id, STATUS_TAG, result["status"])
            if result.get("error"):
                self.client.set_tag(run_id, ERROR_TAG, str(result["error"])[:5000])
            elif ERROR_TAG in self.client.get_run(run_id).data.tags:
                self.client.delete_tag(run_id, ERROR_TAG)  # it failed in an earlier session
            self.client.set_terminated(run_id, status, end_time=_end_of(result))
            if status == "FINISHED":
                self._ended[spec.run_key] = _end_of(result)

    def _child(self, spec: RunSpec, told: Told) -> str:
        new = spec.run_key not in self.run_ids
        if new:
            claim = self.store.read_json(told.claim) if told.claim else None
            started = int((claim["time"] if claim else time.time()) * 1000)
            tags = {PARENT: self.parent_id, KEY_TAG: spec.run_key, "family_key": spec.family_key, **self._source}
            tags |= {f"axis.{name}": str(value) for name, value in axes_of(spec).items()}
            run = self.client.create_run(self.experiment_id, start_time=started, tags=tags, run_name=spec.run_key)
            self.run_ids[spec.run_key], self._sent[spec.run_key] = run.info.run_id, set()
        if spec.run_key not in self._described:
            self._describe(spec, self.run_ids[spec.run_key], empty=new)
            self._described.add(spec.run_key)
        return self.run_ids[spec.run_key]

    def _describe(self, spec: RunSpec, run_id: str, *, empty: bool) -> None:
        """Sends parameters and data where a run has none: an attempt may have ended between making it and describing it."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        run = None if empty else self.client.get_run(run_id)
        if run is None or not run.data.params:
            self.client.log_batch(run_id, params=[Param(key, str(value)) for key, value in params_of(spec).items()])
        if run is None or not run.inputs.dataset_inputs:
            source = spec.data.path or spec.data.source
            data = Dataset(name=spec.data.source, digest=spec.data_identity[:36], source_type="local", source=source)
            context = InputTag("mlflow.data.context", f"train {spec.data_fraction}")
            self.client.log_inputs(run_id, [DatasetInput(data, [context])])

    def _send(self, run_key: str, rows: Sequence[tuple[str, int, float, int]]) -> None:
        from mlflow.entities import Metric

        run_id, sent = self.run_ids[run_key], self._known(run_key)
        new = {
            (name, step): Metric(name, value, at, step)
            for name, step, value, at in rows
            if (name, step) not in sent and math.isfinite(value)  # MLflow stores NaN as 0 and infinity as 1.8e308
        }
        for batch in _batches(list(new.items())):
            self.client.log_batch(run_id, metrics=[metric for _, metric in batch])
            sent.update(key for key, _ in batch)

    def _known(self, run_key: str) -> set[tuple[str, int]]:
        """The points that MLflow has of a run, asked for once: metrics cannot be deleted, so none is sent twice."""
        if run_key not in self._sent:
            run_id = self.run_ids[run_key]
            names = self.client.get_run(run_id).data.metrics
            self._sent[run_key] = {
                (name, metric.step) for name in names for metric in self.client.get_metric_history(run_id, name)
            }
        return self._sent[run_key]

    def record_spectra(self, summary: Sequence[Mapping[str, Any]]) -> None:
        """Sends the summary of each checkpoint's spectra, at its step, to the run it belongs to."""
        self.open()
        now = int(time.time() * 1000)
        by_run: dict[str, list[tuple[str, int, float, int]]] = {}
        for row in summary:
            values = ((name, row.get(name)) for name in SUMMARY_METRICS)
            points = [(f"spectra/{name}", row["step"], float(v), now) for name, v in values if v is not None]
            by_run.setdefault(row["run_key"], []).extend(points)
        for run_key, points in by_run.items():
            if run_key in self.run_ids:
                self._send(run_key, points)

    def record_study(self, laws: Sequence[Mapping[str, Any]], *, status: str) -> None:
        """Sends the study's laws and files to the parent run and ends it."""
        self.open()
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        found = {
            metric_name(f"law/{law['id']}/{name}"): float(param["value"])
            for law in laws
            for name, param in law.get("params", {}).items()
            if param["value"] is not None and math.isfinite(param["value"])
        }
        shown = self.client.get_run(self.parent_id).data.metrics
        # a law that a grown grid has changed is a point of its own, one step after the one before
        steps = {name: len(self.client.get_metric_history(self.parent_id, name)) for name in found if name in shown}
        new = [Metric(n, value, now, steps.get(n, 0)) for n, value in found.items() if shown.get(n) != value]
        for batch in _batches(new):
            self.client.log_batch(self.parent_id, metrics=batch)
        path = self.store.local_path
        if path is not None:
            for name in ("study.yaml", "plan.json", "laws.json"):
                if Path(path, name).exists():
                    self.client.log_artifact(self.parent_id, str(Path(path, name)))
            for name in ("report", "tables"):
                if Path(path, name).is_dir():
                    self.client.log_artifacts(self.parent_id, str(Path(path, name)), name)
        self.client.set_terminated(self.parent_id, status)


def _make(uri: str) -> None:
    """A new SQLite store is made beside its place: MLflow can never go on with one whose making was cut short."""
    from mlflow import MlflowClient

    path = Path(uri.removeprefix(SQLITE))
    if not uri.startswith(SQLITE) or path.exists():
        return
    for left in path.parent.glob(f"{path.name}.*.new*"):
        left.unlink(missing_ok=True)
    new = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.new")  # the client remembers stores by their names
    MlflowClient(tracking_uri=f"{SQLITE}{new}").search_experiments(max_results=1)
    os.replace(new, path)


def _end_of(result: Mapping[str, Any]) -> int:
    """When a run ended [ms since epoch]."""
    return int((result["started_at"] + result["duration_s"]) * 1000)


def _all_children(client: Any, experiment_id: str, parent_id: str) -> Iterator[Any]:
    token = None
    while True:
        page = client.search_runs(
            [experiment_id], f"tags.`{PARENT}` = '{parent_id}'", max_results=1000, page_token=token
        )
        yield from (run for run in page if KEY_TAG in run.data.tags)
        token = page.token
        if not token:
            return


def _batches(items: list[Any]) -> Iterator[list[Any]]:
    for first in range(0, len(items), BATCH):
        yield items[first : first + BATCH]


def metric_name(text: str) -> str:
    """`text` with the characters that MLflow refuses in the name of a metric replaced."""
    return re.sub(r"[^/\w.\- :]", "_", text.replace("=", ":").replace(",", " "))


def axes_of(spec: RunSpec) -> dict[str, Any]:
    """The values of all of a run's axes."""
    return {"width": spec.width, "data_fraction": str(spec.data_fraction), "seed": spec.seed, **dict(spec.axes)}


def params_of(spec: RunSpec) -> dict[str, Any]:
    """What MLflow shows as parameters: the resolved configuration."""
    scaled = scaled_optim(spec.optim)
    out: dict[str, Any] = {"task": spec.task, **axes_of(spec), **dict(spec.options), "family_key": spec.family_key}
    out |= {"lr": scaled.lr, "lr_base": spec.optim.lr, "betas": scaled.betas, "eps": scaled.eps}
    for name in SECTIONS:
        out |= _told(name, getattr(spec, name))
    return out | {"data_identity": spec.data_identity}


def _told(name: str, config: Any) -> dict[str, Any]:
    """The keys of a section that can change a run's numbers, dotted."""
    out: dict[str, Any] = {}
    for key in keys_of(type(config)).values():
        value = getattr(config, key.name)
        if key.is_section:
            out |= _told(f"{name}.{key.name}", value)
        elif key.hashed or key.axis:
            out[f"{name}.{key.name}"] = value
    return out


def source_tags() -> dict[str, str]:
    """What MLflow shows as the source of a run; a client-created run has none of its own accord."""
    tags = {"mlflow.source.name": "scalespec", "mlflow.source.type": "LOCAL"}
    with contextlib.suppress(Exception):
        tags["mlflow.user"] = getpass.getuser()
    commit = os.environ.get("SCALESPEC_GIT_COMMIT") or git_commit()
    return tags | ({"mlflow.source.git.commit": commit} if commit else {})
