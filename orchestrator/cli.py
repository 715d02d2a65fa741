"""The command line: `scalespec VERB`, the same as `python -m orchestrator VERB`. Thin: each verb calls one function."""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
from typing import Annotated, Any

import typer

from scalespec.orchestrator.errors import InputError
from scalespec.orchestrator.terminal.command import command
from scalespec.orchestrator.terminal.progress import console, say, say_aside

app = typer.Typer(
    name="scalespec",
    help="Plan, run and read neural scaling-law studies.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        import scalespec

        print(f"scalespec {scalespec.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="print the version", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Plan, run and read neural scaling-law studies."""


StudyFile = Annotated[str, typer.Argument(help="the study's YAML file", metavar="STUDY")]
StudyFolder = Annotated[str, typer.Argument(help="the study folder, STORAGE/STUDY", metavar="STUDY_DIR")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="override a key, such as grid.seed=[0]", metavar="K=V")
]
Storage = Annotated[str | None, typer.Option("--storage", help="folder or URI that every node sees", metavar="DIR")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON instead of tables")]


@app.command()
def plan(study: StudyFile, set_: Overrides = None, storage: Storage = None, json_: AsJson = False) -> None:
    """Show every run with its size, steps, time, disk and cost, from a short probe on this machine; writes nothing."""
    from scalespec.orchestrator.planning import plan_study
    from scalespec.orchestrator.study import own_task
    from scalespec.orchestrator.study.file import load_study
    from scalespec.orchestrator.terminal import views

    loaded = load_study(study, set_ or ())
    _, named = own_task.admit(study, loaded.task["name"])
    if named:
        say_aside(named)
    found = plan_study(loaded, storage)
    if json_:
        print(json.dumps({**found.plan.to_json(), "finished": found.finished}, indent=1))
        return
    views.plan(found.plan, len(found.finished), found.free_bytes)


@app.command()
def run(
    study: StudyFile,
    storage: Storage = None,
    set_: Overrides = None,
    address: Annotated[
        str | None, typer.Option(help="Ray: auto or HOST:PORT; default: a private local instance")
    ] = None,
) -> None:
    """Run the whole study to its report. Run again, it does only what is missing."""
    from scalespec.orchestrator.engine import cluster
    from scalespec.orchestrator.study import own_task
    from scalespec.orchestrator.study.file import load_study

    loaded = load_study(study, set_ or ())  # what is wrong with the file is said before anything starts
    paths, named = own_task.admit(study, loaded.task["name"])
    if named:
        say_aside(named)
    threading.Thread(target=_import_the_rest, daemon=True).start()
    options = [word for item in set_ or () for word in ("--set", item)] + (["--storage", storage] if storage else [])
    again = command("run", study, *options, *(["--address", address] if address else []))
    try:
        with cluster.connected(address, paths):
            from scalespec.orchestrator.run import run_study

            outcome = run_study(study, storage=storage, overrides=set_ or (), address=address)
    except KeyboardInterrupt:
        say(f"interrupted; what is finished is kept. Continue with: {again}")
        raise typer.Exit(130) from None
    from scalespec.orchestrator.terminal import views

    views.outcome(outcome, again)
    raise typer.Exit(outcome.exit_code)


def _import_the_rest() -> None:
    """What a study needs beside Ray: importing it takes as long as starting Ray's processes, so both go on at once."""
    importlib.import_module("scalespec.orchestrator.run")


@app.command()
def status(study_dir: StudyFolder, json_: AsJson = False) -> None:
    """Which runs are done, running, diverged, failed or missing, read from disk."""
    from scalespec.orchestrator import conclude
    from scalespec.orchestrator.design import log
    from scalespec.orchestrator.store import run_tables
    from scalespec.orchestrator.terminal import views

    _, store = conclude.open_study(study_dir)
    found = run_tables.status_of(store, log.specs(log.read(store)))
    if json_:
        print(json.dumps(found, indent=1))
    else:
        views.status(found)


@app.command()
def spectra(
    paths: Annotated[list[str], typer.Argument(help="checkpoints: files, folders, run folders", metavar="PATH…")],
    out: Annotated[str | None, typer.Option(help="write the rows to .parquet or .csv", metavar="F")] = None,
    profile: Annotated[str, typer.Option(help="ww-0.7.7 or native")] = "ww-0.7.7",
    plots: Annotated[str | None, typer.Option(help="draw pictures into a folder", metavar="DIR")] = None,
    json_: AsJson = False,
) -> None:
    """Spectral metrics of any checkpoints, many at once."""
    # before numpy is imported, and for the processes below: layers side by side are faster than threads within one
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from scalespec.orchestrator.spectra import standalone
    from scalespec.orchestrator.terminal import views

    if out is not None:
        standalone.check_out(out)
    rows = standalone.analyse_paths(paths, profile)
    if out is not None:
        standalone.write(rows, out)
    if plots is not None:
        standalone.draw(rows, plots)
    if json_:
        print(json.dumps(standalone.plain(rows), indent=1))
    else:
        views.spectra(rows)


@app.command()
def fit(
    table: Annotated[str, typer.Argument(help="CSV, Parquet, or mlflow:EXPERIMENT", metavar="TABLE")],
    loss: Annotated[str, typer.Option(help="column of the loss", metavar="COL")],
    n: Annotated[str | None, typer.Option("--n", help="column of the parameters", metavar="COL")] = None,
    d: Annotated[str | None, typer.Option("--d", help="column of the samples", metavar="COL")] = None,
    c: Annotated[str | None, typer.Option("--c", help="column of the FLOPs", metavar="COL")] = None,
    unique: Annotated[str | None, typer.Option(help="column of the distinct samples", metavar="COL")] = None,
    family: Annotated[
        str | None,
        typer.Option(help="column: runs with one value share noise and are resampled together", metavar="COL"),
    ] = None,
    form: Annotated[
        str, typer.Option(help="the law's form: chinchilla, power, isoflop …; any other word lists all", metavar="FORM")
    ] = "chinchilla",
    delta: Annotated[float | None, typer.Option(help="Huber threshold on log loss; default: measured or 1e-3")] = None,
    drop_highest: Annotated[int, typer.Option(help="leave out the K highest losses", metavar="K", min=0)] = 0,
    where: Annotated[str | None, typer.Option(help="keep rows where this holds", metavar="EXPR")] = None,
    unit: Annotated[str | None, typer.Option(help="of the loss: nats, bits or bpb", metavar="UNIT")] = None,
    out: Annotated[
        str | None, typer.Option(help="write the list of laws as JSON, as in laws.json", metavar="F")
    ] = None,
    plot: Annotated[str | None, typer.Option(help="draw it as .svg, .png or .pdf", metavar="F")] = None,
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow server of mlflow:EXPERIMENT; default: MLFLOW_TRACKING_URI", metavar="U")
    ] = None,
    json_: AsJson = False,
) -> None:
    """A fit of anyone's table, with intervals and a verdict."""
    from scalespec.orchestrator.fit import user_tables, verb
    from scalespec.orchestrator.terminal import views

    verb.check_request(unit, plot)
    verb.form_of(form)
    columns = verb.Columns(loss, n, d, c, unique, family)
    frame, left_out = user_tables.read_table(table, tracking_uri), 0
    if table.startswith(user_tables.MLFLOW):
        frame, left_out = user_tables.with_values(frame, columns.named().values())
    data, said = verb.points(user_tables.select(frame, where), columns, drop_highest, form)
    law = verb.certify(data, form=form, delta=delta)
    if out is not None:
        verb.write([law], out)
    if plot is not None:
        verb.draw(law, data, columns, plot, unit)
    if json_:
        print(verb.listing([law]))
    else:
        notes = [said, f"{left_out} runs without these columns" if left_out else "", verb.in_nats(law, unit)]
        views.law(law, "; ".join(filter(None, notes)))


@app.command()
def analyze(study_dir: StudyFolder) -> None:
    """Tables, laws and report again, from what is on disk."""
    from scalespec.orchestrator.conclude import analyze_study
    from scalespec.orchestrator.terminal import views

    outcome = analyze_study(study_dir)
    views.outcome(outcome, command("run", f"{study_dir}/study.yaml"), tracking=False)
    raise typer.Exit(outcome.exit_code)


@app.command()
def sync(
    study_dir: StudyFolder,
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow server; default: the study's own", metavar="U")
    ] = None,
) -> None:
    """Bring MLflow into line with the disk. Safe to repeat."""
    from scalespec.orchestrator.conclude import sync_study

    count, uri = sync_study(study_dir, tracking_uri)
    say(f"{count} runs are in MLflow at {uri}")


