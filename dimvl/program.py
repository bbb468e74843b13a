"""Programs: what an ability computes for one prefix and one text, as files that torch or onnxruntime run without dimvl.

A program (`.pt2` of `torch.export`, or `.onnx`) has embeddings, encoder and head with their weights, and takes any
number of regions, tags and words. It computes what the model does, in a plainer way: attention is one call over all
rows, and a caption is computed anew for each of its words. A folder of programs has

answer.pt2, answer.onnx    a program for each ability
program.json               inputs, outputs, labels, limits, tolerance, fingerprints
tokenizer.json             how texts are split into word pieces
checksums.json             of these files

Letters: N rows, R regions, C context rows, T text rows, F region feature, D width, H heads, E head width, W word pieces
of the names of a region, P learned keys.
"""

import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import dimvl
from dimvl.callbacks import Progress
from dimvl.data.prefixes import Prefix, best_regions, join_images, make_prefix
from dimvl.data.processor import Processor
from dimvl.data.tags import RegionWords
from dimvl.errors import UserError
from dimvl.files import atomic_folder, seal_folder, write_json
from dimvl.regions.records import Regions
from dimvl.tasks import abilities_of
from dimvl.tasks.task import Forward, PairRows
from dimvl.trained_model import TrainedModel, load_model

FILE = "program.json"
PT2, ONNX = ".pt2", ".onnx"
TOLERANCE = 1e-4
"""Largest difference to the model, absolute or, of outputs above 1, relative."""
LAYOUTS = 50
"""Random inputs on which each program is compared with the model."""
INPUTS = {
    "features": ("float32", ("regions", "features"), "features of the regions, best region first"),
    "boxes": ("float32", ("regions", 4), "x1, y1, x2, y2 as fractions of the width and height of the image, y down"),
    "image_index": ("int64", ("regions",), "which image each region is of, ascending from 0; 0 for one image"),
    "times": ("float32", ("regions",), "seconds of the image of each region; 0 if they are not known"),
    "name_words": ("int64", ("regions", "pieces"), "word pieces of the names of each region, filled up with 0"),
    "name_weights": ("float32", ("regions", "pieces"), "their weights, of sum 1 for a region with names; 0 elsewhere"),
    "tags": ("int64", ("tags",), "word pieces of the names of all regions, best first; [SEP] between two images"),
    "words": ("int64", ("words",), "word pieces of the text, of a caption those written so far; no special tokens"),
}
"""Inputs by name: dtype, shape and meaning. A model has some of them."""
Case = tuple[dict[str, np.ndarray], Sequence[Tensor]]
"""Inputs, and the outputs that are expected of them."""


