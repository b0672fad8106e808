"""Whether an image shows anything: it is not black, a covered lens, one colour or a mere blur.

What shows something has structure between what is smooth and what is noise. An image of 32 x 16
values is taken apart into the waves of the discrete cosine transform (Ahmed, Natarajan, Rao,
"Discrete Cosine Transform", 1974), each of which holds the same share of white noise:

- coarse waves, of up to 3 maxima over the height or 1.5 over the width, and quadratic surfaces: one
  colour, slopes, vignettes, what a blur leaves;
- fine waves, of more than 8 over the height or 4 over the width: noise, and the finest edges;
- those between, whose power beyond that of noise is the structure.

Noise has the same power in all waves, so that it is told by the median of the fine ones; edges are
in a few of them, and have more power in coarser waves (Field, "Relations between the statistics of
natural images and the response properties of cortical cells", 1987).

Text that a camera writes on black has structure as well, in a few places. So at least nine of 8 x 4
parts of the image must vary, each as much as is asked of the whole.

Measured on 5,143 images of Market-1501 (128 x 64), 1,800 rendered people and 1,029 of the former
that were changed and saved as JPEG. Noise is white, of that standard deviation.

=============================================  =========  =====================  ================
images                                         least      median                 below 1.5
=============================================  =========  =====================  ================
Market-1501                                    7.5        21.1                   none
rendered people                                3.8        14.0                   none
shrunk to 24 x 12                              5.8        16.4                   none
shrunk to 12 x 6                               4.2        11.7                   none
padded to a square, or cut out on black        3.4        17.4 to 22.9           none
a fifth of the contrast, noise 0 to 6          1.5        4.2                    none
a tenth of the contrast, noise 0 to 6          0.7        2.1                    6.3 to 8.0 %
blurred, deviation 1/8 of the width            1.8        4.8                    none
blurred, deviation 1/5 of the width            0.3        1.1                    82 %
blurred, deviation 1/4 of the width            0          0.5                    all
one colour or a vignette, noise 0 to 20        0          0.0 to 0.7             all
the same of 64 x 32                            0          0.0 to 1.0             all
one colour with a time stamp, noise 0 to 20    0          0.0 to 0.7             all
the lower three quarters grey                  0          0.0                    all
white noise of 10 or 20, 24 x 10               0          0.0                    99 %
=============================================  =========  =====================  ================

What passes for structure: an image that is half black or grey, as a torn file is, because padded
crops are so as well; noise in blotches, of 3 grey levels and a deviation of two pixels, which is
what JPEG makes of white noise of 10 in images of up to 40 x 20; and noise below 24 x 10. Of
colours of one luminance, half are told from one colour.
"""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image
from scipy.fft import dct

HEIGHT, WIDTH = 32, 16
LEAST_HEIGHT, LEAST_WIDTH = 24, 10  # with fewer pixels an image has too few waves: it is enlarged
LEAST_STRUCTURE = 1.5  # grey levels, see above
COLOUR_WEIGHT = 0.5  # JPEG smooths colour, and with it the colour of noise
NOISE_RATIO = 2.0  # power of a middle wave by that of a fine one; below, it is noise
MEDIAN_OF_NOISE = 0.455  # by its mean: of a chi-squared variable of one degree of freedom
PARTS_DOWN, PARTS_ACROSS, WITHOUT = 8, 4, 23  # parts of an image, and how many may show nothing


@functools.cache
def _bases(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The middle and the fine waves of so many pixels, by column."""
    rows, columns = np.mgrid[:height, :width]
    fine = (rows >= height // 2) | (columns >= width // 2)
    coarse = (rows / 6) ** 2 + (columns / 3) ** 2 <= 1
    waves = np.einsum("iy,jx->ijyx", *(dct(np.eye(side), norm="ortho", axis=0)
                                       for side in (height, width)))
    y, x = rows / height, columns / width
    # a slope has all waves: of the middle ones, what no quadratic surface holds
    others = np.concatenate([waves[fine | coarse], [y, x, y ** 2, x ** 2, y * x]])
    others = others.reshape(len(others), -1).T
    middle = np.linalg.qr(others, mode="complete")[0][:, others.shape[1]:]
    return middle, waves[fine].reshape(-1, height * width).T


def structure(image: Image.Image) -> float:
    """Standard deviation of an image's structure, in grey levels of 0 to 255; 0 for noise.

    It is that of the luminance, or half that of a colour difference (Cb, Cr of JPEG) if that is
    larger, and at most the deviation within the ninth of 8 x 4 parts, by how much each varies.

    Args:
        image: of any size and mode; one of fewer than 24 x 10 pixels is enlarged first.

    Example:
        >>> structure(Image.new("RGB", (64, 128), "navy")) < LEAST_STRUCTURE
        True
    """
    image = image.convert("RGB")
    if image.height < LEAST_HEIGHT or image.width < LEAST_WIDTH:
        image = image.resize((max(image.width, LEAST_WIDTH), max(image.height, LEAST_HEIGHT)),
                             Image.Resampling.BICUBIC)
    small = image.resize((min(image.width, WIDTH), min(image.height, HEIGHT)),
                         Image.Resampling.BOX).convert("YCbCr")
    powers = _powers(np.moveaxis(np.asarray(small, np.float64), 2, 0))
    return float(max(np.sqrt(powers) * (1, COLOUR_WEIGHT, COLOUR_WEIGHT)))


def _powers(channels: np.ndarray) -> np.ndarray:
    """Mean power of the structure of each of (3, height, width) values."""
    basis = _bases(*channels.shape[1:])
    middles, fines = ((channels.reshape(len(channels), -1) @ waves) ** 2 for waves in basis)
    noise = np.median(fines, axis=1) / MEDIAN_OF_NOISE
    whole = (middles - noise[:, None]).sum(axis=1) / channels[0].size
    part = np.sort(_variances(channels))[:, WITHOUT] - noise
    return np.where(middles.mean(axis=1) < NOISE_RATIO * noise, 0,
                    np.maximum(0, np.minimum(whole, part)))


def _variances(channels: np.ndarray) -> np.ndarray:
    """(3, 32) of each part of (3, height, width) values."""
    rows, columns = (np.arange(parts) * side // parts for parts, side in zip(
        (PARTS_DOWN, PARTS_ACROSS), channels.shape[1:], strict=True))

    def sums(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(np.add.reduceat(values, rows, axis=1), columns, axis=2)

    count = sums(np.ones_like(channels))
    found = sums(channels ** 2) / count - (sums(channels) / count) ** 2
    return found.reshape(len(channels), -1)
