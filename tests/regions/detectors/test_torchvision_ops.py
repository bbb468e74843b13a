"""The replacement operators equal obvious ones, and the compiled ones where those load."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from dimvl.regions.detectors import torchvision_ops

torchvision = torchvision_ops.import_torchvision()


def random_boxes(random, count, extent=100.0):
    corners = random.uniform(0, extent, (count, 2))
    sides = random.uniform(0, extent / 3, (count, 2))
    return torch.tensor(np.concatenate([corners, corners + sides], axis=1), dtype=torch.float32)


def overlap(first, second):
    width = max(min(first[2], second[2]) - max(first[0], second[0]), 0)
    height = max(min(first[3], second[3]) - max(first[1], second[1]), 0)
    area = (first[2] - first[0]) * (first[3] - first[1]) + (second[2] - second[0]) * (second[3] - second[1])
    return width * height / (area - width * height) if area else 0.0


def obvious_nms(boxes, scores, threshold):
    kept = []
    for index in sorted(range(len(boxes)), key=lambda index: (-scores[index].item(), index)):
        if all(overlap(boxes[index].tolist(), boxes[other].tolist()) <= threshold for other in kept):
            kept.append(index)
    return kept


@pytest.mark.parametrize("block", [7, 256])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7])
def test_nms_keeps_what_an_obvious_loop_keeps(threshold, block, monkeypatch):
    monkeypatch.setattr(torchvision_ops, "NMS_BLOCK", block)
    random = np.random.default_rng([1, block])
    boxes = random_boxes(random, 60)
    boxes[5] = boxes[9]  # twins
    boxes[11, 2:] = boxes[11, :2]  # an empty box
    scores = torch.tensor(random.integers(0, 12, 60) / 12, dtype=torch.float32)  # many equal scores
    expected = obvious_nms(boxes, scores, threshold)
    assert torchvision_ops.nms(boxes, scores, threshold).tolist() == expected
    assert torchvision.ops.nms(boxes, scores, threshold).tolist() == expected
    assert 1 < len(expected) < 60


def test_nms_of_no_boxes_is_empty():
    assert torchvision.ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5).tolist() == []


def test_nms_compares_an_overlap_of_exactly_the_threshold_as_the_compiled_operator_does():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0], [0.0, 0.0, 10.0, 3.0]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    # An overlap of exactly .5 is kept at .5; float32's .3 exceeds the double .3, so the third box is dropped.
    assert torchvision.ops.nms(boxes[[0, 1]], scores[:2], 0.5).tolist() == [0, 1]
    assert torchvision.ops.nms(boxes[[0, 2]], scores[[0, 2]], 0.3).tolist() == [0]


def obvious_roi_align(maps, rois, scale, pooled_height, pooled_width, ratio, aligned):
    """Sample by sample, straight from the definition."""
    _, channels, height, width = maps.shape

    def sample(feature_map, y, x):
        if y < -1 or y > height or x < -1 or x > width:
            return torch.zeros(channels, dtype=maps.dtype)
        y, x = min(max(y, 0.0), height - 1), min(max(x, 0.0), width - 1)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        down, across = y - top, x - left
        upper = feature_map[:, top, left] * (1 - across) + feature_map[:, top, right] * across
        lower = feature_map[:, bottom, left] * (1 - across) + feature_map[:, bottom, right] * across
        return upper * (1 - down) + lower * down

    output = []
    for index, *corners in rois.tolist():
        x1, y1, x2, y2 = (corner * scale - (0.5 if aligned else 0.0) for corner in corners)
        roi_width, roi_height = x2 - x1, y2 - y1
        if not aligned:
            roi_width, roi_height = max(roi_width, 1.0), max(roi_height, 1.0)
        bin_width, bin_height = roi_width / pooled_width, roi_height / pooled_height
        down = ratio if ratio > 0 else int(np.ceil(bin_height))
        across = ratio if ratio > 0 else int(np.ceil(bin_width))
        for row in range(pooled_height):
            for column in range(pooled_width):
                total = torch.zeros(channels, dtype=maps.dtype)
                for i in range(down):
                    for j in range(across):
                        y = y1 + (row + (i + 0.5) / down) * bin_height
                        x = x1 + (column + (j + 0.5) / across) * bin_width
                        total = total + sample(maps[int(index)], y, x)
                output.append(total / max(down * across, 1))
    return torch.stack(output).view(len(rois), pooled_height, pooled_width, channels).permute(0, 3, 1, 2)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [2, -1])
def test_roi_align_equals_an_obvious_loop_in_outputs_and_gradients(ratio, aligned):
    random = np.random.default_rng(2)
    maps = torch.tensor(random.normal(size=(2, 3, 6, 9)), requires_grad=True)
    boxes = random_boxes(random, 7, 40.0).double()
    boxes[0] = torch.tensor([-30.0, -9.0, 80.0, 70.0])  # far over every border
    boxes[1, 2:] = boxes[1, :2]  # an empty box
    boxes[2] = torch.tensor([31.3, 17.3, 35.9, 23.9])  # in the last pixel
    rois = torch.cat([torch.tensor([0, 1, 1, 0, 0, 1, 1.0]).double()[:, None], boxes], dim=1)
    arguments = (rois, 0.25, 3, 2, ratio, aligned)
    weights = torch.tensor(random.normal(size=(7, 3, 3, 2)))

    def run(function):
        output = function(maps, *arguments)
        (gradient,) = torch.autograd.grad((output * weights).sum(), maps)
        return output.detach(), gradient

    expected = run(obvious_roi_align)
    for function in (torchvision_ops.roi_align, torch.ops.torchvision.roi_align):
        for ours, theirs in zip(run(function), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)  # double precision: rounding only


def test_roi_align_of_no_boxes_is_empty_and_has_gradients():
    maps = torch.ones(1, 2, 4, 4, requires_grad=True)
    output = torchvision.ops.roi_align(maps, [torch.zeros(0, 4)], (3, 3), sampling_ratio=2)
    assert output.shape == (0, 2, 3, 3)
    output.sum().backward()
    assert maps.grad is not None and maps.grad.abs().sum() == 0


@pytest.mark.slow
def test_torchvision_is_not_imported_before_a_detector_needs_it():
    code = "import sys, dimvl.regions.detectors; print('torchvision' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


@pytest.mark.slow
def test_importing_torchvision_leaves_torchs_compiler_usable():
    code = """
