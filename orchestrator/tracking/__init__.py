"""MLflow as a view of the disk."""
