"""Packaging of caureid-plugin."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "caureid_plugin/_version.py").read_text())[1]

# FastReID itself is not among them: its own pins ask for torch 1.13.1, so it is installed with
# `pip install --no-deps fastreid==1.4.0`; what it really needs is listed here instead.
# faiss is not among them either: faiss-cpu and faiss-gpu are two distributions of one module, of
# which at most one may be installed. Two back ends of the clustering need it, and the index.
REQUIRES = [
    "torch>=2.1",
    "torchvision>=0.16",
    "numpy>=1.24",
    "scipy>=1.10",
    "scikit-learn>=1.2",
    "click>=8.1",
    "numba>=0.57",
    "psutil>=5.9",
    "threadpoolctl>=3.1",
    "opencv-python-headless>=4.7",
    "imagehash>=4.3",
    "jinja2>=3.1",
    "pillow>=9.4",
    "yacs>=0.1.8",
    "pyyaml>=6.0",
    "regex>=2023.10.3",
    "tabulate>=0.9",
    "termcolor>=2.2",
    "tensorboard>=2.12",
    "tqdm>=4.64",
    "filelock>=3.16",
    "gdown>=4.6",
    "matplotlib>=3.7",
    "Cython>=3.0",
    "setuptools>=65",
]

setup(
    name="caureid-plugin",
    version=VERSION,
    description="CA-UReID for FastReID: person re-identification learnt from cameras, without "
                "identity labels",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    # the configs lie beside the package in a clone and inside it in an installation
    packages=find_packages(include=["caureid_plugin", "caureid_plugin.*"])
    + ["caureid_plugin.configs"],
    package_dir={"caureid_plugin.configs": "configs"},
    package_data={
        "caureid_plugin": ["py.typed", "*/*.j2", "*/*.css", "*/*.js"],
        "caureid_plugin.configs": ["*.yml", "*/*.yml"],
    },
    install_requires=REQUIRES,
    entry_points={"console_scripts": ["caureid = caureid_plugin.cli:main"]},
    extras_require={
        "faiss-cpu": ["faiss-cpu>=1.7.4"],
        "faiss-gpu": ["faiss-gpu>=1.14"],
        "export": ["onnx>=1.16", "onnxruntime>=1.18", "onnxscript>=0.2"],
        "hub": ["safetensors>=0.4.3"],
        "timm": ["timm>=1.0"],
        "web": ["flask>=3.0", "waitress>=3.0"],
        "docs": ["sphinx>=8.1", "myst-parser>=4.0", "furo>=2024.8.6"],
        "test": [
            "caureid-plugin[export,hub,timm,web,docs]",
            "pytest>=8.2", "pytest-timeout>=2.2", "pytest-xdist>=3.6", "pytest-randomly>=3.15",
            "hypothesis>=6.87", "markdown-it-py>=3.0",
            "playwright>=1.49", "openvino>=2024.6",
            # bounded: a new release may find what nobody changed
            "ruff>=0.14,<0.18", "mypy>=1.18,<3", "vulture>=2.14,<3",
        ],
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)
