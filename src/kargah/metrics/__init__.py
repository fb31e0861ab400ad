"""What was measured while training: the table `training_metrics`, the log lines, and how both are read."""
