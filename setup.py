"""What setup.cfg cannot say: `launch/` and `configs/` are beside the package, and in the wheel."""

from setuptools import find_packages, setup

SHIPPED = ("configs", "launch")
beside = find_packages(include=[pattern for name in SHIPPED for pattern in (name, f"{name}.*")])
setup(
    packages=[*find_packages(include=["saat_jax*"]), *(f"saat_jax.shipped.{x}" for x in beside)],
    package_dir={f"saat_jax.shipped.{name}": name for name in SHIPPED},
)
