"""A linear mixed model with crossed random effects, by restricted maximum likelihood.

Participants and units are crossed, and a trial belongs to several units at once. statsmodels' MixedLM fits the same
model (a test compares both), but takes over a second for a study where this takes a few hundredths, and a simulation
fits hundreds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular
from scipy.optimize import minimize

RATIOS = (-12.0, 6.0)  # logarithms of variance ratios that are searched; the lower end stands for no variance


@dataclass(frozen=True)
class Fit:
    """estimate and covariance of the fixed effects; variances of the random effects, and of the rest."""

    estimate: np.ndarray
    covariance: np.ndarray
    variances: np.ndarray
    residual: float
    log_likelihood: float


def fit(y: np.ndarray, x: np.ndarray, z: Sequence[np.ndarray]) -> Fit:
    """y = x b + sum_i z_i u_i + e with independent u_i ~ N(0, g_i s) and e ~ N(0, s): REML over the ratios g.

    y (n,), x (n, p), each z_i (n, q_i). With Z = [z_i], G = diag(g) and A = I + G^(1/2) Z'Z G^(1/2), all that the
    likelihood needs of V = I + Z G Z' is log|V| = log|A| and W'V^-1 W = W'W - W'Z G^(1/2) A^-1 G^(1/2) Z'W for
    W = [x, y], so that one step costs (sum q_i)^3 and not n^3.
    """
    n, p = x.shape
    every, w = np.hstack(z), np.column_stack([x, y])
    owner = np.repeat(np.arange(len(z)), [part.shape[1] for part in z])
    zz, zw, ww = every.T @ every, every.T @ w, w.T @ w

    def reduced(logs: np.ndarray) -> tuple[float, np.ndarray]:
        root = np.exp(logs / 2)[owner]
        lower = np.linalg.cholesky(np.eye(len(root)) + root[:, None] * zz * root)
        half = solve_triangular(lower, root[:, None] * zw, lower=True)
        return 2 * np.log(np.diag(lower)).sum(), ww - half.T @ half

    def deviance(logs: np.ndarray) -> float:
        size, m = reduced(logs)
        rest = m[p, p] - m[:p, p] @ np.linalg.solve(m[:p, :p], m[:p, p])
        rest = max(rest, 1e-12 * n)  # answers that do not vary at all leave nothing
        return float(size + np.linalg.slogdet(m[:p, :p])[1] + (n - p) * np.log(rest / (n - p)))

    start = np.full(len(z), -3.0)
    found = minimize(deviance, start, method="L-BFGS-B", bounds=[RATIOS] * len(z))
    _, m = reduced(found.x)
    inverse = np.linalg.inv(m[:p, :p])
    estimate = inverse @ m[:p, p]
    residual = float((m[p, p] - m[:p, p] @ estimate) / (n - p))
    likelihood = -0.5 * (deviance(found.x) + (n - p) * (1 + np.log(2 * np.pi)))
    variances = np.where(found.x <= RATIOS[0] + 1e-6, 0.0, np.exp(found.x)) * residual
    return Fit(estimate, inverse * residual, variances, residual, likelihood)
