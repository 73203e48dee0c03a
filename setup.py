"""Packaging. The base install is light; the training stack comes as extras (see README for a machine without a GPU)."""

from pathlib import Path

from setuptools import find_packages, setup

STACK = [
    "openrlhf==0.11.2",
    "ray[default]==2.55.0",
    "deepspeed==0.19.6",
    "transformers==5.15.0",
    "torch==2.13.0",
]

setup(
    name="openrlhf-gagpo",
    version="0.1.0",
    description="GAGPO and other step-level credit methods for LLM agents in text environments, on top of OpenRLHF",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["openrlhf_gagpo*", "agent_envs*"]),
    package_data={"openrlhf_gagpo": ["report/templates/*"]},
    install_requires=[
        "numpy",
        "pyyaml",
        "jinja2>=3.1",
        "rich>=13",
    ],
    extras_require={
        "local": ["torch>=2.6", "transformers>=5.0", "accelerate", "matplotlib>=3.9"],
        "gpu": [*STACK, "vllm==0.29.0", "flash-attn==2.8.3", "matplotlib>=3.9"],
        "alfworld": ["alfworld==0.4.2", "textworld[pddl]==1.7.0"],
        "webshop": ["regex"],
        "dev": ["pytest>=8", "pytest-timeout>=2.3", "hypothesis>=6.100", "ruff>=0.9"],
    },
    entry_points={"console_scripts": ["gagpo = openrlhf_gagpo.cli.main:main"]},
)
