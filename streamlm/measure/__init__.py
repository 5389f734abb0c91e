"""What is measured: losses of a stream, time and memory of a decoded token."""
