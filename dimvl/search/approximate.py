"""Approximate search by faiss: an inverted file (Sivic and Zisserman, ICCV 2003), of which a search scans few lists.

    approximate.lists    beside the parts of an index, a safetensors file: the arrays of `Lists`, and a `checksum` of
                         these and of the parts, so that lists are used only for the images they were made from

The file has no embeddings: they are copied from the parts into memory before the first search. Nothing is on disk
twice, and faiss reads no file, since its C++ reader trusts what it reads. Its results are scored as in an exact search.

N images, L lists, W width.
"""

import hashlib
import math
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dimvl.callbacks import Progress
from dimvl.errors import UserError
from dimvl.files import check_writable
from dimvl.files.weights import load_weights, save_weights
from dimvl.search.format import REMEDY, Manifest
from dimvl.search.index import ROUNDING, Found, ImageIndex

LISTS = "approximate.lists"
PROBES = 64
"""Lists that a search scans; of a million images, in 4,000 lists, about one in sixty."""
SAMPLE = 64
"""Images for each list by which k-means finds the centres; faiss warns below 39."""

SPARE = 64
"""Images that faiss finds beyond twice those that are wanted; where more are equal but for rounding, it finds all."""


class Lists(NamedTuple):
    """The lists of an index: each image is in the list of the centre with the highest product.

    Attributes:
        centres: (L, W) float32 of unit length.
        numbers: (N,) int64 list of each image.

    """

    centres: Tensor
    numbers: Tensor


class ApproximateIndex(ImageIndex):
    """An index that compares only the images of the lists nearest to a query, and so may miss some of the best.

    Args:
        path: folder of the index.
        probes: number of lists that a search scans; with all of them, it is exact.

    Attributes:
        lists: those in the folder; None if it has none of just these images. `make_lists` or the first search makes
            them.

    Raises:
        UserError: as `ImageIndex`, or faiss is not installed.

    """

    def __init__(self, path: Path, probes: int = PROBES) -> None:
        try:
            import faiss
        except ImportError:
            raise UserError("approximate search needs faiss-cpu; pip install 'dimvl[faiss]'") from None
        super().__init__(path)
        self._faiss: Any = faiss
        self._probes = probes
        self.lists = _read(path / LISTS, self.manifest)

    def make_lists(self, progress: Progress | None = None) -> Lists:
        """Sort the images into lists, and write these to the folder, in place of others.

        Args:
            progress: called with (images done, images in total); k-means comes before the first image.

        Raises:
            UserError: the folder cannot be written.

        """
        progress = progress or (lambda done, total: None)
        check_writable(self.path)
        progress(0, len(self))
        self._faiss.omp_set_num_threads(torch.get_num_threads())
        number = min(len(self), 4 * math.isqrt(len(self)))  # as the guidelines of faiss say
        chosen = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[: SAMPLE * number].sort().values
        sample = torch.cat([part.embeddings[places] for part, places in self._places(chosen)])
        sizes = {"min_points_per_centroid": 1, "max_points_per_centroid": SAMPLE}
        kmeans = self._faiss.Kmeans(self.manifest.width, number, niter=10, spherical=True, seed=0, **sizes)
        kmeans.train(sample.numpy())
        numbers = []
        for (_, end), part in self._spans():
            numbers.append(torch.from_numpy(kmeans.assign(part.embeddings.numpy())[1]))
            progress(end, len(self))
        self.lists = Lists(torch.from_numpy(kmeans.centroids), torch.cat(numbers))
        arrays = self.lists._asdict()
        save_weights(self.path / LISTS, {**arrays, "checksum": _checksum(self.manifest, arrays)})
        return self.lists

    def _search(self, queries: Tensor, count: int) -> list[Found]:
        return [self._best(query, self._near(query[None].numpy(), count), count) for query in queries]

    def _near(self, query: np.ndarray, count: int) -> Tensor:
        """Return ascending positions of images that may be among the best `count` of the lists nearest to a query.

        Lists with fewer than `count` images are not enough.
        """
        inverted, probes = self._inverted, self._probes
        while True:
            scanned = self._faiss.SearchParametersIVF(nprobe=min(probes, inverted.nlist))
            products, positions = (rows[0] for rows in inverted.search(query, 2 * count + SPARE, params=scanned))
            enough = float(products[count - 1]) - ROUNDING  # so that ties and order are those of an exact search
            if products[-1] >= enough:
                positions = inverted.range_search(query, enough, params=scanned)[2]
            positions = positions[positions >= 0]  # -1 where the lists have fewer images
            if len(positions) >= count or probes >= inverted.nlist:
                return torch.from_numpy(positions).sort().values
            probes *= 2

    @cached_property
    def _inverted(self) -> Any:
        """The inverted file of faiss, filled from the parts."""
        faiss, width = self._faiss, self.manifest.width
        faiss.omp_set_num_threads(torch.get_num_threads())
        centres, numbers = self.lists or self.make_lists()
        quantiser = faiss.IndexFlatIP(width)
        quantiser.add(centres.numpy())
        inverted = faiss.IndexIVFFlat(quantiser, width, len(centres), faiss.METRIC_INNER_PRODUCT)
        inverted.is_trained = True
        for (start, end), part in self._spans():
            arrays = part.embeddings.numpy(), np.arange(start, end), numbers[start:end].numpy()
            inverted.add_core(end - start, *map(faiss.swig_ptr, arrays))
        return inverted


def _read(file: Path, manifest: Manifest) -> Lists | None:
    """Read the lists of just the images of a manifest; None if there are none, or they are damaged."""
    with suppress(UserError):
        arrays = load_weights(file, REMEDY)
        checksum = arrays.pop("checksum", torch.zeros(0))
        if arrays.keys() == {*Lists._fields} and torch.equal(checksum, _checksum(manifest, arrays)):
            centres, numbers = lists = Lists(**arrays)
            forms = [(torch.float32, (len(centres), manifest.width)), (torch.int64, (manifest.num_images,))]
            whole = [(array.dtype, array.shape) for array in lists] == forms
            if whole and 0 <= numbers.min() <= numbers.max() < len(centres):  # faiss does not check them
                return lists
    return None


def _checksum(manifest: Manifest, arrays: dict[str, Tensor]) -> Tensor:
    """SHA-256 (32,) uint8 of arrays, their names, types and shapes, and of the parts of an index."""
    digest = hashlib.sha256("".join(part.content.sha256 for part in manifest.parts).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().data)
    return torch.from_numpy(np.frombuffer(digest.digest(), dtype=np.uint8).copy())
