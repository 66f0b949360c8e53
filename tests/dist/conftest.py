"""The tiny generators of the models' tests are met here on meshes."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "models"))  # for generator_nets
