"""References: Adam and its line."""

from typing import Any

import numpy as np
from numpy import arctan2, exp, log, maximum, sqrt

from tests.equations.references.loop import Steps, Yields, norm


def adam(
    steps: Steps, learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8, eps_root: Any = 0.0,
    amsgrad: bool = False, weight_decay: Any = 0.0,
) -> Yields:  # fmt: skip
    """Kingma, Ba 2015, algorithm 1; Reddi, Kale, Kumar 2018, algorithm 2, whose v_hat is then corrected like v;
    Loshchilov, Hutter 2019, algorithm 2, with eta_t folded into the rate.
    """
    m, v, v_hat = 0, 0, 0
    for t, x, g in steps:
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * abs(g) ** 2
        v_hat = maximum(v_hat, v)
        corrected = (v_hat if amsgrad else v) / (1 - b2**t)
        u = m / (1 - b1**t) / (sqrt(corrected + eps_root) + eps)
        yield -learning_rate * (u + weight_decay * x), {"mu": m, "nu": v, "nu_max": v_hat}


def adamw(steps: Steps, learning_rate: Any, weight_decay: Any = 1e-2, **others: Any) -> Yields:
    """Loshchilov, Hutter 2019: Adam with the decay beside the gradient term."""
    return adam(steps, learning_rate, weight_decay=weight_decay, **others)


def adamax(
    steps: Steps, learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 0.0, weight_decay: Any = 0.0
) -> Yields:
    """Kingma, Ba 2015, algorithm 2; the paper's eps is 0."""
    m, u = 0, 0
    for t, x, g in steps:
        m = b1 * m + (1 - b1) * g
        u = maximum(b2 * u, abs(g))
        yield -learning_rate * (m / ((1 - b1**t) * (u + eps)) + weight_decay * x), {"mu": m, "nu": u}


def nadam(
    steps: Steps, learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8, eps_root: Any = 0.0,
    momentum_decay: Any = 4e-3, weight_decay: Any = 0.0,
) -> Yields:  # fmt: skip
    """Dozat 2015 (project report): g' and m' have their own corrections by products of the momenta mu_1 ... mu_t+1."""
    mu = lambda i: b1 if momentum_decay is None else b1 * (1 - 0.5 * 0.96 ** (i * momentum_decay))
    m, n = 0, 0
    for t, x, g in steps:
        m = b1 * m + (1 - b1) * g
        n = b2 * n + (1 - b2) * abs(g) ** 2
        g_prime = g / (1 - np.prod([mu(i) for i in range(1, t + 1)]))
        m_prime = m / (1 - np.prod([mu(i) for i in range(1, t + 2)]))
        m_bar = (1 - mu(t)) * g_prime + mu(t + 1) * m_prime
        u = m_bar / (sqrt(n / (1 - b2**t) + eps_root) + eps)
        yield -learning_rate * (u + weight_decay * x), {"mu": m, "nu": n}


def adabound(
    steps: Steps, learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8, eps_root: Any = 0.0,
    final_learning_rate: Any = 0.1, gamma: Any = 1e-3, amsbound: bool = False, weight_decay: Any = 0.0,
) -> Yields:  # fmt: skip
    """Luo et al. 2019, algorithms 2 and 3, as in the authors' code: bias corrected, without the factor 1 / sqrt(t)."""
    m, v, v_max = 0, 0, 0
    for t, x, g in steps:
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * abs(g) ** 2
        v_max = maximum(v_max, v)
        root = sqrt((v_max if amsbound else v) + eps_root) + eps
        eta = learning_rate * sqrt(1 - b2**t) / (1 - b1**t) / root
        lower = final_learning_rate * (1 - 1 / (gamma * t + 1))
        upper = final_learning_rate * (1 + 1 / (gamma * t))
        update = -np.clip(eta, lower, upper) * m - learning_rate * weight_decay * x
        yield update, {"mu": m, "nu": v, "nu_max": v_max}


