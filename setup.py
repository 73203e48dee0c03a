"""Packaging. The base install is light; the training stack comes as extras (see README for a machine without a GPU)."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

STACK = [
    "openrlhf==0.11.2",
    "ray[default]==2.55.0",
    "deepspeed==0.19.6",
    "transformers==5.15.0",
    "torch==2.13.0",
]


def version() -> str:
    """Read the version from the package's source: importing the package is not possible while it is being built."""
    source = (ROOT / "openrlhf_gagpo" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    if found is None:
        raise RuntimeError('openrlhf_gagpo/__init__.py has no line __version__ = "..."; add it.')
    return found[1]


setup(
    name="openrlhf-gagpo",
    version=version(),
    description="GAGPO and other step-level credit methods for LLM agents in text environments, on top of OpenRLHF",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["openrlhf_gagpo*", "agent_envs*"]),
    package_data={
        "": ["py.typed"],
        "openrlhf_gagpo": [
            "report/templates/*",
            "viewer/templates/*",
            "viewer/static/*",
            "credit/conformance/*.json*",
        ],
    },
    install_requires=[
        "numpy",
        "pyyaml",
        "jinja2>=3.1",
        "rich>=13",
        "scipy>=1.11",
    ],
    extras_require={
        "local": ["torch>=2.6", "transformers>=5.0", "accelerate", "peft>=0.18", "matplotlib>=3.9"],
        "gpu": [*STACK, "vllm==0.29.0", "flash-attn==2.8.3", "matplotlib>=3.9"],
        "view": ["starlette>=0.40", "uvicorn>=0.30"],
        "api": ["httpx>=0.27"],
        "alfworld": ["alfworld==0.4.2", "textworld[pddl]==1.7.0"],
        "webshop": ["regex"],
        "gymnasium": ["gymnasium>=1.0"],
        "textarena": ["textarena>=0.7.4"],
        "openenv": ["httpx>=0.27", "starlette>=0.40", "uvicorn>=0.30", "websockets>=14"],
        "verifiers": ["verifiers>=0.4,<0.5", "httpx>=0.27"],
        "search": ["tantivy==0.27.0", "httpx>=0.27", "pyarrow", "starlette>=0.40", "uvicorn>=0.30"],
        "dev": [
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff>=0.9",
            "mypy>=2.4",
            "gymnasium>=1.0",
            "httpx>=0.27",
            "websockets>=14",
            "types-PyYAML",
            "types-regex",
        ],
    },
    entry_points={"console_scripts": ["gagpo = openrlhf_gagpo.cli.main:main"]},
)
