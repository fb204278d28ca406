"""What scripts share: a run's folder, decoded rows, tokens, scores, pictures. Imports datasets, models and utils; no script."""