def radam(
    steps: Steps, learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8, eps_root: Any = 0.0,
    rho_threshold: Any = 4, degenerated_to_sgd: bool = True, weight_decay: Any = 0.0,
) -> Yields:  # fmt: skip
    """Liu et al. 2019, algorithm 2, with l_t = 1 / (sqrt(v_hat) + eps). rho_t is (section 4.2) the length of the simple
    average whose centre is as old as that of v: its closed form cancels at b2 near 1, where 1e-12 is asked.
    """
    m, v, rho_inf = 0, 0, 2 / (1 - b2) - 1
    for t, x, g in steps:
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * abs(g) ** 2
        ages = np.arange(1, t + 1)
        rho = 2 * np.average(ages, weights=b2 ** (ages - 1)) - 1
        u = m / (1 - b1**t)
        if rho > rho_threshold:
            r = sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
            u = u * r / (sqrt(v / (1 - b2**t) + eps_root) + eps)
        elif not degenerated_to_sgd:
            u = 0 * u
        yield -learning_rate * (u + weight_decay * x), {"mu": m, "nu": v}


def yogi(
    steps: Steps, learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-3, eps_root: Any = 0.0,
    initial_accumulator: Any = 1e-6, bias_correction: bool = False, weight_decay: Any = 0.0,
) -> Yields:  # fmt: skip
    """Zaheer et al. 2018, algorithm 2; with the correction of the code in TensorFlow Addons, as in Adam."""
    m, v = 0, initial_accumulator
    for t, x, g in steps:
        m = b1 * m + (1 - b1) * g
        v = v - (1 - b2) * np.sign(v - abs(g) ** 2) * abs(g) ** 2
        m_hat, v_hat = (m / (1 - b1**t), v / (1 - b2**t)) if bias_correction else (m, v)
        u = m_hat / (sqrt(v_hat + eps_root) + eps)
        yield -learning_rate * (u + weight_decay * x), {"mu": m, "nu": v}


def adabelief(
    steps: Steps, learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-16, eps_root: Any = 1e-13,
    weight_decay: Any = 0.0,
) -> Yields:  # fmt: skip
    """Zhuang et al. 2020, algorithm 2: s_t with an epsilon in every step, here eps_root (1 - b2), bias corrected.

    `nu` is s without its epsilons.
    """
    m, s, variance = 0, 0, 0
    for t, x, g in steps:
        m = b1 * m + (1 - b1) * g
        s = b2 * s + (1 - b2) * abs(g - m) ** 2 + eps_root * (1 - b2)
        variance = b2 * variance + (1 - b2) * abs(g - m) ** 2
        u = m / (1 - b1**t) / (sqrt(s / (1 - b2**t)) + eps)
        yield -learning_rate * (u + weight_decay * x), {"mu": m, "nu": variance}


def padam(
    steps: Steps, learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8, eps_root: Any = 0.0,
    partial: Any = 0.125, bias_correction: bool = False, weight_decay: Any = 0.0,
) -> Yields:  # fmt: skip
    """Chen et al. 2018, algorithm 1: v_hat^p, with the authors' eps at the root; corrected as AMSGrad above."""
    m, v, v_hat = 0, 0, 0
    for t, x, g in steps:
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * abs(g) ** 2
        v_hat = maximum(v_hat, v)
        of_m, of_v = (1 - b1**t, 1 - b2**t) if bias_correction else (1, 1)
        u = m / of_m / (sqrt(v_hat / of_v + eps_root) + eps) ** (2 * partial)
        yield -learning_rate * (u + weight_decay * x), {"mu": m, "nu": v, "nu_max": v_hat}


def qhadam(
    steps: Steps, learning_rate: Any, b1: Any = 0.995, b2: Any = 0.999, eps: Any = 1e-8, eps_root: Any = 0.0,
    nu1: Any = 0.7, nu2: Any = 1.0, weight_decay: Any = 0.0,
) -> Yields:  # fmt: skip
    """Ma, Yarats 2018, section 4: g' and s' are corrected averages, mixed with the newest gradient."""
    g_sum, s_sum = 0, 0
    for t, x, g in steps:
        g_sum = b1 * g_sum + (1 - b1) * g
        s_sum = b2 * s_sum + (1 - b2) * abs(g) ** 2
        g_prime, s_prime = g_sum / (1 - b1**t), s_sum / (1 - b2**t)
        root = sqrt((1 - nu2) * abs(g) ** 2 + nu2 * s_prime + eps_root)
        u = ((1 - nu1) * g + nu1 * g_prime) / (root + eps)
        yield -learning_rate * (u + weight_decay * x), {"mu": g_sum, "nu": s_sum}


