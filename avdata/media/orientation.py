"""Orientation of decoded frames by the display matrix of their stream."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


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

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Return an image [H, W, C] as it is displayed, in contiguous memory."""
        image = pixels.swapaxes(0, 1) if self.is_transposed else pixels
        image = image[::-1] if self.are_rows_reversed else image
        image = image[:, ::-1] if self.are_columns_reversed else image
        return np.ascontiguousarray(image)
