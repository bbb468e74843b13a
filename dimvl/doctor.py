"""What `dimvl doctor` prints: facts about an installation, to be pasted into an issue.

No fact holds a path, a user's name, the name of the machine or the value of a token.
"""

import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import dimvl
from dimvl.files import git_revision

Facts = list[tuple[str, str]]
SHOWN = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "DIMVL_RANKS")
"""Variables whose values say nothing about a person."""
SECRET = ("HF_TOKEN", "WANDB_API_KEY")
"""Variables of which only is said whether they are set."""
PACKAGES = ("torchvision", "numpy", "pillow", "pydantic", "typer", "safetensors", "huggingface_hub", "tokenizers")


def facts() -> Facts:
    """Return names of facts and the facts; one that cannot be found out says so."""
    found: Facts = []
    for name, find in FINDERS.items():
        try:
            found += [(name, value) for value in find()]
        except Exception as error:  # a broken package is what this page is for; its words may hold paths
            found.append((name, f"not known ({type(error).__name__})"))
    return found


def _dimvl() -> Iterator[str]:
    revision = git_revision()
    yield dimvl.__version__ + (f", git revision {revision[:12]}" if revision else "")


def _system() -> Iterator[str]:
    yield f"{platform.system()} {platform.release()}, {platform.machine()}, Python {platform.python_version()}"


def _cpu() -> Iterator[str]:
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    yield f"{model[1] if model else platform.processor()}, {len(os.sched_getaffinity(0))} cores, {memory:.1f} GB memory"


def _disk() -> Iterator[str]:
    for name, folder in (("here", Path.cwd()), ("temporary files", Path(tempfile.gettempdir()))):
        yield f"{shutil.disk_usage(folder).free / 1e9:.1f} GB free, {name}"


def _torch() -> Iterator[str]:
    import torch

    kernels = "oneDNN" if torch.backends.mkldnn.is_available() else "no oneDNN"
    capability = torch.backends.cpu.get_cpu_capability()
    yield f"{torch.__version__}, {torch.get_num_threads()} threads, {capability}, {kernels}"


def _gpu() -> Iterator[str]:
    import torch

    if not torch.cuda.is_available():
        yield f"none (torch is built for {'CUDA ' + torch.version.cuda if torch.version.cuda else 'the CPU only'})"
        return
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        name = f"{device.name}, {device.total_memory / 1e9:.0f} GB, compute capability {device.major}.{device.minor}"
        yield f"{name}, CUDA {torch.version.cuda}"


def _operators() -> Iterator[str]:
    from dimvl.regions.detectors.torchvision_ops import compiled_operators_load, import_torchvision

    import_torchvision()
    yield "compiled ones load" if compiled_operators_load() else "compiled ones do not fit torch; dimvl's own are used"


def _java() -> Iterator[str]:
    if (java := shutil.which("java")) is None:
        yield "none (METEOR and SPICE need it)"
        return
    done = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=20)
    version = re.search(r'version "([\w.+-]{1,40})"', done.stderr + done.stdout)
    yield version[1] if version else "does not start"


def _packages() -> Iterator[str]:
    yield ", ".join(f"{name} {_version(name)}" for name in PACKAGES)


def _extras() -> Iterator[str]:
    """Say of each extra which of its packages are there."""
    extras: dict[str, list[str]] = {}
    for line in metadata.requires("dimvl") or ():
        if found := re.match(r"""([\w.-]+).*;\s*extra\s*==\s*['"](\w+)['"]""", line):
            extras.setdefault(found[2], []).append(found[1])
    for extra in sorted(extras.keys() - {"dev"}):
        yield f"{extra}: " + ", ".join(f"{name} {_version(name)}" for name in extras[extra])


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def _variables() -> Iterator[str]:
    shown = [f"{name}={os.environ[name]}" for name in SHOWN if re.fullmatch(r"[\w,.-]{1,40}", os.environ.get(name, ""))]
    yield ", ".join([*shown, *(f"{name} is set" for name in SECRET if os.environ.get(name))]) or "none of interest"


FINDERS: dict[str, Callable[[], Iterator[str]]] = {
    "dimvl": _dimvl,
    "system": _system,
    "CPU": _cpu,
    "disk": _disk,
    "torch": _torch,
    "GPU": _gpu,
    "torchvision's operators": _operators,
    "Java": _java,
    "packages": _packages,
    "extra": _extras,
    "environment": _variables,
}
