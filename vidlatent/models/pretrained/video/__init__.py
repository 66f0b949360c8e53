"""Video networks that FVD and inception scores look through: I3D, C3D, VideoMAE."""
