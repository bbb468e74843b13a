"""Arithmetic of boxes for regions, objectives and reports.

Boxes are (..., 4) arrays of corners x1, y1, x2, y2, with x to the right and y down, as fractions of the image's width
and height unless a name says pixels. The area of a box is (x2 - x1) * (y2 - y1), without the + 1 of older code.

Shapes: R boxes, T target boxes.
"""

import numpy as np


def area(boxes: np.ndarray) -> np.ndarray:
    """Areas (R,) of boxes (R, 4); 0 for a box with swapped corners."""
    sides = np.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    return sides[..., 0] * sides[..., 1]


def intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Areas (R, T) that boxes a (R, 4) and b (T, 4) have in common."""
    top_left = np.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = np.minimum(a[:, None, 2:], b[None, :, 2:])
    return area(np.concatenate([top_left, bottom_right], axis=-1))


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union (R, T) of boxes a (R, 4) and b (T, 4); 0 where both are empty."""
    common = intersection(a, b)
    return _ratio(common, area(a)[:, None] + area(b)[None, :] - common)


def coverage(boxes: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Share (R, T) of each target's area (T, 4) that each box (R, 4) covers; 0 for an empty target.

    Unlike IoU it is high for a large box around a small target: the whole image covers every target completely.
    """
    return _ratio(intersection(boxes, targets), np.broadcast_to(area(targets), (len(boxes), len(targets))))


def geometry_features(boxes: np.ndarray) -> np.ndarray:
    """Describe boxes (R, 4) to the model in seven fractions (R, 7): x1, y1, x2, y2, w, h, w * h."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return np.concatenate([boxes, sides, sides[:, :1] * sides[:, 1:]], axis=1)


def clip(boxes: np.ndarray) -> np.ndarray:
    """Clip boxes (R, 4) at the image's border."""
    return np.clip(boxes, 0, 1)


def pixels_to_fractions(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Corners (R, 4) in pixels to float32 fractions of the image's width and height."""
    return (boxes / np.array([width, height, width, height])).astype(np.float32)


def fractions_to_pixels(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Corners (R, 4) as fractions to float32 pixels, not rounded."""
    return (boxes * np.array([width, height, width, height])).astype(np.float32)


def xywh_to_corners(boxes: np.ndarray) -> np.ndarray:
    """COCO boxes (R, 4) x, y, width, height to corners, in the same unit."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    out = np.zeros(part.shape, dtype=np.result_type(part, np.float32))
    return np.divide(part, whole, out=out, where=whole > 0)
