"""What a run shows: metrics files, TensorBoard, curves, tables and HTML pages."""
