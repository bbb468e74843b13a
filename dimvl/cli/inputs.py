"""The images of the commands caption, answer and match: files and folders, or the regions of a store.

A group is the images of one input; its requests are the texts or questions about it, or one caption. Groups are
processed as soon as the regions of all their images are there.
"""

import os
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dimvl.cli.app import input_folder, print_text, set_threads, some_exist
from dimvl.errors import UserError
from dimvl.files import is_url
from dimvl.progress import progress
from dimvl.showing import counted, with_others

if TYPE_CHECKING:
    from dimvl.image_inputs import Input
    from dimvl.predictor import Predictor
    from dimvl.regions.listing import PassedOver
    from dimvl.regions.records import Regions
    from dimvl.regions.store import RegionStore

Stores = Annotated[
    list[Path] | None,
    typer.Option(
        "--regions",
        parser=input_folder,
        metavar="STORE",
        help="Region store to use in place of image files; repeat it to use several as one.",
    ),
]
Ids = Annotated[
    list[str] | None,
    typer.Option("--images", metavar="ID", help="Image of the region store; repeatable. By default all its images."),
]
Together = Annotated[bool, typer.Option("--together", help="Treat the images as one input, in order.")]
Videos = Annotated[
    bool, typer.Option("--videos", help="Treat the frames that `dimvl frames` wrote as one input for each video.")
]
Group = tuple[str, ...]
"""The images of one input: files, or ids in a region store."""
Groups = Mapping[Group, Sequence[Any]]
"""Groups with their requests."""


class Images:
    """The images that a command line names.

    Args:
        paths: image files, their addresses on the web, and folders of images.
        stores: region stores to use in place of them.
        ids: images of the stores; empty for all.

    Attributes:
        store: the stores as one; None for image files.
        names: files or ids.
        named: those that the command line names itself, not by a folder or a whole store.
        passed: what folders have beside images.

    Raises:
        UserError: no images, a store that lacks one, or arguments that do not fit together.

    """

    def __init__(self, paths: Sequence[Path | str], stores: Sequence[Path] | None, ids: Sequence[str] | None) -> None:
        from dimvl.regions.listing import PassedOver

        self.store = _open_store(stores) if stores else None
        self.passed = PassedOver()
        if self.store is None:
            if ids:
                raise UserError("--images names images of a region store; give --regions too, or image files instead")
            self.names = list(map(str, _image_files(paths, self.passed)))
            self.named: Sequence[str] = [str(path) for path in paths if not os.path.isdir(path)]
            return
        if paths:
            raise UserError(f"{paths[0]} and --regions both give images; name images of the store by --images")
        if not len(self.store):
            raise UserError(f"region store {self.store.path} has no images; give another")
        self.named = ids or []
        self.check(self.named)
        self.names = list(ids or map(self.store.image_id, range(len(self.store))))

    def check(self, names: Collection[str]) -> None:
        """Refuse ids that the store lacks."""
        if self.store is not None and (lacking := [name for name in names if name not in self.store]):
            raise UserError(
                f"region store {self.store.path} lacks image {with_others(lacking[0], len(lacking))}; name "
                f"images as the store does, such as {self.store.image_id(0)!r}"
            )

    def groups(self, requests: Sequence[Any], together: bool = False) -> Groups:
        """Return each image once, or all of them together, with the same requests."""
        return dict.fromkeys([tuple(self.names)] if together else [(name,) for name in self.names], requests)

    def videos(self, mixed: bool = False) -> dict[str, tuple[Group, tuple[float, ...]]]:
        """Return the frames of each video among the images, and their times.

        Raises:
            UserError: an image is not a frame, unless they may be mixed.

        """
        from dimvl.regions.frames import videos_of
        from dimvl.regions.listing import id_of_name

        by_id = {name if self.store is not None else id_of_name(Path(name).name): name for name in self.names}
        found = videos_of(by_id)
        others = len(by_id) - sum(len(frames) for frames, _ in found.values())
        if others and not mixed:
            raise UserError(
                f"{counted(others, 'image')} of {len(by_id)} are not frames of a video; give those that `dimvl frames` "
                "wrote, or omit --videos"
            )
        return {video: (tuple(by_id[frame] for frame in frames), times) for video, (frames, times) in found.items()}

    def is_single(self, groups: Groups) -> bool:
        """Return whether the command line names one input and gives one request, whose result is printed alone."""
        return [len(requests) for requests in groups.values()] == [1] and {*next(iter(groups))} <= {*self.named}

    def single(self, predictor: "Predictor", groups: Groups) -> "Input":
        """Return the only input."""
        [group] = groups
        if self.store is None:
            return tuple(map(_file, group))
        return tuple(regions for part in predictor.regions_of_store(self.store, group) for regions in part)

    @contextmanager
    def regions(
        self, predictor: "Predictor", groups: Groups, left_out: str = ""
    ) -> Iterator[Iterator[dict[Group, tuple["Regions", ...]]]]:
        """Yield groups as the regions of their images are ready; afterwards, report what was left out.

        Progress is shown unless results go to the same terminal. What was left out sets the exit code.

        Args:
            predictor: the model.
            groups: the groups and their requests.
            left_out: what requests without a result are called, to count them.

        """
        names = list({name: None for group in groups for name in group})
        skipped: list[tuple[Path | str, str]] = []
        with nullcontext() if sys.stdout.isatty() else progress("images") as shown:
            if self.store is None:
                yield _complete(predictor.regions_of_files(list(map(_file, names)), skipped, shown), groups)
            else:
                yield _complete(predictor.regions_of_store(self.store, names, shown), groups)
        lost = {str(path) for path, _ in skipped}
        without = sum(len(requests) for group, requests in groups.items() if lost & {*group})
        counts = f"{counted(len(names) - len(skipped), 'image')} done, {len(skipped)} skipped"
        print_text(counts + (f", {without} {left_out} left out" if left_out and without else ""), error=True)
        self.report(skipped=lost)

    def report(self, skipped: Collection[str] = ()) -> None:
        """Say what folders have beside images; set the exit code if an image was skipped or a folder has folders."""
        if str(self.passed):
            print_text(str(self.passed), error=True)
        if skipped or self.passed.left_out:
            raise typer.Exit(2 if {*skipped} & {*self.named} else 1)


