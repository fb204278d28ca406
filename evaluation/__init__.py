"""What a finished run is read for: audit, decoded runs, tables and their statistics, figures, image metrics, report."""
