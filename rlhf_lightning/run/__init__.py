"""What a run reads from the command line and leaves in its folder."""
