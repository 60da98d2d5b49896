"""kivi from Python."""