from dimvl.regions.detectors.torchvision_ops import import_torchvision
import_torchvision()
import torch
print(torch.compile(lambda value: value + 1, backend="eager")(torch.ones(1)).item())
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "2.0"


@pytest.mark.slow
def test_torchvision_loads_after_a_failed_import():
    code = """
try:
    import torchvision
except RuntimeError:
    pass  # where the compiled operators do not fit
from dimvl.regions.detectors.torchvision_ops import import_torchvision
import torch
print(import_torchvision().ops.nms(torch.tensor([[0.0, 0, 2, 2]]), torch.ones(1), 0.5).tolist())
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[0]"


@pytest.mark.slow
def test_no_operator_is_defined_before_torchvision_has_loaded_its_own(tmp_path):
    (tmp_path / "torchvision.py").write_text("""
import torch
assert not hasattr(torch.ops.torchvision, "nms"), "in compiled code, a second definition aborts the process"
library = torch.library.Library("torchvision", "DEF")  # releases name their compiled libraries differently
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
library.impl("nms", lambda dets, scores, iou_threshold: torch.tensor([7]), "CPU")
""")
    code = """
from dimvl.regions.detectors.torchvision_ops import import_torchvision
import torch
import_torchvision()
print(torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5).item())
"""
    places = os.pathsep.join([str(tmp_path), *sys.path])
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": places}
    )
    assert answer.stdout.strip() == "7", answer.stderr
