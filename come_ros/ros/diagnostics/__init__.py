"""What the node reports about itself on /diagnostics."""
