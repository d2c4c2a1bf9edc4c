"""References: Parameter-free methods."""

from typing import Any

from numpy import minimum, sqrt

from tests.equations.references.loop import Steps, Yields, norm, over_tree


@over_tree()
def dog(
    steps: Steps, learning_rate: Any = 1.0, initial_distance: Any = 1e-6, eps: Any = 0.0, eps_root: Any = 1e-8,
    weight_decay: Any = 0.0,
) -> Yields:  # fmt: skip
    """Ivgi, Hinder, Carmon 2023: eta_t = max_i |x_i - x_0| / sqrt(sum |g_i|^2), the first distance r_eps."""
    squares, x_0, r_bar = 0, None, 0
    for t, x, g in steps:
        if t == 1:
            x_0, r_bar = x, initial_distance * (1 + norm(x))
        r_bar = max(r_bar, norm(x - x_0))
        squares = squares + norm(g) ** 2
        eta = learning_rate * r_bar / (sqrt(squares + eps_root) + eps)
        yield -eta * g - minimum(eta * weight_decay, 1) * x, {"distance": r_bar, "grad_sq": squares}
