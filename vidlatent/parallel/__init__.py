"""Devices: the mesh, sharding rules and multi-process start-up."""