def laprop(
    steps: Steps, learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-15, eps_root: Any = 0.0,
    weight_decay: Any = 0.0,
) -> Yields:  # fmt: skip
    """Ziyin, Wang, Ueda 2020, algorithm 1, with c_n and c_m the weights of both averages."""
    n, m, c_n, c_m = 0, 0, 0, 0
    for _, x, g in steps:
        c_n, c_m = b2 * c_n + (1 - b2), b1 * c_m + (1 - b1)
        n = b2 * n + (1 - b2) * abs(g) ** 2
        m = b1 * m + (1 - b1) * g / (sqrt(n / c_n + eps_root) + eps)
        yield -learning_rate * (m / c_m + weight_decay * x), {"mu": m, "nu": n}


def adamod(
    steps: Steps, learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8, eps_root: Any = 0.0,
    b3: Any = 0.999, weight_decay: Any = 0.0,
) -> Yields:  # fmt: skip
    """Ding et al. 2019, algorithm 1: eta_hat = min(eta, s), with s_0 = 0 not corrected."""
    m, v, s = 0, 0, 0
    for t, x, g in steps:
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * abs(g) ** 2
        eta = learning_rate / (sqrt(v / (1 - b2**t) + eps_root) + eps)
        s = b3 * s + (1 - b3) * eta
        update = -np.minimum(eta, s) * m / (1 - b1**t) - learning_rate * weight_decay * x
        yield update, {"mu": m, "nu": v, "rates": s}


def stable_adamw(
    steps: Steps, learning_rate: Any, b1: Any = 0.9, b2: Any = 0.99, eps: Any = 1e-6, clipping_threshold: Any = 1.0,
    weight_decay: Any = 0.2,
) -> Yields:  # fmt: skip
    """Wortsman et al. 2023, algorithm 2, v and u with debiased decay rates; the decay at the whole rate, as in code."""
    v, u = 0, 0
    for t, x, g in steps:
        hat_1, hat_2 = (b * (1 - b ** (t - 1)) / (1 - b**t) for b in (b1, b2))
        v = hat_1 * v + (1 - hat_1) * g
        u = hat_2 * u + (1 - hat_2) * abs(g) ** 2
        RMS = sqrt(np.mean(abs(g) ** 2 / maximum(u, eps**2)))
        eta = learning_rate / max(1, RMS / (clipping_threshold or np.inf))
        yield (
            -learning_rate * weight_decay * x - eta * v / (sqrt(u) + eps),
            {"mu": v * (1 - b1**t), "nu": u * (1 - b2**t)},
        )


def adam_atan2(
    steps: Steps, learning_rate: Any, b1: Any = 0.9, b2: Any = 0.99, amplitude: Any = 1.27, stretch: Any = 1.0,
    weight_decay: Any = 0.0,
) -> Yields:  # fmt: skip
    """Everett et al. 2024: a arctan2(m, b sqrt(v)) for the quotient; m / |m| is the sign, or a complex one's phase."""
    m, v = 0, 0
    for t, x, g in steps:
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * abs(g) ** 2
        angle = arctan2(abs(m) / (1 - b1**t), stretch * sqrt(v / (1 - b2**t)))
        yield -learning_rate * (amplitude * angle * m / abs(m) + weight_decay * x), {"mu": m, "nu": v}


def adan(
    steps: Steps, learning_rate: Any, b1: Any = 0.98, b2: Any = 0.92, b3: Any = 0.99, eps: Any = 1e-8,
    eps_root: Any = 0.0, weight_decay: Any = 0.0,
) -> Yields:  # fmt: skip
    """Xie et al. 2022, algorithm 1 with its beta = 1 - b, zero starts corrected as in the authors' code."""
    beta_1, beta_2, beta_3 = 1 - b1, 1 - b2, 1 - b3
    m, v, n, before = 0, 0, 0, None
    for k, x, g in steps:
        y = 0 * g if before is None else g - before
        m = (1 - beta_1) * m + beta_1 * g
        v = (1 - beta_2) * v + beta_2 * y
        n = (1 - beta_3) * n + beta_3 * abs(g + (1 - beta_2) * y) ** 2
        m_hat, v_hat, n_hat = m / (1 - b1**k), v / (1 - b2**k), n / (1 - b3**k)
        u = (m_hat + (1 - beta_2) * v_hat) / (sqrt(n_hat + eps_root) + eps)
        before = g
        yield -learning_rate * (u + weight_decay * x), {"mu": m, "change": v, "nu": n, "grad": before}


