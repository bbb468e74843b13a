"""An export to the Hugging Face hub: what would go there, checked, and one commit of it.

Only files that `checksums.json` names go there, and only if they match it. The model card may have been edited; it gets
the licence and the model's name on the hub, in the copy that is sent.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

import dimvl
from dimvl.adapters.folder import ADAPTER_WEIGHTS
from dimvl.checkpoints import ADAPTER, CARD, MODEL, RUN
from dimvl.data.processor import Processor
from dimvl.errors import UserError
from dimvl.export import check_export
from dimvl.files import CHECKSUMS, HUB_NAME, RESTORE, check_folder, existing_folder, folder_checksums, read_text
from dimvl.hub import hub_errors
from dimvl.showing import short, some
from dimvl.tasks import task_of_model

_METADATA = re.compile(r"\A---\r?\n(.*?\n)---[ \t]*\r?\n", re.DOTALL)
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")
HERE = '("this folder")'
"""What the card of an export opens, in the place of its name on the hub."""
EMPTY = {".gitattributes", CARD, "LICENSE"}
"""Files that a model on the hub may have before the first push."""
Files = Mapping[str, Path | bytes]
"""Path in the repository -> the file, or its bytes where it is not sent as it is."""


def files_to_push(folder: Path, name: str, licence: str | None = None) -> Files:
    """Check an export, and return what would go to the hub.

    Args:
        folder: the export, which stays as it is.
        name: owner/name on the hub.
        licence: identifier of the hub, such as `apache-2.0`; by default that of the card.

    Raises:
        UserError: the name or the licence is none, the folder is not an export, a file is missing, damaged or does not
            belong to it, or the card's metadata is wrong.

    """
    if not HUB_NAME.fullmatch(name):
        raise UserError(f"{name} is not a name on the hub; give owner/name")
    if licence is not None and not _LICENCE.fullmatch(licence):
        raise UserError(f"licence {short(licence)} is not an identifier of the hub; give one such as apache-2.0")
    is_adapter = (existing_folder(folder) / ADAPTER).exists() and not (folder / RUN).exists()
    if not is_adapter:
        check_export(folder)
    if not (folder / CHECKSUMS).exists():
        raise UserError(f"{folder} has no {CHECKSUMS}; export its run again, with dimvl 0.2 or newer")
    names = sorted(folder_checksums(folder, RESTORE))
    if lacking := {CARD, MODEL, *([ADAPTER_WEIGHTS] if is_adapter else [])} - {*names}:
        raise UserError(f"{folder / CHECKSUMS} does not name {min(lacking)}; export the run again")
    if others := sorted(_visible(folder) - {CHECKSUMS, *names}):
        raise UserError(f"{folder} has files that do not belong to the export: {some(others)}; move them elsewhere")
    check_folder(folder, RESTORE, [one for one in names if one != CARD])
    card = _card(folder, name, licence, is_adapter)
    return {**{one: folder / one for one in (*names, CHECKSUMS)}, CARD: card.encode()}


def num_bytes(content: Path | bytes) -> int:
    """Return the size of what would go."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _visible(folder: Path) -> set[str]:
    """Return the files of a folder, without hidden ones at its top, such as those of git."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    return {path.as_posix() for path in files if not path.parts[0].startswith(".")}


def _card(folder: Path, name: str, licence: str | None, is_adapter: bool) -> str:
    """Return the model card for the hub, its metadata checked."""
    path = folder / CARD
    text = read_text(path)
    found = _METADATA.match(text)
    try:
        metadata: Any = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        metadata = None
    if found is None or not isinstance(metadata, dict):
        raise UserError(f"{path} does not begin with metadata, YAML between two lines of ---; {RESTORE}")
    tag = task_of_model(Processor.load(folder)).pipeline_tag
    for key, wanted in {"library_name": "dimvl", "pipeline_tag": tag}.items():
        if metadata.get(key) != wanted:
            raise UserError(f"{key} in {path} is {short(metadata.get(key))}; write {wanted}, or {RESTORE}")
    if is_adapter and "base_model" not in metadata:
        raise UserError(f"{path} names no base_model on the hub; push the base, and export with --base owner/name")
    if not (licence or metadata.get("license")):
        raise UserError(f"{path} has no licence; give it, such as --licence apache-2.0 or --licence other")
    metadata["license"] = licence or metadata["license"]
    written = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    opened = f'("{name}")'
    return f"---\n{written}---\n{text[found.end() :].replace(HERE, opened)}"


def push(
    files: Files, name: str, *, public: bool = False, branch: str | None = None, message: str | None = None
) -> str:
    """Write files to a model on the hub in one commit, and return the commit; a model that is new is created.

    Files of an earlier push that the new export lacks are removed; others stay.

    Args:
        files: of `files_to_push`.
        name: owner/name.
        public: whether everybody may see the model. One that exists must be so, or not, already.
        branch: created where it does not exist; by default the main branch.
        message: of the commit.

    Raises:
        UserError: the model on the hub is another one or visible to others than asked for; or as `hub_errors`.

    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    with hub_errors(name):
        api.whoami()
        if not _exists(api, name, public):
            api.create_repo(name, private=not public)
        if branch is not None:
            api.create_branch(name, branch=branch, exist_ok=True)
        info = api.model_info(name, revision=branch)
        there = {one.rfilename for one in info.siblings or ()}
        added = [CommitOperationAdd(one, content) for one, content in files.items()]
        removed = [CommitOperationDelete(one) for one in sorted(_owned(api, name, branch, there) - files.keys())]
        about = message or f"Push an export of dimvl {dimvl.__version__}"
        commit = api.create_commit(
            name, [*added, *removed], commit_message=about, revision=branch, parent_commit=info.sha
        )
        return commit.oid


def _exists(api: Any, name: str, public: bool) -> bool:
    """Return whether a model is on the hub, and refuse one that must not be written as it is."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.model_info(name)
    except RepositoryNotFoundError:
        return False
    there = {one.rfilename for one in info.siblings or ()}
    if there - EMPTY and CHECKSUMS not in there:
        raise UserError(
            f"{name} on the hub is not an export of dimvl, with files such as {min(there - EMPTY)}; give another name"
        )
    if bool(info.private) == public:
        seen, remedy = ("private", "omit --public") if info.private else ("public", "add --public")
        raise UserError(f"{name} on the hub is {seen} already; {remedy}, or change that in its settings there")
    return True


def _owned(api: Any, name: str, branch: str | None, there: set[str]) -> set[str]:
    """Return the files of an earlier push that a model on the hub still has."""
    if CHECKSUMS not in there:
        return set()
    sealed = Path(api.hf_hub_download(name, CHECKSUMS, revision=branch))
    try:
        return folder_checksums(sealed.parent, RESTORE).keys() & there
    except UserError:  # damaged; the new ones take its place
        return set()
