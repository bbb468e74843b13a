"""Trains concepts: each step draws images, pools the probabilities of their regions, and compares with their captions.

Deterministic by its seed on one device with one number of threads. Seven thousand images with a thousand words take a
few minutes on one core, so an interrupted training starts again.

Letters: B images, N regions of all of them, F feature width, W words.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dimvl.callbacks import Progress
from dimvl.concepts.config import ConceptTrainingConfig
from dimvl.concepts.data import LabelledImages
from dimvl.errors import NotFiniteError
from dimvl.regions.naming.concepts import ConceptNetwork
from dimvl.regions.store import feature_statistics


def new_network(images: LabelledImages, config: ConceptTrainingConfig, seed: int) -> ConceptNetwork:
    """Make a network that gives each image the rate of each word, nearly.

    Its statistics are those of the store's features. The bias of a word makes the pooled probability its rate among
    the images: with noisy-OR and R regions of an image, p = 1 - (1 - rate) ** (1 / R) in each.
    """
    store = images.store
    width = store.extractor.feature_width
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ConceptNetwork(width, images.num_words, config.pooling, config.hidden)
    mean, std = feature_statistics(store)
    network.mean = torch.from_numpy(mean)
    network.std = torch.from_numpy(std)
    network.start_at(images.rates(), float(store.num_regions(images.positions).mean()))
    return network


def train(
    images: LabelledImages,
    config: ConceptTrainingConfig,
    seed: int,
    device: torch.device | str,
    progress: Progress | None = None,
) -> ConceptNetwork:
    """Train a network.

    The loss is the binary cross entropy of the pooled probabilities, summed over words, averaged over images.

    Args:
        images: with their words.
        config: optimisation.
        seed: of weights, order and dropout.
        device: where to compute.
        progress: called with the steps done and in total.

    Raises:
        NotFiniteError: the loss is not finite.

    """
    network = new_network(images, config, seed).to(device)
    matrices = [weight for weight in network.parameters() if weight.ndim > 1]
    vectors = [weight for weight in network.parameters() if weight.ndim == 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)
    steps = steps_of(len(images), config)
    per_epoch = steps // config.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, _cosine(steps))
    generator = torch.Generator(device).manual_seed(seed)
    for step in range(steps):
        epoch, part = divmod(step, per_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(len(images))
        chosen = order[part * config.images_per_step : (part + 1) * config.images_per_step]
        features, num_regions = images.regions(chosen, device)
        features = _dropped(network.standardised(features), config.dropout, generator)
        present, absent = network.pooled(features, num_regions)
        labels = images.labels(chosen).to(device)
        loss = -torch.where(labels > 0, present, absent).sum() / len(chosen)
        if not math.isfinite(loss.item()):
            raise NotFiniteError(
                f"the loss is {loss.item()} in step {step + 1}; nothing is saved: lower training.learning_rate"
            )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, steps)
    return network.eval()


def steps_of(images: int, config: ConceptTrainingConfig) -> int:
    """Return the number of steps that a number of images take."""
    return config.epochs * math.ceil(images / config.images_per_step)


def _dropped(features: Tensor, share: float, generator: torch.Generator) -> Tensor:
    if not share:
        return features
    kept = torch.rand(features.shape, generator=generator, device=features.device) >= share
    return features * kept / (1 - share)


def _cosine(steps: int) -> Callable[[int], float]:
    return lambda step: (1 + math.cos(math.pi * step / steps)) / 2


@torch.inference_mode()
def probabilities(network: ConceptNetwork, images: LabelledImages) -> np.ndarray:
    """Return the pooled probability (I, W) float32 of each word in each image."""
    if not len(images):
        return np.zeros((0, images.num_words), np.float32)
    parts = np.array_split(np.arange(len(images)), max(1, math.ceil(len(images) / 64)))
    found = []
    for part in parts:
        features, num_regions = images.regions(part, network.mean.device)
        found.append(network.pooled(network.standardised(features), num_regions)[0].exp().cpu())
    return torch.cat(found).numpy()