def adopt(
    steps: Steps, learning_rate: Any, b1: Any = 0.9, b2: Any = 0.9999, eps: Any = 1e-6, clip_power: Any = 0.25,
    weight_decay: Any = 0.0,
) -> Yields:  # fmt: skip
    """Taniguchi et al. 2024, algorithm 2 and its clipped form; the paper's t is ours less 1."""
    m, v = 0, None
    for t, x, g in ((step - 1, x, g) for step, x, g in steps):
        if v is None:
            v = abs(g) ** 2
            m = 0 * g
        else:
            u = g / maximum(sqrt(v), eps)
            c = np.inf if clip_power is None else t**clip_power
            m = b1 * m + (1 - b1) * np.where(abs(u) > c, c * u / abs(u), u)
            v = b2 * v + (1 - b2) * abs(g) ** 2
        yield -learning_rate * (m + weight_decay * x), {"mu": m, "nu": v}


def _f_beta(t: int, beta: Any, start: Any, T: Any) -> Any:
    """Pagliardini et al. 2024, the scheduler of beta_3."""
    if T is None or t >= T:
        return beta
    slow, fast, part = log(beta), log(start), t / T
    return min(exp(fast * slow / ((1 - part) * slow + part * fast)), beta)


def ademamix(
    steps: Steps, learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, b3: Any = 0.9999, alpha: Any = 5.0,
    eps: Any = 1e-8, eps_root: Any = 0.0, alpha_warmup: Any = None, b3_warmup: Any = None, weight_decay: Any = 0.0,
) -> Yields:  # fmt: skip
    """Pagliardini, Ablin, Grangier 2024, algorithm 1 with both schedulers."""
    m_1, m_2, nu = 0, 0, 0
    for t, x, g in steps:
        beta_3 = _f_beta(t, b3, b1, b3_warmup)
        alpha_t = min(t * alpha / alpha_warmup, alpha) if alpha_warmup else alpha
        m_1 = b1 * m_1 + (1 - b1) * g
        m_2 = beta_3 * m_2 + (1 - beta_3) * g
        nu = b2 * nu + (1 - b2) * abs(g) ** 2
        u = (m_1 / (1 - b1**t) + alpha_t * m_2) / (sqrt(nu / (1 - b2**t) + eps_root) + eps)
        yield -learning_rate * (u + weight_decay * x), {"mu": m_1, "slow": m_2, "nu": nu}


def simplified_ademamix(
    steps: Steps, learning_rate: Any, b1: Any = 0.99, b2: Any = 0.95, alpha: Any = 0.0, eps: Any = 1e-8,
    eps_root: Any = 0.0, b1_warmup: Any = None, b1_start: Any = None, weight_decay: Any = 0.0,
) -> Yields:  # fmt: skip
    """Morwani et al. 2025: theory-style momentum, v alone corrected, beta_1 as AdEMAMix's beta_3."""
    m, v = 0, 0
    for t, x, g in steps:
        m = _f_beta(t, b1, b1_start or 0.9, b1_warmup) * m + g
        v = b2 * v + (1 - b2) * abs(g) ** 2
        u = (m + alpha * g) / (sqrt(v / (1 - b2**t) + eps_root) + eps)
        yield -learning_rate * (u + weight_decay * x), {"mu": m, "nu": v}


def novograd(
    steps: Steps, learning_rate: Any, b1: Any = 0.95, b2: Any = 0.98, eps: Any = 1e-8, eps_root: Any = 0.0,
    inner_decay: Any = None, weight_decay: Any = 0.0,
) -> Yields:  # fmt: skip
    """Ginsburg et al. 2019, algorithm 1, its d as inner_decay; the decoupled decay beside it."""
    m, v, d = 0, None, inner_decay or 0
    for _, x, g in steps:
        v = norm(g) ** 2 if v is None else b2 * v + (1 - b2) * norm(g) ** 2
        m = b1 * m + (g / (sqrt(v + eps_root) + eps) + d * x)
        yield -learning_rate * (m + weight_decay * x), {"mu": m, "nu": v}
