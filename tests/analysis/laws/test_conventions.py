import numpy as np
import pytest
from surfaces import grid_runs, read

from scalespec.analysis.laws import fit_chinchilla, sensitivity
from scalespec.analysis.laws.conventions import Shape, size_exponent

TABLE_A4 = [(640, 2560, 64, 10, 10), (1024, 4096, 64, 16, 20), (1280, 5120, 128, 10, 24),
            (1792, 7168, 128, 14, 26), (2048, 8192, 128, 16, 28), (3584, 14336, 128, 28, 40)]  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "ratio"), list(zip(TABLE_A4, [1.025036, 1.100817, 1.082919, 1.044094, 1.032902, 0.994114], strict=True))
)
def test_chinchillas_flops_over_6nd(shape, ratio):
    model = Shape(*shape)
    assert model.flops_per_sequence() / (6 * model.params() * 2048) == pytest.approx(ratio, abs=1e-6)


def test_the_fifty_shapes_have_their_published_sizes(shared):
    table = read(shared, "chinchilla_table_a9.csv")
    assert len(table) == 50
    for row in table.itertuples():
        model = Shape(row.d_model, row.ffw_size, row.kv_size, row.n_heads, row.n_layers)
        assert model.params() == pytest.approx(row.params, rel=0.012)
        assert 0.95 < model.flops_per_sequence() / (6 * row.params * 2048) < 1.15


def test_every_convention_is_fitted_and_the_exponent_depends_on_it():
    table = sensitivity(grid_runs(noise=0.003), resamples=60)
    assert len(table) == 12
    assert set(table["N"]) == {"all parameters", "embedding excluded", "matrices and head"}
    assert table["n_opt_exponent"].between(0.3, 0.8).all()
    assert (table["lo"] < table["n_opt_exponent"]).all()
    assert (table["n_opt_exponent"] < table["hi"]).all()


def test_bookkeeping_alone_moves_the_exponent():
    """Counting only part of the parameters, a part that grows as N^1.3, divides the exponent by 1.3."""
    runs = grid_runs(noise=0)
    n, d, loss = (runs[name].to_numpy(float) for name in ("params_matmul", "samples", "val_loss"))
    plain, partial = (fit_chinchilla(x, d, loss, resamples=0) for x in (n, n**1.3))
    c = 6 * n * d
    assert size_exponent(partial, n**1.3, d, c).value == pytest.approx(
        1.3 * size_exponent(plain, n, d, c).value, rel=1e-5
    )


def test_a_missing_convention_is_left_out():
    runs = grid_runs().drop(columns=["flops_causal", "params_embedding"])
    table = sensitivity(runs, resamples=0)
    assert set(table["N"]) == {"all parameters", "matrices and head"}
    assert set(table["C"]) == {"6ND", "counted, without attention", "counted, with attention"}


def test_the_law_does_not_depend_on_the_order_of_runs():
    runs = grid_runs()
    shuffled = runs.sample(frac=1, random_state=0)
    a, b = (sensitivity(r, resamples=0)["n_opt_exponent"].to_numpy() for r in (runs, shuffled))
    np.testing.assert_allclose(a, b, rtol=1e-6)
