"""Pictures of the documentation, which are stored: `python -m docs.site.pictures`."""

import functools
import sys

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib import pyplot as plt

import optlab
from docs.site.docstrings import ROOT
from docs.site.methods import METHODS
from optlab import registry

FOLDER = ROOT / "docs" / "pictures"
SHAPE = (24, 36)
STEPS = 30
# Half-way between black and white: read on light and on dark pages.
_GREY = "#808080"
_STYLE = {
    "axes.edgecolor": _GREY,
    "axes.labelcolor": _GREY,
    "axes.titlecolor": _GREY,
    "font.size": 9,
    "legend.labelcolor": _GREY,
    "savefig.transparent": True,
    "text.color": _GREY,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
}


def gradients() -> np.ndarray:
    """Thirty gradients of one matrix; the last one has two huge entries."""
    random = np.random.default_rng(0)
    left, _ = np.linalg.qr(random.normal(size=(SHAPE[0], SHAPE[0])))
    right, _ = np.linalg.qr(random.normal(size=(SHAPE[1], SHAPE[0])))
    signal = left * 10.0 ** np.linspace(0.5, -1.5, SHAPE[0]) @ right.T
    noise = random.normal(size=(STEPS, *SHAPE)) * 0.1 * np.abs(signal).mean()
    grads = (signal + noise).astype(np.float32)
    grads[-1, 4, 7] = grads[-1, 15, 28] = 100 * np.abs(signal).mean()
    return grads


def last_update(name: str, grads: np.ndarray) -> np.ndarray:
    """What a method takes off the weights at the last step."""
    entry = registry.get(name)
    small = {"cosmos": {"rank": 4}, "scion": {"constrained": False}}
    small["cosmos_h"] = small["cosmos"]
    # On a sphere a step has its size from the weights, and is straight if it is small.
    sphere = name.endswith("_h")
    tx = entry.factory(1e-3 if sphere else 1.0, **small.get(name, {}))
    weights = np.random.default_rng(1).normal(size=SHAPE)
    params = {"kernel": jnp.asarray(weights if sphere else np.zeros(SHAPE), "float32")}
    # A curvature that grows with the input, as that of a linear layer does.
    curvature = jnp.ones(SHAPE) * jnp.linspace(0.5, 2.0, SHAPE[0])[:, None]
    needs = {"hessian_diag": {"kernel": curvature}} if entry.needs else {}

    @jax.jit
    def step(state, grad):
        return tx.update({"kernel": grad}, state, params, **needs)[::-1]

    state = tx.init(params)
    for grad in grads:
        state, updates = step(state, grad)
    return -np.asarray(updates["kernel"])


def draw_method(name: str) -> None:
    """The last gradient, the update, and the singular values of both."""
    grads = gradients()
    update = last_update(name, grads)
    figure, panels = plt.subplots(1, 3, figsize=(9, 2.5), layout="constrained")
    for panel, matrix, title in (
        (panels[0], grads[-1], "the last gradient"),
        (panels[1], update, "the update"),
    ):
        unit = 4 * np.median(np.abs(matrix)) or 1.0
        panel.imshow(matrix / unit, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
        panel.set(title=title, xticks=[], yticks=[])
    for matrix, label, color in (
        (grads[0], "an earlier gradient", "#6baed6"),
        (grads[-1], "the last gradient", _GREY),
        (update, "the update", "#e6550d"),
    ):
        values = np.linalg.svd(matrix, compute_uv=False)
        panels[2].semilogy(values / values[0], label=label, color=color)
    panels[2].set(title="singular values over the largest", ylim=(1e-3, 2))
    panels[2].legend(frameon=False, fontsize=8)
    _save(figure, name)


def draw_spectra() -> None:
    """Singular values before and after orthogonalization: the picture on top."""
    matrix = jnp.asarray(gradients()[0])
    figure, panel = plt.subplots(figsize=(7, 2.6), layout="constrained")
    shown = {"the gradient": matrix / jnp.linalg.norm(matrix, 2)}
    fitted = optlab.fit_coefficients(
        SHAPE, steps=5, per_step=True, normalize="schatten4"
    )
    for label, coeffs, norm in (
        ("Muon, 5 steps", "muon", "frobenius"),
        ("ROOT, 5 steps", fitted, "schatten4"),
    ):
        shown[label] = optlab.orthogonalize(
            matrix, steps=5, coeffs=coeffs, normalize=norm
        )
    for (label, values), color in zip(
        shown.items(), (_GREY, "#6baed6", "#e6550d"), strict=True
    ):
        panel.plot(
            np.linalg.svd(values, compute_uv=False),
            "o-",
            ms=3,
            label=label,
            color=color,
        )
    panel.set(xlabel="index", ylabel="singular value")
    panel.legend(frameon=False)
    _save(figure, "spectra")


def draw_schedules() -> None:
    """The schedules of the library."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 2.6), layout="constrained")
    steps = np.arange(1001)
    for phi in (0.25, 1.0, 2.0, 5.0):
        schedule = optlab.uba_schedule(1.0, 1000, phi, warmup_steps=50)
        panels[0].plot(steps, schedule(steps), label=f"phi = {phi:g}")
    panels[0].set(title="uba_schedule", xlabel="step")
    norms = 1 + 4 * np.exp(-np.arange(1000) / 50) + 2 * (np.arange(1000) / 1000) ** 4
    for label, schedule in (
        ("linear_decay_schedule", optlab.linear_decay_schedule(1.0, 1000)),
        ("refined_schedule", optlab.refined_schedule(norms, 1.0)),
    ):
        panels[1].plot(steps, schedule(steps), label=label)
    panels[1].plot(norms / norms.max(), ":", color=_GREY, label="gradient norms")
    panels[1].set(title="from the gradient norms of a past run", xlabel="step")
    for panel in panels:
        panel.legend(frameon=False)
    _save(figure, "schedules")


def _save(figure: plt.Figure, name: str) -> None:
    figure.savefig(FOLDER / f"{name}.png", dpi=100, metadata={"Software": None})
    plt.close(figure)


PICTURES = {"spectra": draw_spectra, "schedules": draw_schedules} | {
    name: functools.partial(draw_method, name) for name in METHODS
}


def main(names: list[str]) -> None:
    """Draws the named pictures, or all of them."""
    matplotlib.use("agg")
    FOLDER.mkdir(exist_ok=True)
    with plt.rc_context(_STYLE):
        for name in names or PICTURES:
            PICTURES[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
