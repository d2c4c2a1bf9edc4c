"""The ready optimizers of tables: each is a rule on rows, inside `lazy_rows`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import optax

import adaptx.optimizers.adagrad.adagrad as dense_adagrad
import adaptx.optimizers.adagrad.ftrl as dense_ftrl
from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.registry import OPTIMIZERS, Paper, checked
from adaptx.optimizers.adam.adam import adam_rule
from adaptx.sparse import row_rules as rules
from adaptx.sparse.decay import decay_at_read
from adaptx.sparse.lazy import lazy_rows
from adaptx.sparse.rounding import stochastically_rounded

P = ParamSpec("P")
T = TypeVar("T")
_FBGEMM = Paper("FBGEMM, PyTorch's embedding optimizers (Meta)", 2021, "https://github.com/pytorch/FBGEMM")


def _from(paper: Paper) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """`checked`, with the source in the docstring."""
    return lambda factory: checked(factory, paper)


def _ready(
    inner: optax.GradientTransformation,
    seed: int | None,
    decay_at: str = "touch",
    learning_rate: Any = None,
    weight_decay: Any = None,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """A rule on rows, with decay that is paid when a row is used or when it is read, and with rounded writes."""
    tx = lazy_rows(inner)
    if decay_at == "read":
        tx = decay_at_read(tx, learning_rate, weight_decay, mask)
    return tx if seed is None else stochastically_rounded(tx, seed)


@_from(OPTIMIZERS["adagrad"].paper)
def adagrad(
    learning_rate: optax.ScalarOrSchedule,
    initial_accumulator: Any = 0.0,
    eps: Any = 1e-10,
    *,
    eps_root: Any = 0.0,
    lr_decay: Any = None,
    l1: Any = None,
    weight_decay: Any = None,
    mask: Any = None,
    decay_at: str = "touch",
    seed: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdaGrad of the rows that are used: exactly the dense `adagrad`, whose other rows have no gradient.

    Step t = 1, 2, ..., for each row in the gradient, g the sum over its occurrences:
        s = s + g**2
        h = sqrt(s + eps_root) + eps
        z = x - learning_rate*(g/h + weight_decay*x)
        x = sign(z)*maximum(abs(z) - learning_rate*l1/h, 0)

    With weight_decay it is exact under decay_at="read", lazy under decay_at="touch", where a row decays in the steps
    that use it. l1 shrinks a row in the steps that use it. lr_decay divides the rate by 1 + (t - 1) lr_decay.
    """
    inner = dense_adagrad.adagrad(
        learning_rate, initial_accumulator, eps,
        eps_root=eps_root, lr_decay=lr_decay, l1=l1, weight_decay=weight_decay, mask=mask,
    )  # fmt: skip
    return _ready(inner, seed, decay_at, dense_adagrad.slowed(learning_rate, lr_decay), weight_decay, mask)