class Program(nn.Module):
    """The function of a program.

    Args:
        trained: the model, whose weights are shared.
        what: what is computed.

    """

    context_start: Tensor
    context_end: Tensor
    text_token: Tensor
    never: Tensor

    def __init__(self, trained: TrainedModel, what: Forward) -> None:
        super().__init__()
        model, processor, tokenizer = trained.model, trained.processor, trained.processor.tokenizer
        self.what = what
        self.regions = None if what.takes == "text" else model.regions
        self.tokens, self.encoder, self.head = model.tokens, model.encoder, getattr(model, what.head)
        self.is_causal = what.next_word or (what.takes == "pair" and processor.shared_prefix)
        self.has_start = what.next_word and processor.variant == "causal"
        self.text_position = processor.text_start + (not self.has_start)
        last = tokenizer.mask if what.next_word else tokenizer.sep
        self.register_buffer("context_start", torch.tensor([tokenizer.cls]))
        self.register_buffer("context_end", torch.tensor([tokenizer.sep, *(-1 - np.arange(processor.prompt))]))
        self.register_buffer("text_token", torch.tensor([tokenizer.cls if self.has_start else last]))
        if what.next_word:
            self.register_buffer("never", torch.zeros(len(tokenizer)))
            self.never[tokenizer.unwritten_ids] = float("-inf")

    def forward(
        self,
        features: Tensor | None = None,
        boxes: Tensor | None = None,
        image_index: Tensor | None = None,
        times: Tensor | None = None,
        name_words: Tensor | None = None,
        name_weights: Tensor | None = None,
        tags: Tensor | None = None,
        words: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Compute the outputs; `INPUTS` has shapes, and `program.json` which inputs a program has."""
        context = text = self.context_start[:0]
        if self.what.takes != "text":
            context = torch.cat([self.context_start, *([] if tags is None else [tags]), self.context_end])
        if words is not None:
            text = torch.cat([self.text_token, words] if self.has_start else [words, self.text_token])
        parts = [self._tokens(context, 0, 0), self._tokens(text, self.text_position, 1)]
        if self.regions is not None and features is not None:
            assert boxes is not None and image_index is not None
            names = self._names(name_words, name_weights)
            hidden = torch.zeros_like(image_index, dtype=torch.bool)
            geometry = _geometry(boxes)
            parts.insert(0, self.regions(features, None, geometry, hidden, image_index, times, *names))
        num_regions = 0 if features is None else features.shape[0]
        rows, counts = torch.cat(parts), [num_regions, context.shape[0], text.shape[0]]
        mask = self._mask(rows.shape[0], num_regions + context.shape[0]) if self.is_causal else None
        encoded = self.encoder.attending(rows, num_regions, lambda q, k, v: _attend(q, k, v, mask))
        own_regions, own_context, own_text = encoded.split(counts)
        start = own_context[:1]
        outputs = self.what.outputs(
            self.head, PairRows(own_regions, start, own_text, own_text[-1:] if self.is_causal else start)
        )
        return (outputs[0] + self.never,) if self.what.next_word else outputs

    def _tokens(self, ids: Tensor, position: int, segment: int) -> Tensor:
        """(C,) or (T,) -> (C, D) or (T, D)."""
        positions = position + torch.arange(ids.shape[0], device=ids.device)
        return self.tokens(ids, positions, torch.full_like(ids, segment))

    def _names(self, words: Tensor | None, weights: Tensor | None) -> tuple[Tensor, ...]:
        """(R, W) twice -> mean embedding of the words of each region (R, D), and which have any (R,)."""
        if words is None or weights is None:
            return ()
        embedded = self.tokens.word(words.flatten()).unflatten(0, words.shape)
        return (embedded * weights[:, :, None]).sum(dim=1), weights.sum(dim=1) > 0

    def _mask(self, num_rows: int, num_prefix: int) -> Tensor:
        """(N, N + P) bool: the prefix sees itself, the text the prefix and its own past, and all see learned keys."""
        places = torch.arange(num_rows, device=self.context_start.device)
        seen = places <= places.clamp(min=num_prefix - 1)[:, None]
        return torch.cat([seen, seen.new_ones(num_rows, self.encoder.learned)], dim=1)


def _geometry(boxes: Tensor) -> Tensor:
    """As `dimvl.regions.geometry.geometry_features`."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return torch.cat([boxes, sides, sides[:, :1] * sides[:, 1:]], dim=1)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """(N, H, E), twice (N + P, H, E), (N, N + P) -> (N, H, E)."""
    q, k, v = (rows.transpose(0, 1)[None] for rows in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[0].transpose(0, 1)


def forwards_of(processor: Processor) -> dict[Forward, list[str]]:
    """Return what a model can compute as programs, and the verbs of the abilities that each is for."""
    found: dict[Forward, list[str]] = {}
    for verb, ability in abilities_of(processor).items():
        if ability.forward is not None and ability.forward.available(processor):
            found.setdefault(ability.forward, []).append(verb)
    return found


def image_arrays(processor: Processor, *images: Regions, times: Sequence[float] | None = None) -> dict[str, np.ndarray]:
    """Return the inputs of programs for the regions of one or several images, in order, with the seconds of each.

    Raises:
        UserError: the regions are not those of the model's extractor.

    """
    best = [best_regions(regions.checked(processor.extractor), processor.max_regions) for regions in images]
    seconds = (times or [0.0] * len(images)) if processor.times else None
    return arrays_of(processor, make_prefix(join_images(best, seconds), processor.tags))


def arrays_of(processor: Processor, prefix: Prefix | None, words: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Return the inputs of a program for a prefix and the token ids of words; `INPUTS` has dtypes and shapes."""
    arrays = {} if words is None else {"words": words}
    if prefix is None:
        return arrays
    if processor.max_regions:
        numbers = prefix.features.astype(np.float32)
        arrays["features"] = numbers if prefix.feature_scales is None else numbers * prefix.feature_scales
        arrays |= {"boxes": prefix.boxes, "image_index": prefix.image_index}
        if prefix.times is not None:
            arrays["times"] = prefix.times
        if prefix.words is not None:
            counts = prefix.words.counts
            filled = np.arange(counts.max(initial=1)) < counts[:, None]
            for name, own in (("name_words", prefix.words.token_ids), ("name_weights", prefix.words.weights)):
                arrays[name] = np.zeros(filled.shape, own.dtype)
                arrays[name][filled] = own
    if processor.tag_tokens:
        arrays["tags"] = prefix.context[1 : len(prefix.context) - 1 - processor.prompt]
    return arrays


def write_programs(
    source: Path, out: Path, program: bool = True, onnx: bool = False, progress: Progress | None = None
) -> dict[str, float]:
    """Write a program for everything that a model does, and compare each file with the model on random inputs.

    Args:
        source: an export, or a run, whose best checkpoint (without validation the newest) is taken.
        out: folder to write, which must not exist; it appears complete.
        program: whether to write programs of `torch.export`.
        onnx: whether to write ONNX files.
        progress: called with (programs written, programs in total).

    Returns:
        The largest difference of each file, as `TOLERANCE` counts it.

    Raises:
        UserError: `source` is neither, `out` exists, the model has no such program, packages are missing, or a file
            does not compute what the model does.

    """
    trained = load_model(source)
    if onnx:
        _check_onnx()
    if out.exists():
        raise UserError(f"{out} exists; choose a new folder for the programs, or remove it")
    forwards = forwards_of(trained.processor)
    if not forwards:
        raise UserError(f"nothing that {source} does can be a program; predict with dimvl, or give another model")
    endings = [PT2] * program + [ONNX] * onnx
    described, differences = {}, dict[str, float]()
    with atomic_folder(out) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about its own parts
        for place, (what, verbs) in enumerate(forwards.items()):
            exported = trace(trained, what)
            pairs = [random_pair(trained, what, np.random.default_rng(seed)) for seed in range(LAYOUTS)]
            cases = [(arrays_of(trained.processor, *pair), what.eager(trained, *pair)) for pair in pairs]
            own = {
                name: _write(folder / name, what, exported, cases)
                for name in (what.name + ending for ending in endings)
            }
            described[what.name] = _described(trained.processor, what, verbs, [*cases[0][0]], own)
            differences |= own
            if progress is not None:
                progress(place + 1, len(forwards))
        trained.processor.tokenizer.save(folder)
        write_json(folder / FILE, _description(trained, described))
        seal_folder(folder, sorted(file.name for file in folder.iterdir()))
    return differences


def trace(trained: TrainedModel, what: Forward) -> ExportedProgram:
    """Export a program with free numbers of regions, tags, words and word pieces of names."""
    processor, example = trained.processor, random_pair(trained, what, np.random.default_rng(0), full=True)
    most = {**_limits(processor), "pieces": 2**20}
    free = {name: Dim(name, min=0, max=max(2, limit)) for name, limit in most.items() if name != "images"}
    arrays = arrays_of(processor, *example)
    shapes = {name: {axis: free[size] for axis, size in enumerate(INPUTS[name][1]) if size in free} for name in arrays}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    exported = torch.export.export(Program(trained, what).eval(), (), tensors, dynamic_shapes=shapes)
    for node in exported.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return exported


def _write(
    path: Path,
    what: Forward,
    exported: ExportedProgram,
    cases: Sequence[tuple[dict[str, np.ndarray], Sequence[Tensor]]],
) -> float:
    """Write a program by the ending of its name; return the largest difference to the outputs expected of inputs.

    Raises:
        UserError: it is above the tolerance.

    """
    if path.suffix == PT2:
        torch.export.save(exported, path)
        module = torch.export.load(path).module()

        def run(arrays: dict[str, np.ndarray]) -> list[Tensor]:
            return list(module(**{name: torch.from_numpy(array) for name, array in arrays.items()}))
    else:
        import onnxruntime

        names = list(what.meanings)
        torch.onnx.export(exported, output_names=names, dynamo=True, verbose=False).save(path)  # type: ignore[union-attr]
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

        def run(arrays: dict[str, np.ndarray]) -> list[Tensor]:
            return [torch.from_numpy(output) for output in session.run(names, arrays)]

    worst = max(difference(expected, run(arrays)) for arrays, expected in cases)
    if not worst <= TOLERANCE:
        raise UserError(
            f"{path.name} differs from the model by {worst:.2g} on random inputs, more than {TOLERANCE}; use another "
            "version of torch or onnxruntime, and report this"
        )
    return worst


def difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return the largest difference of outputs, relative where they are above 1; infinite if their shapes differ."""
    worst = 0.0
    for one, other in zip(expected, found, strict=True):
        if one.shape != other.shape:
            return float("inf")
        apart = torch.where(one == other, 0.0, (one - other).abs() / one.abs().clamp(min=1))  # -inf equals -inf
        worst = max([worst, *apart.detach().flatten().nan_to_num(nan=float("inf")).tolist()])
    return worst


def random_pair(
    trained: TrainedModel, what: Forward, generator: np.random.Generator, full: bool = False
) -> tuple[Prefix | None, np.ndarray | None]:
    """Draw a prefix and a text of random lengths, possibly of no region, tag or name; `full`: of the greatest ones."""
    processor, ordinary = trained.processor, trained.processor.tokenizer.ordinary_ids

    def length(most: int, least: int = 0) -> int:
        return most if full else int(generator.integers(least, most, endpoint=True))

    words = generator.choice(ordinary, length(processor.text_tokens, 0 if what.next_word else 1))
    count = length(processor.max_regions * processor.max_images)
    mean, std = (buffer.numpy() for buffer in (trained.model.regions.feature_mean, trained.model.regions.feature_std))
    corners = generator.random((count, 2, 2), dtype=np.float32)
    counts = generator.integers(0, 6, count)
    pieces = generator.choice(ordinary, counts.sum())
    soft, tokenizer = -1 - np.arange(processor.prompt), processor.tokenizer
    tags = generator.choice(ordinary, length(processor.tag_tokens))
    prefix = Prefix(
        features=(generator.normal(size=(count, len(mean))) * std + mean).astype(np.float32),
        boxes=np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1),
        image_index=np.sort(generator.integers(0, processor.max_images, count)),
        hidden=np.zeros(count, bool),
        context=np.concatenate([[tokenizer.cls], tags, [tokenizer.sep], soft]).astype(np.int64),
        times=np.sort(generator.random(count, dtype=np.float32) * 60) if processor.times else None,
        words=RegionWords(pieces, np.repeat(1 / np.maximum(counts, 1), counts).astype(np.float32), counts)
        if processor.region_words
        else None,
    )
    return None if what.takes == "text" else prefix, None if what.takes == "prefix" else words


def _limits(processor: Processor) -> dict[str, int]:
    return {
        "images": processor.max_images,
        "regions": processor.max_regions * processor.max_images,
        "tags": processor.tag_tokens,
        "words": processor.text_tokens,
    }


def _described(
    processor: Processor, what: Forward, verbs: Sequence[str], names: Sequence[str], files: Mapping[str, float]
) -> dict[str, Any]:
    """Return the description of a program with these inputs."""
    inputs, width = [], processor.extractor.feature_width
    for name in names:
        dtype, shape, meaning = INPUTS[name]
        sizes = [width if size == "features" else size for size in shape]
        inputs.append({"name": name, "dtype": dtype, "shape": sizes, "meaning": meaning})
    outputs = [{"name": name, "dtype": "float32", "meaning": meaning} for name, meaning in what.meanings.items()]
    described = {"for": verbs, "largest_difference": files, "inputs": inputs, "outputs": outputs}
    return {**described, "labels": what.labels(processor)}


def _description(trained: TrainedModel, programs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of `program.json`."""
    processor = trained.processor
    return {
        "programs": programs,
        "limits": {**_limits(processor), "regions_of_an_image": processor.max_regions},
        "tolerance": {"largest_difference": TOLERANCE, "random_inputs": LAYOUTS},
        "extractor": {"name": processor.extractor.name, "fingerprint": processor.extractor.fingerprint},
        "weights_sha256": trained.weights_sha256,
        "versions": {"dimvl": dimvl.__version__, "torch": torch.__version__},
    }


def _check_onnx() -> None:
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        raise UserError(f"--onnx needs the package {missing[0]}, which is not installed; pip install 'dimvl[onnx]'")
