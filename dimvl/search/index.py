"""An index of images opened for search.

N images, of which a part has P; Q queries; W width; K results.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dimvl.errors import UserError
from dimvl.regions.store.format import encode_id
from dimvl.search.format import MANIFEST, UNIT, Part, check_parts, quantise, read_manifest, read_part

QUERIES_AT_ONCE = 16
ROUNDING = 1e-4
"""More than float32, and lengths that differ from 1 by up to `UNIT`, change a bound."""


class Found(NamedTuple):
    """The best images for a query, best first.

    Attributes:
        positions: (K,) int64 in the index.
        scores: (K,) float32 products with the query.

    """

    positions: Tensor
    scores: Tensor


class ImageIndex:
    """The embedded images of a region store, in the order of embedding.

    Args:
        path: folder of the index.

    Attributes:
        manifest: what the index contains.
        parts: its memory-mapped parts.

    Raises:
        UserError: the folder is not an index, is damaged, or has no images.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_manifest(path)
        if not self.manifest.parts:
            raise UserError(f"{path / MANIFEST} has no images; give a region store with images to `dimvl index`")
        check_parts(path, self.manifest)
        self.parts = [read_part(path, self.manifest, entry) for entry in self.manifest.parts]
        self._ends = torch.tensor([part.num_images for part in self.manifest.parts]).cumsum(0)

    def __len__(self) -> int:
        """Return the number of images."""
        return self.manifest.num_images

    def image_id(self, position: int) -> str:
        """Id of an image."""
        part, place = self._place(position)
        return part.image_id(place)

    def embedding(self, position: int) -> Tensor:
        """Embedding (W,) of an image."""
        part, place = self._place(position)
        return part.embeddings[place]

    def checksum(self, position: int) -> int:
        """Checksum of the regions of an image, as the store had them."""
        part, place = self._place(position)
        return int(part.checksums[place])

    def find(self, image_id: str) -> int | None:
        """Position of an image by its id; None if the index lacks it."""
        wanted = torch.tensor(list(encode_id(image_id)), dtype=torch.uint8)
        for (start, _), part in self._spans():
            lengths = part.id_ends.diff(prepend=torch.zeros(1, dtype=torch.int64))
            places = (lengths == len(wanted)).nonzero()[:, 0]
            ids = part.ids[part.id_ends[places, None] - len(wanted) + torch.arange(len(wanted))]
            if len(same := places[(ids == wanted).all(1)]):
                return start + int(same[0])
        return None

    def search(self, queries: Tensor, count: int) -> list[Found]:
        """Find the `count` images with the highest products for each query (Q, W) of unit length.

        The result is that of comparing all embeddings: products in float64, rounded to float32; of equal ones, the
        image that is first in the index comes first. Only images whose codes allow it are compared.

        Raises:
            UserError: the index has fewer images.

        """
        assert (queries.norm(dim=1) - 1).abs().lt(UNIT).all(), "bounds hold for unit length"
        if not 1 <= count <= len(self):
            raise UserError(f"{count} images are asked for but {self.path} has {len(self)}; ask for 1 to {len(self)}")
        return [
            found for some in queries.split(QUERIES_AT_ONCE) for found in self._search(some.float().contiguous(), count)
        ]

    def _search(self, queries: Tensor, count: int) -> list[Found]:
        """Do what `search` does for a few queries.

        The product of query and embedding is that of their codes, and an error of at most the error of the embedding
        plus that of the query times the length of the coded embedding. An image whose upper bound is below the
        `count`-th highest lower bound is not among the best.
        """
        codes, scales, errors = quantise(queries)
        reach, base = 1 + errors, errors + ROUNDING  # the bounds are reach * error + base from the product of the codes
        candidates = [_Candidates(count) for _ in queries]
        for (start, _), part in self._spans():
            # In units of the query's scale, which leaves one product less for each image
            upper = products(codes, part.codes).mul_(part.scales).addcmul_(part.errors, (reach / scales)[:, None])
            bars = torch.tensor([own.bar for own in candidates])
            found = upper >= ((bars - base) / scales)[:, None]
            places = found.nonzero()[:, 1].split(found.sum(1).tolist())
            for number, own in enumerate(places):
                if len(own):
                    highest = upper[number, own] * scales[number] + base[number]
                    slack = reach[number] * part.errors[own] + base[number]
                    candidates[number].add(start + own, highest, highest - 2 * slack)
        pairs = zip(queries, candidates, strict=True)
        return [self._best(query, own.positions(), count) for query, own in pairs]

    def _best(self, query: Tensor, positions: Tensor, count: int) -> Found:
        """Compare embeddings at ascending positions with a query in full."""
        exact = query.double()
        scores = [(part.embeddings[own].double() @ exact).float() for part, own in self._places(positions)]
        best = torch.sort(torch.cat(scores), descending=True, stable=True)
        return Found(positions[best.indices[:count]], best.values[:count])

    def _places(self, positions: Tensor) -> Iterator[tuple[Part, Tensor]]:
        """Yield the parts that have some of the ascending positions, with the places of these in them."""
        counts = torch.searchsorted(positions, self._ends).diff(prepend=torch.zeros(1, dtype=torch.int64))
        for ((start, _), part), own in zip(self._spans(), positions.split(counts.tolist()), strict=True):
            if len(own):
                yield part, own - start

    def _spans(self) -> Iterator[tuple[tuple[int, int], Part]]:
        """Yield each part with the positions at which it starts and ends."""
        ends = self._ends.tolist()
        return zip(zip([0, *ends], ends, strict=False), self.parts, strict=True)

    def _place(self, position: int) -> tuple[Part, int]:
        number = int(torch.searchsorted(self._ends, position, right=True))
        return self.parts[number], position - (int(self._ends[number - 1]) if number else 0)


class _Candidates:
    """Images that may be among the best for one query.

    Args:
        count: number of images to find.

    Attributes:
        bar: the `count`-th highest lower bound so far; images with upper bounds below it are not among the best.

    """

    def __init__(self, count: int) -> None:
        self.bar = -torch.inf
        self._count, self._highest = count, torch.zeros(0)
        self._found: list[tuple[Tensor, Tensor]] = []

    def add(self, positions: Tensor, upper: Tensor, lower: Tensor) -> None:
        """Add images (M,) with bounds of their products."""
        self._found.append((positions, upper))
        highest = torch.cat([self._highest, lower])
        self._highest = highest.topk(min(self._count, len(highest)), sorted=False).values
        if len(self._highest) == self._count:
            self.bar = self._highest.min().item()

    def positions(self) -> Tensor:
        """Return the images that may still be among the best."""
        positions, upper = (torch.cat(column) for column in zip(*self._found, strict=True))
        return positions[upper >= self.bar]


def products(queries: Tensor, codes: Tensor) -> Tensor:
    """Products (Q, P) float32 of int8 codes (Q, W) and (P, W).

    Where the CPU lacks instructions for it, oneDNN may cut sums of int8 products off at 16 bits; float32 is exact.
    oneDNN copies its second operand into an order of its own first, so that is the smaller one, the queries.
    """
    if torch.cpu._is_vnni_supported():
        return torch._int_mm(codes, queries.T.contiguous()).T.float()
    return queries.float() @ codes.float().T