@_from(_FBGEMM)
def rowwise_adagrad(
    learning_rate: optax.ScalarOrSchedule,
    initial_accumulator: Any = 0.0,
    eps: Any = 1e-8,
    *,
    eps_root: Any = 0.0,
    max_norm: Any = None,
    l2: Any = None,
    weight_decay: Any = None,
    mask: Any = None,
    decay_at: str = "touch",
    seed: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Row-wise AdaGrad: one accumulator for each row, the sum of the mean squared gradient. Exact, like `adagrad`.

    Step t = 1, 2, ..., for each row in the gradient, g the sum over its occurrences:
        g = g + l2*x
        v = v + mean(g**2)
        x = x - learning_rate*(g/(sqrt(v + eps_root) + eps) + weight_decay*x)
        x = x*minimum(1, max_norm/norm(x))

    FBGEMM's rule: l2 is its weight decay mode L2, weight_decay its mode DECOUPLE, and with decay_at="read" its mode
    DECOUPLE_GLOBAL. TorchRec's eager optimizer of this name squares the mean instead. l2 and, under decay_at="touch",
    weight_decay act in the steps that use a row, and so are lazy.
    """
    rule = rules.rowwise_adagrad_rule(initial_accumulator, eps, eps_root, l2, max_norm)
    inner = lift("sparse.rowwise_adagrad", rule, Descent(learning_rate, weight_decay, mask))
    return _ready(inner, seed, decay_at, learning_rate, weight_decay, mask)


@_from(OPTIMIZERS["adam"].paper)
def adam(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    *,
    bias: str = "global",
    weight_decay: Any = None,
    mask: Any = None,
    decay_at: str = "touch",
    seed: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Lazy Adam: the moments of a row move in the steps that use it.

    Step t = 1, 2, ..., for each row in the gradient, g the sum over its occurrences:
        m = b1*m + (1 - b1)*g
        v = b2*v + (1 - b2)*g**2
        u = m/(1 - b1**t) / (sqrt(v/(1 - b2**t) + eps_root) + eps)
        x = x - learning_rate*(u + weight_decay*x)

    bias="global" takes for t the steps of the table, as torch's SparseAdam and FBGEMM do: at its n-th use a row that
    comes late steps (1 - b1**n)/sqrt(1 - b2**n) times as far as one that was there from the start, at the defaults 3.2
    at once, 6.6 after 12 uses, 3.2 again after 100; so does the dense Adam. bias="row" takes the steps of the row, at
    four bytes a row; its first steps are Adam's. Neither is the dense Adam, which moves rows without gradient too.
    torch's SparseAdam adds eps to the uncorrected root.
    """
    rule = (adam_rule if bias == "global" else rules.rowwise_adam_rule)(b1, b2, eps, eps_root)
    inner = lift("sparse.adam", rule, Descent(learning_rate, weight_decay, mask))
    return _ready(inner, seed, decay_at, learning_rate, weight_decay, mask)


@_from(_FBGEMM)
def partial_rowwise_adam(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    *,
    weight_decay: Any = None,
    mask: Any = None,
    decay_at: str = "touch",
    seed: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Lazy Adam with one second moment for each row: half of Adam's state.

    Step t = 1, 2, ..., for each row in the gradient, g the sum over its occurrences:
        m = b1*m + (1 - b1)*g
        v = b2*v + (1 - b2)*mean(g**2)
        u = m/(1 - b1**t) / (sqrt(v/(1 - b2**t) + eps_root) + eps)
        x = x - learning_rate*(u + weight_decay*x)

    FBGEMM's rule of this name.
    """
    rule = rules.partial_rowwise_adam_rule(b1, b2, eps, eps_root)
    inner = lift("sparse.partial_rowwise_adam", rule, Descent(learning_rate, weight_decay, mask))
    return _ready(inner, seed, decay_at, learning_rate, weight_decay, mask)


@_from(OPTIMIZERS["ftrl"].paper)
def ftrl(
    learning_rate: optax.ScalarOrSchedule,
    beta: Any = 1.0,
    *,
    l1: Any = None,
    l2: Any = None,
    initial_accumulator: Any = 0.0,
    seed: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """FTRL-Proximal of the rows that are used: exactly the dense `ftrl`, under any schedule.

    Step t = 1, 2, ..., for each row in the gradient, g the sum over its occurrences:
        s = sqrt(n + g**2) - sqrt(n)
        n = n + g**2
        z = z + learning_rate*g - s*x
        x = (clip(z, -learning_rate*l1, learning_rate*l1) - z)/(beta + sqrt(n) + learning_rate*l2)

    Weights are exactly zero while |z| <= learning_rate l1. `adaptx.ftrl` says how z starts, and where others differ.
    """
    return _ready(dense_ftrl.ftrl(learning_rate, beta, l1=l1, l2=l2, initial_accumulator=initial_accumulator), seed)


@_from(OPTIMIZERS["lamb"].paper)
def lamb_rows(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-6,
    eps_root: Any = 0.0,
    *,
    weight_decay: Any = 1e-2,
    mask: Any = None,
    seed: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Lazy LAMB with a trust ratio for each row.

    Step t = 1, 2, ..., for each row in the gradient, g the sum over its occurrences:
        m = b1*m + (1 - b1)*g
        v = b2*v + (1 - b2)*g**2
        u = m/(1 - b1**t) / (sqrt(v/(1 - b2**t) + eps_root) + eps) + weight_decay*x
        r = norm(x)/norm(u) if norm(x) > 0 and norm(u) > 0 else 1
        x = x - learning_rate*r*u

    Norms are of one row, as in FBGEMM, whose rule has no guard: there u = 0 gives NaN and a row of zeros never moves.
    """
    rule = adam_rule(b1, b2, eps, eps_root)
    inner = lift("sparse.lamb_rows", rule, Descent(learning_rate, weight_decay, mask, rules.row_trust_ratio))
    return _ready(inner, seed)
