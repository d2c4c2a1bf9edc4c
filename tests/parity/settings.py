"""What is compared: for each framework and method, settings in the framework's own words."""

from __future__ import annotations

from typing import Any

from tests.parity.problem import Setting, rate_name

# method -> (the framework's class, its name for eps, options one by one). Each is run with defaults, then with a large
# eps (which tells the conventions apart), decay, another rate and a schedule.
METHODS: dict[str, dict[str, tuple[str, str | None, list[dict[str, Any]]]]] = {
    "torch": {
        "adagrad": (
            "Adagrad",
            "eps",
            [dict(lr_decay=0.3), dict(initial_accumulator_value=0.2), dict(lr_decay=0.1, maximize=True)],
        ),
        "rmsprop": (
            "RMSprop",
            "eps",
            [
                dict(centered=True),
                dict(momentum=0.8),
                dict(alpha=0.9, momentum=0.7, centered=True),
                dict(maximize=True, momentum=0.5),
            ],
        ),
        "adadelta": ("Adadelta", "eps", [dict(rho=0.7), dict(maximize=True)]),
        "adam": (
            "Adam",
            "eps",
            [
                dict(betas=(0.8, 0.95)),
                dict(amsgrad=True, betas=(0.9, 0.9)),
                dict(decoupled_weight_decay=True),
                dict(amsgrad=True, maximize=True, betas=(0.5, 0.8)),
            ],
        ),
        "adamw": ("AdamW", "eps", [dict(amsgrad=True, betas=(0.8, 0.9)), dict(maximize=True)]),
        "adamax": ("Adamax", "eps", [dict(betas=(0.8, 0.9)), dict(maximize=True)]),
        "nadam": (
            "NAdam",
            "eps",
            [
                dict(momentum_decay=0.1, betas=(0.8, 0.95)),
                dict(decoupled_weight_decay=True),
                dict(momentum_decay=0.0, maximize=True),
            ],
        ),
        "radam": (
            "RAdam",
            "eps",
            [dict(betas=(0.8, 0.95)), dict(decoupled_weight_decay=True), dict(maximize=True, betas=(0.9, 0.7))],
        ),
        "adafactor": (
            "Adafactor",
            None,
            [
                dict(eps=(1e-2, 0.8)),
                dict(beta2_decay=-0.5, d=1.2, lr=0.5),  # which 1/sqrt(t) caps
                dict(maximize=True, eps=(None, 1e-2)),
            ],
        ),
    },
    "keras": {
        "adagrad": ("Adagrad", "epsilon", [dict(initial_accumulator_value=0.0), dict(clipnorm=0.5)]),
        "rmsprop": (
            "RMSprop",
            "epsilon",
            [
                dict(centered=True),
                dict(momentum=0.8),
                dict(rho=0.7, momentum=0.7, centered=True),
                dict(global_clipnorm=0.5),
            ],
        ),
        "adadelta": ("Adadelta", "epsilon", [dict(rho=0.7), dict(clipvalue=0.1)]),
        "adam": (
            "Adam",
            "epsilon",
            [
                dict(beta_1=0.8, beta_2=0.95),
                dict(amsgrad=True, beta_2=0.9),
                dict(clipnorm=0.5),
                dict(clipvalue=0.1),
                dict(global_clipnorm=0.5),
            ],
        ),
        "adamw": ("AdamW", "epsilon", [dict(amsgrad=True, beta_1=0.8, beta_2=0.9)]),
        "adamax": ("Adamax", "epsilon", [dict(beta_1=0.8, beta_2=0.9)]),
        "nadam": ("Nadam", "epsilon", [dict(beta_1=0.8, beta_2=0.95)]),
        "adafactor": (
            "Adafactor",
            "epsilon_1",
            [dict(epsilon_2=0.8), dict(beta_2_decay=-0.5, clip_threshold=0.7, learning_rate=0.5), dict(clipnorm=0.5)],
        ),
        "lion": ("Lion", None, [dict(beta_1=0.8, beta_2=0.95)]),
    },
    "optax": {
        "adagrad": ("adagrad", "eps", [dict(initial_accumulator_value=0.0)]),
        "rmsprop": (
            "rmsprop",
            "eps",
            [
                dict(eps_in_sqrt=False),
                dict(centered=True, initial_scale=0.2),
                dict(momentum=0.8),
                dict(momentum=0.7, nesterov=True, eps_in_sqrt=False, centered=True, decay=0.7),
                dict(bias_correction=True, momentum=0.5),
                # The first corrected variance is 0 in exact numbers: only an eps above its rounding gives a step.
                dict(bias_correction=True, centered=True, eps=1.0),
            ],
        ),
        "adadelta": ("adadelta", "eps", [dict(rho=0.7)]),
        "adam": ("adam", "eps", [dict(b1=0.8, b2=0.95, eps_root=1e-3), dict(nesterov=True, b2=0.95)]),
        "adamw": ("adamw", "eps", [dict(b1=0.8, b2=0.95, eps_root=1e-3), dict(nesterov=True, b2=0.95)]),
        "amsgrad": (
            "amsgrad",
            "eps",
            [
                dict(b1=0.8, b2=0.9, eps_root=1e-3),
                dict(bias_correction_mu=False),
                dict(bias_correction_nu=False, b2=0.9),
            ],
        ),
        "adamax": ("adamax", "eps", [dict(b1=0.8, b2=0.9)]),
        "adamaxw": ("adamaxw", "eps", [dict(b1=0.8, b2=0.9)]),
        "nadam": ("nadam", "eps", [dict(b1=0.8, b2=0.95, eps_root=1e-3)]),
        "nadamw": ("nadamw", "eps", [dict(b1=0.8, b2=0.95, eps_root=1e-3)]),
        "radam": (
            "radam",
            "eps",
            [dict(b1=0.8, b2=0.95, eps_root=1e-3), dict(threshold=6.5, b2=0.9), dict(nesterov=True, b2=0.95)],
        ),
        "adafactor": (
            "adafactor",
            "eps",
            [
                dict(min_dim_size_to_factor=2),
                dict(factored=False, decay_rate=0.5, clipping_threshold=0.7),
                dict(min_dim_size_to_factor=4, momentum=0.8, multiply_by_parameter_scale=False),
                dict(min_dim_size_to_factor=1, clipping_threshold=None, learning_rate=None),
            ],
        ),
        "lion": ("lion", None, [dict(b1=0.8, b2=0.95)]),
    },
}
# Which presets decay, and by which argument.
DECAYS = {
    "torch": dict.fromkeys(METHODS["torch"], "weight_decay"),
    "keras": dict.fromkeys(METHODS["keras"], "weight_decay"),
    "optax": {
        **dict.fromkeys(("adadelta", "adamw", "adamaxw", "nadamw", "lion"), "weight_decay"),
        "adafactor": "weight_decay_rate",
    },
}
RATES = dict(adagrad=0.5, adadelta=0.5)  # what the others have 0.05 for


def settings(framework: str, method: str) -> list[Setting]:
    """The settings of one golden file."""
    _, eps, options = METHODS[framework][method]
    rate = {rate_name(framework): RATES.get(method, 0.05)}
    required = rate if framework == "optax" else {}  # without a default
    large = {} if eps is None else {eps: 1e-2}
    decay = {DECAYS[framework][method]: 0.1} if method in DECAYS[framework] else {}
    found = [Setting({**required}), Setting({**required, **large}), Setting({**rate, **decay}, 0.25)]
    for option in options:
        slowing = None if option.get("learning_rate", 0) is None else 0.25
        found += [Setting({**required, **option}), Setting({**large, **rate, **decay, **option}, slowing)]
    return found
