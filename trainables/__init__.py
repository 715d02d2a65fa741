"""What is trained and how: tasks, the loop, scaling rules, schedules, FLOP counts, checkpoints. Needs neither Ray nor MLflow."""
