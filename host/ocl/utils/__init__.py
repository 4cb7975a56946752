"""Building blocks that the other modules share."""