def _complete(
    batches: Iterator[list["Regions"]], groups: Collection[Group]
) -> Iterator[dict[Group, tuple["Regions", ...]]]:
    """Yield groups of images when the regions of all are found; only regions that later groups need are kept."""
    order = {name: place for place, name in enumerate({name: None for group in groups for name in group})}
    uses, by_last = Counter(name for group in groups for name in group), defaultdict(list)
    kept: dict[str, Regions] = {}
    for group in groups:
        by_last[max(group, key=lambda name: order[name])].append(group)
    for batch in batches:
        kept |= {regions.image_id: regions for regions in batch}
        ready = [group for regions in batch for group in by_last[regions.image_id] if kept.keys() >= {*group}]
        if ready:
            yield {group: tuple(kept[name] for name in group) for group in ready}
        uses.subtract(name for group in ready for name in group)
        kept = {name: regions for name, regions in kept.items() if uses[name]}


def _open_store(folders: Sequence[Path]) -> "RegionStore":
    from dimvl.regions.store import RegionStore

    return RegionStore(folders, check=True)


def _file(name: str) -> Path | str:
    """Return the path of an image, or its address."""
    return name if is_url(name) else Path(name)


def _image_files(paths: Sequence[Path | str], passed: "PassedOver") -> list[Path | str]:
    """Replace each folder by its images."""
    if not paths:
        raise UserError("no images are given; give image files or folders, or a region store as --regions")
    if not any(map(is_url, paths)):
        some_exist([Path(path) for path in paths])
    if not any(map(os.path.isdir, paths)):
        return list(paths)
    from dimvl.regions.listing import image_files_in

    return [file for path in paths for file in (image_files_in(Path(path), passed) if os.path.isdir(path) else [path])]


def open_model(model: str, device: str, threads: int, adapter: str | None = None) -> "Predictor":
    """Open an export for predictions on a device, with a number of CPU threads, and put an adapter onto it."""
    from dimvl.predictor import Predictor

    set_threads(threads)
    predictor = Predictor.from_pretrained(model, device)
    return predictor if adapter is None else predictor.with_adapter(adapter)


def check_inputs(
    predictor: "Predictor", verb: str, groups: Groups, times: Sequence[Sequence[float]] | None = None
) -> None:
    """Refuse inputs and a verb that the model does not take; then say what the model knows, if that is little."""
    predictor.check(verb, list(groups), times)
    say_synthetic(predictor)


def say_synthetic(predictor: "Predictor") -> None:
    """Say what the model knows, if that is little."""
    if predictor.trained.synthetic:
        print_text("this model knows synthetic scenes only; what it says about other images means nothing", error=True)


def named(group: Sequence[int | str], together: bool) -> dict[str, Any]:
    """Return the images of a result for JSON."""
    return {"images": list(group)} if together else {"image": group[0]}


def refuse_empty(texts: Sequence[str]) -> None:
    """Do early what the model's tokenizer does."""
    if empty := [place for place, text in enumerate(texts, start=1) if not text.strip()]:
        raise UserError(f"text {empty[0]} of {len(texts)} is empty; give some words")
