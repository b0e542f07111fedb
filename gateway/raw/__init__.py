"""Raw files of samples: writing, reading, damage, plots and retention."""
