"""One optimizer step: its rows, losses, weights and gradients. Nothing here imports the Trainer."""
