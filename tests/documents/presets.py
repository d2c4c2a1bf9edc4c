"""The catalogue's section on presets: defaults from the signatures, and where the frameworks differ and why."""

from __future__ import annotations

import inspect

from adaptx import presets
from adaptx.presets.words import FRAMEWORKS

# Method -> where torch, Keras and Optax differ beyond the defaults, and why. Decay is told once, below the table.
DIFFERENCES = {
    "adagrad": (
        "eps: torch adds it to the root, Keras and Optax under the root. First sum: torch has the paper's 0, so that "
        "the first step is the rate whatever the gradient's size; Keras and Optax have TensorFlow's 0.1, which makes "
        "first steps of small gradients small. Only torch has lr_decay."
    ),
    "rmsprop": (
        "eps: torch adds it to the root, Keras under it, Optax as eps_in_sqrt says. Momentum: torch multiplies by "
        "the rate after the buffer, Keras and Optax before it, so that old steps keep the rate they were made with: "
        "the same only while the rate is constant. Only Optax has Nesterov's form, a first value and bias correction."
    ),
    "adadelta": (
        "One rule, three sets of defaults: the paper's rate is 1, Keras's 1e-3 is that of its other optimizers. "
        "Optax's default rate, None, leaves the sign of the update unflipped; the preset asks for a rate."
    ),
    "adam": (
        "eps: torch and Optax add it after v is corrected for its zero start (the paper's Algorithm 1), Keras before "
        "it (the paper's shorter form with epsilon-hat): at step t Keras's eps counts 1/sqrt(1 - b2^t) times as "
        "much, 30 times at t = 1. Optax's nesterov is `nadam`."
    ),
    "adamw": "As `adam`. The decay is decoupled and times the rate in all three; its default is 1e-2, 4e-3 and 1e-4.",
    "amsgrad": (
        "An argument of `adam` in torch and Keras, whose maximum is of the plain v and is corrected afterwards by "
        "the factor of the present step; Optax takes the maximum of the corrected v, in which the first, noisy "
        "values count for good."
    ),
    "adamax": (
        "eps: torch and Optax add it to abs(g) inside the maximum, where it decays and is no sum with large v; Keras "
        "adds it to v. The paper has none."
    ),
    "adamaxw": "Optax's `adamax` with decay on by default.",
    "nadam": (
        "Momentum schedule: b1 (1 - 0.96^(t psi)/2) with psi = 4e-3 in torch (Dozat's report) and psi = 1 in Keras, "
        "which is near b1 after some 100 steps; Optax has a constant b1 and so the simpler form without products. "
        "eps is added after the correction of v in all three, unlike in Keras's Adam."
    ),
    "nadamw": "Optax's `nadam` with decay on by default.",
    "radam": (
        "eps: torch adds it to the root of the plain v, as the authors' code, Optax after the correction. Both ask "
        "for rho above 5 (Optax: its threshold, reached or passed), where the paper has 4. Keras has none."
    ),
    "adafactor": (
        "Rate: torch and Keras cap it by 1/sqrt(t), Optax does not; None is 1 there. eps: Keras and Optax add the "
        "paper's 1e-30 to the squares, torch keeps the root above its eps1, by default the dtype's spacing at 1. "
        "Factored: the last two axes in torch and Keras, the two longest in Optax, and only from 128 on. Size of the "
        "parameters: before the decay in torch and Optax, after it in Keras. Decay: times the rate (not its cap) in "
        "torch and Keras, not times the rate in Optax. Keras's means and Optax's b2 are float32 even in float64: it "
        "hides what is below 1e-7."
    ),
    "lion": "The same rule; Optax decays by default. torch has none.",
}
DECAY = (
    "Decay: torch adds weight_decay*x to the gradient, so that the moments see it (`decoupled_weight_decay` and "
    "`adamw` do not); Keras takes learning_rate*weight_decay*x off the parameter before each step; Optax has it in "
    "the methods whose names end in w, in `lion` and `adafactor` (decoupled) and in `adadelta` (added to the "
    "gradient)."
)
_CLIPS = ("clipnorm", "clipvalue", "global_clipnorm")


def _defaults(framework: str, method: str) -> str:
    """The preset's name and its arguments with their defaults."""
    factory = getattr(getattr(presets, framework), method, None)
    if factory is None:
        return "-"
    parameters = inspect.signature(factory).parameters.values()
    shown = [p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters if p.name not in _CLIPS]
    return f"`{', '.join(shown)}`"


def presets_section() -> str:
    """One row a method."""
    rows = ["| method | torch | Keras | Optax | where they differ |", "|---|---|---|---|---|"]
    for method, text in DIFFERENCES.items():
        cells = [_defaults(framework, method) for framework in FRAMEWORKS]
        rows.append(f"| `{method}` | {' | '.join(cells)} | {text} |")
    return (
        "## Presets\n\nOther frameworks' numerics by name: `adaptx.presets.torch`, `.keras` and `.optax` have their "
        "arguments, defaults and rules. In float64 their trajectories are the frameworks' own to 1e-12 (`make "
        "parity`; Adafactor's to 1e-7 of Keras's and Optax's, which have float32 numbers inside); in low precision "
        "they have this library's float32 accumulators and one cast. For complex "
        "parameters torch keeps a second moment for each part; here, as in Optax, both parts share one. Keras's "
        "presets also take one of "
        "clipnorm, clipvalue and global_clipnorm.\n\n" + "\n".join(rows) + f"\n\n{DECAY}"
    )
