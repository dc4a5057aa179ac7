"""What evaluation callbacks call."""
