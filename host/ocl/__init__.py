"""Object-centric learning: models, data, training and evaluation, composed by configuration."""
