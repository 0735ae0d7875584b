"""How frames are displayed: orientation by the display matrix of their stream, and shape of their pixels."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

MAX_PIXEL_ASPECT = 4
"""Largest ratio of the sides of a pixel; a larger one is an error of the file."""


def pixel_aspect(ratio: Fraction | None) -> float:
    """Return the width of a pixel by its height; 1 if the ratio is unknown or implausible."""
    is_plausible = ratio is not None and 1 <= MAX_PIXEL_ASPECT * ratio <= MAX_PIXEL_ASPECT**2
    return float(ratio) if ratio is not None and is_plausible else 1.0


class Orientation(NamedTuple):
    """One of the eight orientations of an image: exchange rows and columns, then reverse either."""

    is_transposed: bool = False
    are_rows_reversed: bool = False
    are_columns_reversed: bool = False

    @classmethod
    def from_matrix(cls, matrix: np.ndarray) -> Orientation:
        """Return the orientation of a display matrix; for other angles and scales, the nearest.

        Args:
            matrix: int32 [9], rows of a matrix that maps the row vector (x, y, 1) to its place on screen.
        """
        x_to_x, x_to_y, _, y_to_x, y_to_y = matrix[:5].astype(np.int64).tolist()
        if abs(x_to_y) + abs(y_to_x) > abs(x_to_x) + abs(y_to_y):
            return cls(True, x_to_y < 0, y_to_x < 0)
        return cls(False, y_to_y < 0, x_to_x < 0)

    @classmethod
    def of_frame(cls, frame: Any) -> Orientation:
        """Return the orientation of a PyAV frame."""
        data = frame.side_data.get("DISPLAYMATRIX")
        return cls() if data is None else cls.from_matrix(np.frombuffer(data, np.int32))

    def displayed_aspect(self, stored: float) -> float:
        """Return the aspect of a displayed pixel, given that of a stored one."""
        return 1 / stored if self.is_transposed else stored

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Return an image [H, W, C] as it is displayed, in contiguous memory."""
        image = pixels.swapaxes(0, 1) if self.is_transposed else pixels
        image = image[::-1] if self.are_rows_reversed else image
        image = image[:, ::-1] if self.are_columns_reversed else image
        return np.ascontiguousarray(image)
