"""Find the packages: `callbacks/` and `configs/` lie at the top of the repository and are installed below the package."""

from setuptools import find_packages, setup

BESIDE = ("callbacks", "configs")

setup(
    packages=[*find_packages(include=["rlhf_lightning*"]), *(f"rlhf_lightning.{name}" for name in BESIDE)],
    package_dir={f"rlhf_lightning.{name}": name for name in BESIDE},
)
