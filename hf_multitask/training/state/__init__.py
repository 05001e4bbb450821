"""What a run remembers: checkpoints, and what they hold beyond the Trainer's own state."""
