import numpy as np
import pytest

from experiments.reporting import looks, page

# Machado, Oliveira, Fernandes (doi 10.1109/TVCG.2009.113), severity 1, of linear RGB.
DICHROMATS = {
    "none": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def linear(colors):
    """Hexadecimal sRGB as linear RGB, a row a colour."""
    srgb = np.array([list(bytes.fromhex(color[1:])) for color in colors]) / 255
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def cielab(rgb):
    """Linear RGB as CIELAB, white being that of sRGB."""
    share = np.clip(rgb, 0, 1) @ XYZ.T / XYZ.sum(axis=1)
    dark = (24389 / 27 * share + 16) / 116
    x, y, z = np.where(share > 216 / 24389, np.cbrt(share), dark).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


@pytest.mark.parametrize(("scheme", "paper"), [("LIGHT", "#fff"), ("DARK", "#14171b")])
def test_colours_stay_apart_for_every_reader_and_from_the_paper(scheme, paper):
    template = page._TEMPLATE.read_text()
    assert f"--paper: {paper};" in template
    colors = linear(getattr(looks, scheme))
    for kind, matrix in DICHROMATS.items():
        seen = cielab(colors @ np.transpose(matrix))
        apart = np.linalg.norm(seen[:, None] - seen, axis=-1)
        apart[np.diag_indices(len(seen))] = np.inf
        assert apart.min() > 25, (kind, np.unravel_index(apart.argmin(), apart.shape))
    lightness = cielab(colors)[:, 0]
    # The last and the first are neighbours too: methods 6 and 7.
    assert np.abs(lightness - np.roll(lightness, 1)).min() > 12
    luminance = colors @ XYZ[1]
    ground = linear([paper if len(paper) == 7 else "#" + 2 * paper[1:]]) @ XYZ[1]
    contrast = (np.maximum(luminance, ground) + 0.05) / (
        np.minimum(luminance, ground) + 0.05
    )
    assert contrast.min() > 3
    assert contrast[1] > 4.5  # that of the word "diverged"
