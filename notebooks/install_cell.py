"""The cell that every notebook begins with; ``build.py`` copies it and fills in its values.

What is below the line runs before vidlatent can be imported. A JAX that the machine came with is
kept, since another one would not fit its drivers, and so is whatever the notebook has imported
already, which is why nothing has to be restarted.
"""

# ---------------------------------------------------------------------------------------------
import importlib
import os
import subprocess
import sys
from importlib import metadata

REPOSITORY = ""
EXTRAS = "demo"


def find_versions_to_keep():
    """Lines ``name==version`` for pip: JAX and its plugins, and what is imported already."""
    kept = {d.metadata["Name"] for d in metadata.distributions()}
    kept = {name for name in kept if name and name.startswith(("jax", "libtpu"))}
    for module, names in metadata.packages_distributions().items():
        if module in sys.modules:
            kept.update(names)
    return [f"{name}=={metadata.version(name)}" for name in sorted(kept - {"vidlatent"})]


if os.path.isdir("../vidlatent"):  # Jupyter starts in the notebook's folder
    os.chdir("..")
if not os.path.isdir("vidlatent/models"):
    subprocess.run(
        ["git", "clone", "--quiet", "--depth=1", REPOSITORY, "vidlatent_code"], check=True
    )
    os.chdir("vidlatent_code")
sys.path.insert(0, os.getcwd())
try:
    metadata.version("vidlatent")
except metadata.PackageNotFoundError:
    with open("keep.txt", "w") as file:
        file.write("\n".join(find_versions_to_keep()))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "-c", "keep.txt"]
    if subprocess.run([*command, f".[{EXTRAS}]"]).returncode:
        raise RuntimeError(
            "pip found no versions that go with what is installed here (the lines above say which "
            "package): vidlatent needs jax>=0.10.2,<0.13 and Python 3.11 or newer."
        ) from None
    importlib.invalidate_caches()
