"""Label indexes, built and measured: kinds, efforts, memory, calibration."""
