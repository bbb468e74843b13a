"""The features of boxes and cells against obvious references."""

import itertools

import numpy as np
import pytest
import torch

from dimvl.regions.backbones.pooling import pool, pool_cells

MAPS = torch.randn(2, 5, 4, 6, generator=torch.Generator().manual_seed(0))
BOXES = torch.tensor([[0.1, 0.2, 0.7, 0.9], [0.0, 0.0, 0.31, 1.0], [0.6, 0.5, 1.0, 0.58], [0.3, 0.4, 0.35, 0.45]])


def value_at(grid, x, y):
    """Interpolate (F, h, w) at a place in cells, between the centres of cells; the border goes on outside."""
    height, width = grid.shape[1:]
    x, y = np.clip(x - 0.5, 0, width - 1), np.clip(y - 0.5, 0, height - 1)
    left, top = int(x), int(y)
    right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
    across = [grid[:, row, left] * (1 - x + left) + grid[:, row, right] * (x - left) for row in (top, bottom)]
    return across[0] * (1 - y + top) + across[1] * (y - top)


def mean_over(grid, box):
    """Mean of values in the middle of equal parts of the box, none larger than a cell."""
    sides = np.array(grid.shape[:0:-1])
    low, high = np.array(box[:2]) * sides, np.array(box[2:]) * sides
    parts = np.maximum(np.ceil(high - low - 1e-6), 1).astype(int)
    xs, ys = (a + (np.arange(n) + 0.5) / n * (b - a) for a, b, n in zip(low, high, parts, strict=True))
    return np.mean([value_at(grid, x, y) for x, y in itertools.product(xs, ys)], axis=0)


def test_a_box_has_the_mean_of_the_map_over_it():
    pooled = pool(MAPS, [BOXES, BOXES])
    for grid, rows in zip(MAPS.numpy(), pooled, strict=True):
        np.testing.assert_allclose(rows, [mean_over(grid, box) for box in BOXES.numpy()], atol=1e-5)


def test_the_whole_image_has_the_mean_of_the_whole_map():
    torch.testing.assert_close(pool(MAPS, [torch.tensor([[0.0, 0, 1, 1]])] * 2)[1][0], MAPS[1].mean((1, 2)))


@pytest.mark.parametrize("side", [(0.0, 0.0), (0.0, 0.3), (0.3, 0.0), (1e-9, 1e-9)])
def test_a_box_without_an_area_has_the_value_at_its_place(side):
    centre = np.array([0.55, 0.4])
    box = torch.tensor(np.concatenate([centre - np.array(side) / 2, centre + np.array(side) / 2]), dtype=torch.float32)
    row = pool(MAPS[:1], [box[None]])[0][0]
    np.testing.assert_allclose(row, mean_over(MAPS[0].numpy(), box.numpy()), atol=1e-3)


def test_features_do_not_depend_on_other_images_and_boxes():
    together = pool(MAPS, [BOXES[:3], BOXES])
    for number, boxes in enumerate((BOXES[:3], BOXES)):
        for row, box in zip(together[number], boxes, strict=True):
            torch.testing.assert_close(pool(MAPS[number : number + 1], [box[None]])[0][0], row)
    none = pool(MAPS, [BOXES[:0], BOXES])
    assert none[0].shape == (0, 5)
    torch.testing.assert_close(none[1], together[1])


def test_cells_go_row_by_row_from_the_top_left():
    cells = pool_cells(MAPS, 2)
    quarters = [MAPS[:, :, rows, columns] for rows in (slice(2), slice(2, 4)) for columns in (slice(3), slice(3, 6))]
    torch.testing.assert_close(cells, torch.stack([quarter.mean((2, 3)) for quarter in quarters], dim=1))


def test_there_may_be_more_cells_than_the_map_has():
    assert torch.equal(pool_cells(MAPS[:, :, :1, :1], 3), MAPS[:, :, :1, :1].flatten(2).transpose(1, 2).expand(2, 9, 5))
