"""What goes around any method."""
