"""``config.mesh``: how the devices share the work."""

from ml_collections import ConfigDict


def get_mesh() -> ConfigDict:
    """Devices along each axis; -1 stands for all that are left and divide every batch."""
    mesh = ConfigDict()
    mesh.data = 1  # each group of devices holds a copy of the parameters
    mesh.fsdp = -1  # parameters are split, and gathered layer by layer
    mesh.context = 1  # videos are split by rows, sequences by tokens
    mesh.tensor = 1  # layers are split by channels
    return mesh
