"""Using trained models: loading them, slots and masks of anybody's pictures, export for others."""
