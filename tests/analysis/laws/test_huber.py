import numpy as np
import pytest
from scipy.optimize import minimize
from surfaces import EPOCH

from scalespec.analysis.laws import chinchilla
from scalespec.analysis.laws.huber import huber, minimise
from scalespec.analysis.laws.kaplan import _Joint
from scalespec.analysis.laws.models import InLoss, SumOfPowers

RNG = np.random.default_rng(1)
N, D = 10 ** RNG.uniform(7, 10, 40), 10 ** RNG.uniform(9, 11.5, 40)
LOSS = (EPOCH["E"] + EPOCH["A"] * N ** -EPOCH["alpha"] + EPOCH["B"] * D ** -EPOCH["beta"]) * np.exp(
    0.01 * RNG.standard_normal(40)
)
PROBLEM = chinchilla.problem({"n": N, "d": D}, LOSS)
JOINT = _Joint(np.log(N) - np.log(N).mean(), np.log(D) - np.log(D).mean())


def models():
    theta = np.array([[-0.5, -0.8, 0.6, 0.35, 0.4], [0.3, -2.0, 0.1, 0.1, 0.9]])
    yield PROBLEM.model, theta
    yield SumOfPowers(PROBLEM.model.powers), np.delete(theta, 2, axis=1)
    yield JOINT, np.array([[1.0, 0.5, 0.7, 0.1], [8.0, 9.0, 0.4, 0.2]])


@pytest.mark.parametrize(("model", "theta"), [*models(), (InLoss(PROBLEM.model), next(models())[1])])
def test_gradient_agrees_with_finite_differences(model, theta):
    value, jacobian, _ = model.derivatives(theta)
    np.testing.assert_allclose(value, model.log_loss(theta), rtol=1e-13)
    for j in range(theta.shape[1]):
        away = np.zeros(theta.shape[1])
        away[j] = 1e-6
        numeric = (model.log_loss(theta + away) - model.log_loss(theta - away)) / 2e-6
        np.testing.assert_allclose(jacobian[:, j], numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("model", "theta"), list(models()))
def test_curvature_agrees_with_differences_of_the_gradient(model, theta):
    _, jacobian, parts = model.derivatives(theta)
    v = np.random.default_rng(0).standard_normal((len(theta), jacobian.shape[2]))
    exact = model.curvature(parts, jacobian, v)
    for j in range(theta.shape[1]):
        away = np.zeros(theta.shape[1])
        away[j] = 1e-5
        up, down = model.derivatives(theta + away)[1], model.derivatives(theta - away)[1]
        numeric = np.einsum("bn,bpn->bp", v, up - down) / 2e-5
        np.testing.assert_allclose(exact[:, j], numeric, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("delta", [1e-3, 1e-2, 10.0])
def test_no_general_optimizer_finds_a_lower_objective(delta):
    found = minimise(PROBLEM.model, np.log(LOSS), np.ones((1, 40)), PROBLEM.starts, delta, PROBLEM.lower, PROBLEM.upper)
    best = found.theta[found.objective.argmin()]

    def objective(theta):
        return huber(PROBLEM.model.log_loss(theta[None])[0] - np.log(LOSS), delta).sum()

    assert found.converged.all()
    assert objective(best) == pytest.approx(found.objective.min(), rel=1e-12)
    for jump in np.random.default_rng(2).standard_normal((6, 5)) * 0.05:
        other = minimize(
            objective, best + jump, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-16, "maxiter": 4000}
        )
        assert found.objective.min() <= other.fun * (1 + 1e-9)


def test_rows_do_not_see_each_other():
    weights = np.random.default_rng(3).multinomial(40, np.full(40, 1 / 40), size=5).astype(float)
    starts = PROBLEM.starts[:5]
    together = minimise(PROBLEM.model, np.log(LOSS), weights, starts, 1e-2, PROBLEM.lower, PROBLEM.upper)
    for row in range(5):
        alone = minimise(PROBLEM.model, np.log(LOSS), weights[[row]], starts[[row]], 1e-2, PROBLEM.lower, PROBLEM.upper)
        assert alone.objective[0] == pytest.approx(together.objective[row], rel=1e-9)


def test_a_weight_of_two_is_a_point_given_twice():
    weights = np.ones((1, 40))
    weights[0, 7] = 2
    twice = np.append(np.arange(40), 7)
    heavy = minimise(PROBLEM.model, np.log(LOSS), weights, PROBLEM.starts, 1e-2, PROBLEM.lower, PROBLEM.upper)
    again = chinchilla.problem({"n": N[twice], "d": D[twice]}, LOSS[twice])
    doubled = minimise(again.model, np.log(LOSS[twice]), np.ones((1, 41)), again.starts, 1e-2, again.lower, again.upper)
    assert heavy.objective.min() == pytest.approx(doubled.objective.min(), rel=1e-10)


def test_the_solution_stays_within_its_bounds_and_is_the_best_there():
    upper = PROBLEM.upper.copy()
    upper[3] = 0.2
    bound = minimise(PROBLEM.model, np.log(LOSS), np.ones((1, 40)), PROBLEM.starts, 1e-2, PROBLEM.lower, upper)
    best = bound.theta[bound.objective.argmin()]
    assert (best <= upper).all()
    assert best[3] == pytest.approx(0.2)
    lower = PROBLEM.lower.copy()
    lower[3], upper[3] = 0.2 - 1e-12, 0.2
    pinned = minimise(PROBLEM.model, np.log(LOSS), np.ones((1, 40)), PROBLEM.starts, 1e-2, lower, upper)
    assert bound.objective.min() == pytest.approx(pinned.objective.min(), rel=1e-6)


def test_huber_is_quadratic_inside_and_linear_outside():
    np.testing.assert_allclose(huber(np.array([0.5, -1.0, 3.0]), 1.0), [0.125, 0.5, 2.5])
