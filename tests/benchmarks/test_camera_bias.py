"""How much of the camera is in an embedding: tools/benchmarks/camera_bias.py."""

import numpy as np
import pytest
import torch

from benchmarks import camera_bias


def test_camera_accuracy_by_hand():
    """The probe misses the 4 of 80 images that look like another camera, and nothing else."""
    rng = np.random.default_rng(0)
    camids = rng.permutation(np.repeat([0, 1, 2], [20, 20, 40]))
    features = 10 * np.eye(3)[camids] + 0.01 * rng.normal(size=(80, 3))
    assert camera_bias.camera_accuracy(torch.from_numpy(features), camids) == (1.0, 0.5)
    strange = np.flatnonzero(camids == 1)[-4:]  # one of five blocks
    features[strange] = features[np.flatnonzero(camids == 0)[:4]]
    found, largest = camera_bias.camera_accuracy(torch.from_numpy(features), camids)
    assert found == pytest.approx(76 / 80) and largest == 0.5
    noise = torch.from_numpy(rng.normal(size=(80, 3)))
    assert camera_bias.camera_accuracy(noise, camids)[0] < 0.65
    for few in (np.zeros(80, int), np.repeat([0, 1], [76, 4])):
        with pytest.raises(ValueError, match="two cameras of 5 images"):
            camera_bias.camera_accuracy(noise, few)


def test_the_camera_specific_part_is_the_masked_map():
    model = torch.nn.Module()
    model.device, model.backbone = torch.device("cpu"), torch.nn.Conv2d(3, 4, 2)
    model.preprocess_image = lambda batch: batch["images"] / 255
    model.heads = torch.nn.Module()
    model.heads.mask = torch.sigmoid
    images = torch.randint(256, (2, 3, 6, 4), generator=torch.Generator().manual_seed(1)).float()
    with torch.no_grad():
        found = camera_bias.CameraSpecific(model)({"images": images, "camids": None})
        maps = model.backbone(images / 255).tolist()
    for image in range(2):
        for channel in range(4):
            values = [v for row in maps[image][channel] for v in row]
            expected = np.mean([v / (1 + np.exp(-v)) for v in values])
            assert found[image, channel].item() == pytest.approx(expected, rel=1e-4)
