"""Building blocks with explicit caches: convolutions, norms, attention, resampling."""
