"""What a run shows: console, pictures, model card, pushes."""
