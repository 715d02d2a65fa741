"""Tables, laws and report again, from what is on disk."""

from __future__ import annotations

import pytest
from trained import trained

from scalespec.analysis import load
from scalespec.orchestrator.conclude import analyze_study
from scalespec.trainables.files import LocalFiles


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("concluded") / "toy"
    trained(root, grid={"width": [8, 12, 16], "seed": [0, 1]}, report=False)
    return root


def test_a_law_on_disk_has_the_draws_it_was_fitted_with(study):
    outcome = analyze_study(str(study))
    results = load(study)
    assert [law.id for law in outcome.laws] == list(dict.fromkeys(results.laws["id"]))
    drawn = [law for law in outcome.laws if law.evidence is not None and law.evidence.draws]
    assert drawn
    for law in drawn:
        back = results.law(law.id)
        assert back.params == law.params
        for name, values in law.evidence.draws.items():
            assert (back.evidence.draws[name] == values).all(), (law.id, name)


def test_laws_are_written_last_and_a_cut_before_them_is_noticed(study, monkeypatch):
    """Killed between the two files, the draws are new and the laws old: they are not mixed, and analyzing again mends it."""
    analyze_study(str(study))
    victim = next((study / "runs").glob("*/*/result.json"))
    written: list[str] = []
    write = LocalFiles.write

    def cut(self, path, data):
        if path == "laws.json":
            raise KeyboardInterrupt
        written.append(path)
        write(self, path, data)

    result = victim.read_text()
    victim.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(LocalFiles, "write", cut)
        with pytest.raises(KeyboardInterrupt):
            analyze_study(str(study))
    assert written[-1] == "laws.parquet"
    with pytest.warns(UserWarning, match="does not belong to"):
        assert load(study).law("chinchilla").evidence is None
    victim.write_text(result)
    analyze_study(str(study))
    assert load(study).law("chinchilla").evidence.draws
