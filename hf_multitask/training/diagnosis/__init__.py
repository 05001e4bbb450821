"""What tasks do to each other: separate trainings, gradients, groups, prices."""
