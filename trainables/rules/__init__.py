"""Rules of training: how rates scale, schedules, FLOP counts, optimizers."""
