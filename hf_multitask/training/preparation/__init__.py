"""What a trainer checks and prepares of what it is given, before anything runs."""
