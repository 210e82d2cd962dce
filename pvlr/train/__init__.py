"""Everything with side effects: configuration, training, evaluation, checkpoints, monitoring, prediction."""
