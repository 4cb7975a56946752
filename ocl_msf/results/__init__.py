"""Results: saved outputs, figures, a report, and edited slots."""
