"""Algorithm plug-ins, one a file."""