@app.command()
def ui(
    study_dir: StudyFolder,
    port: Annotated[int, typer.Option(help="port on the loopback interface")] = 5000,
) -> None:
    """Open the MLflow UI on this study's store, on loopback."""
    from scalespec.orchestrator.conclude import open_study
    from scalespec.orchestrator.tracking.mlflow import target_of

    loaded, store = open_study(study_dir)
    target = target_of(store, loaded.tracking.uri)
    if target is None:
        raise InputError(
            f"{study_dir} has no MLflow store of its own; sync it to a server with --tracking-uri and open that"
        )
    if not target.uri.startswith("sqlite:"):
        say(f"this study is tracked at {target.uri}; open it in a browser")
        return
    say(f"MLflow UI of {loaded.name}: http://127.0.0.1:{port}  (stop with Ctrl-C)")
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", target.uri, "--host", "127.0.0.1"]
    os.execv(sys.executable, [*command, "--port", str(port), "--workers", "1"])


@app.command()
def schema() -> None:
    """The JSON Schema of the study file, for editors."""
    from scalespec.orchestrator.study.schema import json_schema

    print(json.dumps(json_schema(), indent=1, ensure_ascii=False))


@app.command()
def doctor(study: Annotated[str | None, typer.Argument(help="a study to check for", metavar="[STUDY]")] = None) -> None:
    """Versions, storage, tracking, GPUs and free disk of this node; each failure with its remedy."""
    from scalespec.orchestrator.doctor import examine
    from scalespec.orchestrator.terminal import views

    findings = examine(study)
    views.findings(findings)
    raise typer.Exit(1 if any(not finding.ok for finding in findings) else 0)


def main(arguments: list[str] | None = None) -> Any:
    """Entry point: bad input is one line on standard error and exit code 2."""
    try:
        app(arguments, standalone_mode=True)
    except InputError as error:
        console.file.flush()
        print(f"scalespec: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
